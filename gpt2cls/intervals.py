"""Confidence intervals by resampling rows, without copying a row.

A metric is a function of sums over rows. So each row's part in those sums is written down
once, as a row of a sparse matrix, and a resample is a vector of how often each row was drawn
times that matrix. The point value is the same function of the plain sums.

Letters in array names: N rows, F sums, R resamples.

Source: B. Efron, "Bootstrap Methods: Another Look at the Jackknife" (1979); percentile interval.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Sums = NDArray[np.float64]
Scores = dict[str, NDArray[np.float64]]

MAX_DRAWS = 200_000_000
"""Rows drawn over all resamples: a few seconds. Above 200,000 rows there are fewer resamples,
and the interval is narrow anyway."""
BLOCK_DRAWS = 4_000_000
"""Counts held at once: 32 MB."""


def num_resamples(num_rows: int, wanted: int = 1000) -> int:
    """How many resamples of that many rows are worth their time."""
    return min(wanted, max(100, MAX_DRAWS // max(num_rows, 1)))


def bootstrap_intervals(
    parts_NF: Any, scores_of: Callable[[Sums], Scores], *, resamples: int, seed: int
) -> dict[str, list[float]]:
    """The 95% percentile interval [low, high] of every score.

    Args:
        parts_NF: each row's part in the sums, a scipy sparse matrix.
        scores_of: scores [R] from sums [R, F].
        resamples: how often to draw as many rows as there are, with replacement.
        seed: the same seed gives the same interval.
    """
    rng = np.random.default_rng(seed)
    num_rows, num_sums = parts_NF.shape
    sums_RF = np.empty((resamples, num_sums))
    parts_FN = parts_NF.T.tocsr()
    at_once = max(1, BLOCK_DRAWS // num_rows)
    for first in range(0, resamples, at_once):
        counts_NR = np.empty((num_rows, min(at_once, resamples - first)))
        for r in range(counts_NR.shape[1]):
            drawn = rng.integers(0, num_rows, size=num_rows, dtype=np.int32)
            counts_NR[:, r] = np.bincount(drawn, minlength=num_rows)
        sums_RF[first : first + at_once] = (parts_FN @ counts_NR).T
    return {
        name: [float(end) for end in np.percentile(values_R, (2.5, 97.5))]
        for name, values_R in scores_of(sums_RF).items()
    }
