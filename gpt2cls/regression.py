"""How near predicted values are to the true ones.

Imports numpy only, because training calls `quick_scores` at every evaluation.

Letters in array names: N rows, F sums over rows, R resamples, K bins.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2cls.intervals import Scores, Sums, bootstrap_intervals, num_resamples

NUM_BINS = 10
_SUMS = 6
"""Of each kind of numbers: both, their squares, their product, the squared error."""

Floats = NDArray[np.floating[Any]]


def quick_scores(values: Floats, labels: Floats) -> dict[str, float]:
    """Pearson's and Spearman's correlation and the mean squared error.

    A correlation with what does not vary is 0: it says nothing of the labels.
    """
    parts_NF = _parts(_column(values, labels), labels)
    return {
        name: float(value_R[0]) for name, value_R in _scores(parts_NF.sum(axis=0)[None]).items()
    }


def evaluate_values(
    values: Floats, labels: Floats, *, seed: int = 0, resamples: int = 1000
) -> dict[str, Any]:
    """The whole test table, as plain JSON values.

    Returns:
        `rows`; pearson, spearman and mse, each with a 95% bootstrap interval under `<name>_ci`
        (that of Spearman's keeps the ranks that rows have in the whole split); `fit`, the mean of
        values and labels in each tenth of the values.
    """
    values_N = _column(values, labels)
    parts_NF = _parts(values_N, labels)
    resamples = num_resamples(len(labels), resamples)
    point = _scores(parts_NF.sum(axis=0)[None])
    from scipy import sparse  # type: ignore[import-untyped]

    intervals = bootstrap_intervals(
        sparse.csr_matrix(parts_NF), _scores, resamples=resamples, seed=seed
    )
    result: dict[str, Any] = {"rows": len(labels)}
    for name, value_R in point.items():
        result |= {name: float(value_R[0]), f"{name}_ci": intervals[name]}
    fit = fit_table(values_N, labels)
    return result | {"fit": fit, "bootstrap": {"resamples": resamples, "seed": seed}}


def fit_table(values_N: Floats, labels_N: Floats) -> list[dict[str, float]]:
    """Per tenth of the rows, from the lowest value to the highest: what was said, what was true."""
    order = np.argsort(values_N, kind="stable")
    parts = [part for part in np.array_split(order, NUM_BINS) if len(part)]
    return [
        {
            "count": len(rows),
            "value": float(values_N[rows].mean()),
            "label": float(labels_N[rows].mean()),
            "low": float(np.percentile(labels_N[rows], 10)),
            "high": float(np.percentile(labels_N[rows], 90)),
        }
        for rows in parts
    ]


def ranks(values_N: Floats) -> NDArray[np.float64]:
    """From 1, equal values sharing the mean of their ranks."""
    _, place_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    return np.asarray((counts.cumsum() - (counts - 1) / 2)[place_N], np.float64)


def _column(values: Floats, labels: Floats) -> NDArray[np.float64]:
    """The values [N] of an array [N, 1].

    Raises:
        ValueError: the shapes differ, there are no rows, or a value is not a number.
    """
    if values.shape != (len(labels), 1) or labels.ndim != 1:
        raise ValueError(f"values of shape {values.shape} do not fit labels of {labels.shape}")
    if not len(labels):
        raise ValueError("no rows to compute metrics of")
    if not np.isfinite(values).all():
        raise ValueError("a value is not a finite number: the model's weights are damaged")
    return values[:, 0].astype(np.float64)


def _parts(values_N: NDArray[np.float64], labels: Floats) -> NDArray[np.float64]:
    """Each row's part in the sums: of values and labels, and of their ranks."""
    labels_N = labels.astype(np.float64)
    pairs = ((values_N, labels_N), (ranks(values_N), ranks(labels_N)))
    columns = [np.ones(len(labels_N))]
    for one_N, other_N in pairs:
        # Less their means: products of large numbers would lose what tells rows apart.
        x_N, y_N = one_N - one_N.mean(), other_N - other_N.mean()
        columns += [x_N, y_N, x_N**2, y_N**2, x_N * y_N, (one_N - other_N) ** 2]
    return np.column_stack(columns)


def _scores(sums_RF: Sums) -> Scores:
    """The metrics of each resample, from the sums of `_parts`."""
    num_rows_R = sums_RF[:, 0]
    means_RF = sums_RF[:, 1:] / num_rows_R[:, None]
    of_values_RF, of_ranks_RF = means_RF[:, :_SUMS], means_RF[:, _SUMS:]
    return {
        "pearson": _correlation(of_values_RF),
        "spearman": _correlation(of_ranks_RF),
        "mse": of_values_RF[:, 5],
    }


def _correlation(means_RF: Sums) -> NDArray[np.float64]:
    x, y, xx, yy, xy, _ = means_RF.T
    spread = np.sqrt(np.maximum(xx - x**2, 0) * np.maximum(yy - y**2, 0))
    # Not 0: what a constant leaves is the rounding of its mean.
    is_any = spread > 1e-12 * np.sqrt(np.maximum(xx * yy, 1e-300))
    is_any &= (xx > 1e-20) & (yy > 1e-20)
    return np.where(is_any, (xy - x * y) / np.where(is_any, spread, 1), 0.0).clip(-1, 1)
