"""Whether a probability of 0.8 is right eight times in ten.

Single-label: a decision is a row, its confidence the highest probability, right or wrong.
Several labels: a decision is one label of one row, its confidence that label's probability,
and it is right when the row has the label.

Letters in array names: N rows, K bins.

Source: C. Guo et al., "On Calibration of Modern Neural Networks" (2017), section 2: expected
calibration error over equal-width bins, each open below and closed above.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_BINS = 15

Floats = NDArray[np.floating[Any]]


def calibration_gaps(probs: Floats, labels: NDArray[Any]) -> NDArray[np.float64]:
    """Each row's sum of (confidence - right) per bin [N, K].

    The expected calibration error is sum(abs(gaps.sum(axis=0))) / number of decisions, so it
    follows from sums over rows, and so do its resamples.
    """
    gaps_NK = np.zeros((len(labels), NUM_BINS))
    rows_N = np.arange(len(labels))
    for confidence_N, right_N in _decisions(probs, labels):
        gaps_NK[rows_N, _bins(confidence_N)] += confidence_N - right_N
    return gaps_NK


def calibration_error(probs: Floats, labels: NDArray[Any]) -> float:
    """Expected calibration error of probabilities [N, C]: 0 is perfect, 1 is always wrong."""
    gaps_K = calibration_gaps(probs, labels).sum(axis=0)
    return float(np.abs(gaps_K).sum() / labels.size)


def reliability_table(probs: Floats, labels: NDArray[Any]) -> list[dict[str, Any]]:
    """Per bin: its ends, how many decisions fell in it, their mean confidence and accuracy."""
    sums = np.zeros((3, NUM_BINS))
    for confidence_N, right_N in _decisions(probs, labels):
        bins_N = _bins(confidence_N)
        for row, weights in enumerate((None, confidence_N, right_N)):
            sums[row] += np.bincount(bins_N, weights=weights, minlength=NUM_BINS)
    return [
        {
            "low": k / NUM_BINS,
            "high": (k + 1) / NUM_BINS,
            "count": int(count),
            "confidence": float(confidence / count) if count else None,
            "accuracy": float(right / count) if count else None,
        }
        for k, (count, confidence, right) in enumerate(sums.T)
    ]


def _decisions(
    probs: Floats, labels: NDArray[Any]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """(confidence, right) of all rows: once, or once per label to bound the memory."""
    if labels.ndim == 1:
        right_N = probs.argmax(axis=1) == labels
        yield probs.max(axis=1).astype(np.float64), right_N.astype(np.float64)
        return
    for c in range(probs.shape[1]):
        yield probs[:, c].astype(np.float64), (labels[:, c] > 0).astype(np.float64)


def _bins(confidence_N: NDArray[np.float64]) -> NDArray[np.int64]:
    return (np.ceil(confidence_N * NUM_BINS).astype(np.int64) - 1).clip(0, NUM_BINS - 1)
