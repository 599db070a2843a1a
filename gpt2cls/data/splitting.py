"""Which rows are held out: a share of every class, with equal texts on one side."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def hold_out(
    keys: NDArray[np.uint64], labels: NDArray[Any], share: float, *, seed: tuple[int, ...]
) -> NDArray[np.bool_]:
    """True for the rows to hold out.

    Rows of one key are never divided. Each class gives its share of rows (rounded so that the
    sum comes out right), but a label always keeps a row. The choice depends on the seed and
    on the rows, not on their order.

    Args:
        keys: one per row; equal texts have equal keys.
        labels: one number from 0 per row, or bool [N, C]. A text that has several labels, in
            one row or over its rows, counts as the rarest of them.
        share: of the rows, between 0 and 1.
        seed: of the drawing.
    """
    classes = _strata(labels)
    unique, group_of_row, size_G = np.unique(keys, return_inverse=True, return_counts=True)
    class_G = _rarest_class(classes, group_of_row, len(unique))
    rows_C = np.bincount(class_G, weights=size_G, minlength=1).astype(np.int64)
    target_C = _targets(rows_C, share)
    lot_G = np.random.default_rng(list(seed)).random(len(unique))
    # A group larger than its class's target could block all that come after it.
    too_large_G = size_G > target_C[class_G]
    order = np.lexsort((lot_G, too_large_G, class_G))
    held_G = np.zeros(len(unique), bool)
    held_G[order] = _running_size(size_G[order], class_G[order]) <= target_C[class_G[order]]
    _keep_every_label(held_G, group_of_row, labels)
    return np.asarray(held_G[group_of_row])


def _strata(labels: NDArray[Any]) -> NDArray[np.int64]:
    """One class per row to divide by: the label, or the rarest of several, or "none" as one."""
    if labels.ndim == 1:
        return labels.astype(np.int64)
    num_labels = labels.shape[1]
    best = np.full(len(labels), num_labels, np.int64)
    for label in np.argsort(-labels.sum(axis=0), kind="stable"):  # the rarest comes last and wins
        best[labels[:, label].astype(bool)] = label
    return best


def _rarest_class(
    classes: NDArray[np.int64], group_of_row: NDArray[np.int64], num_groups: int
) -> NDArray[np.int64]:
    rows_C = np.bincount(classes, minlength=1)
    rank_C = np.empty(len(rows_C), np.int64)
    by_rows = np.argsort(rows_C, kind="stable")
    rank_C[by_rows] = np.arange(len(rows_C))
    best_G = np.full(num_groups, len(rows_C), np.int64)
    np.minimum.at(best_G, group_of_row, rank_C[classes])
    return np.asarray(by_rows[best_G])


def _targets(rows_C: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    """Rows that each class gives: the largest remainders round up, and no class gives all."""
    exact_C = rows_C * share
    target_C = np.floor(exact_C).astype(np.int64)
    missing = max(1, round(int(rows_C.sum()) * share)) - int(target_C.sum())
    can_give_C = target_C < rows_C - 1
    remainder_C = np.where(can_give_C, exact_C - target_C, -1.0)
    chosen = np.argsort(-remainder_C, kind="stable")[: max(0, missing)]
    target_C[chosen[can_give_C[chosen]]] += 1
    return np.asarray(np.minimum(target_C, np.maximum(rows_C - 1, 0)))


def _running_size(size_G: NDArray[np.int64], class_G: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of a class up to and with each group; groups of a class lie together."""
    total_G = np.cumsum(size_G)
    starts = np.flatnonzero(np.r_[True, class_G[1:] != class_G[:-1]])
    before = (total_G - size_G)[starts]
    return np.asarray(total_G - np.repeat(before, np.diff(np.r_[starts, len(class_G)])))


def _keep_every_label(
    held_G: NDArray[np.bool_], group_of_row: NDArray[np.int64], labels: NDArray[Any]
) -> None:
    """Give back a group of every label that is wholly held out.

    That can happen only where a text has several labels.
    """
    is_kept = ~held_G[group_of_row]
    if labels.ndim == 2:
        lost = np.flatnonzero(labels.any(axis=0) & ~labels[is_kept].any(axis=0))
        first_row = labels[:, lost].argmax(axis=0)
    else:
        num_rows = np.bincount(labels, minlength=1)
        num_kept = np.bincount(labels[is_kept], minlength=len(num_rows))
        lost = np.flatnonzero((num_kept == 0) & (num_rows > 0))
        names, first = np.unique(labels, return_index=True)
        first_row = first[np.searchsorted(names, lost)]
    held_G[group_of_row[first_row]] = False
