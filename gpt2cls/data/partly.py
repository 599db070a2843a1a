"""Texts of which only some have a label: cleaned, divided into what to learn from and a test."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gpt2cls.data.keys import fingerprint, row_keys
from gpt2cls.data.labels import label_names, label_numbers
from gpt2cls.data.rows import Columns, Rows
from gpt2cls.data.splitting import hold_out
from gpt2cls.data.tasks import Task
from gpt2cls.errors import DataError

PARTS = ("labelled", "unlabelled", "texts", "test")
"""What the rows are divided into; `texts` is the first two together, without labels."""


@dataclass(frozen=True)
class Divided:
    """The parts, by name, as columns with the names of the source; and what was counted."""

    parts: dict[str, dict[str, pa.ChunkedArray]]
    report: dict[str, Any]


def divide(
    rows: Rows, columns: Columns, source: str, *, test: float, keep_labels: float | None, seed: int
) -> Divided:
    """Leave out empty and repeated texts, and hold out a share of the labelled ones.

    Of equal texts one is left, a labelled one if there is any. A text that has different labels in
    different rows counts as one without a label. The order of the source is kept, and the same
    rows are divided alike in every run.

    Args:
        rows: with labels, null where there is none.
        columns: what they were read from.
        source: as the user named it.
        test: share of the labelled texts of every class that is in no other part.
        keep_labels: forget all labels but those of this share of every class; None: keep all.
        seed: of both drawings.

    Raises:
        DataError: no texts, no labels, a single class, or no row that can be held out.
    """
    assert rows.labels is not None
    keys = row_keys(rows.texts)
    is_blank = _mask(pc.equal(pc.utf8_trim_whitespace(rows.texts), ""))
    if is_blank.all():
        raise DataError(f"{source}: holds no text ({len(rows):,} rows, all empty)")
    has_label = _has_label(rows.labels, columns) & ~is_blank
    task, numbers = _numbered(rows, has_label, columns, source)
    conflicts = _conflicts(keys, has_label, numbers)
    has_label &= ~np.isin(keys, conflicts)
    is_kept = _first_of_each(keys, has_label, ~is_blank)
    is_labelled = is_kept & has_label
    num_labels = int(is_labelled.sum())
    if keep_labels is not None:
        is_labelled = _share(is_labelled, keys, numbers, keep_labels, (seed, 2))
    is_test = _share(is_labelled, keys, numbers, test, (seed, 1))
    if not is_test.any():
        raise DataError(
            f"test = {test:g}: no row can be held out of {int(is_labelled.sum()):,} with a label, "
            "because every class needs a row to learn from. Label more rows"
        )
    is_learned = is_labelled & ~is_test
    _refuse_one_class(is_learned, numbers, source)
    masks = dict(
        zip(PARTS, (is_learned, is_kept & ~is_labelled, is_kept & ~is_test, is_test), strict=True)
    )
    report = {
        "rows": len(rows),
        "empty": int(is_blank.sum()),
        "duplicates": int((~is_blank & ~is_kept).sum()),
        "conflicting": len(conflicts),
        "labels_hidden": num_labels - int(is_labelled.sum()),
        **{name: int(mask.sum()) for name, mask in masks.items()},
        "labels": _balance(task, numbers, is_learned, is_test),
    }
    return Divided({name: _columns(rows, columns, name, mask) for name, mask in masks.items()},
                   report)  # fmt: skip


def fingerprint_of(rows: Rows) -> str:
    """Of the texts and labels of all rows and their order."""
    assert rows.labels is not None
    is_valid = _mask(pc.is_valid(rows.labels))
    parts: list[Any] = [b"gpt2cls partly 1", row_keys(rows.texts), is_valid]
    if rows.is_multi_label:
        lengths = pc.fill_null(pc.list_value_length(rows.labels), 0)
        parts += [np.asarray(lengths.to_numpy()), row_keys(pc.list_flatten(rows.labels))]
    else:
        parts.append(row_keys(pc.fill_null(rows.labels, "")))
    return fingerprint(parts)


def _has_label(labels: pa.ChunkedArray, columns: Columns) -> NDArray[np.bool_]:
    """Which rows have one; where a separator divides them an empty cell is no label yet."""
    found = _mask(pc.is_valid(labels))
    if columns.separator is not None:
        found &= _mask(pc.fill_null(pc.greater(pc.list_value_length(labels), 0), False))
    return found


def _numbered(
    rows: Rows, has_label: NDArray[np.bool_], columns: Columns, source: str
) -> tuple[Task, NDArray[Any]]:
    """The task, and the labels of all rows as numbers; what a row without one has means nothing."""
    mask = pa.array(has_label)
    assert rows.labels is not None
    chosen = Rows(rows.texts.filter(mask), None, rows.labels.filter(mask), rows.origin)
    column = str(columns.label)
    if not len(chosen):
        raise DataError(
            f"{source}: none of {len(rows):,} rows has a label in column {column!r}; label some"
        )
    names = label_names(chosen, column, source)
    task = Task("multi_label" if rows.is_multi_label else "single_label", names, False)
    found, _ = label_numbers(chosen, task)
    numbers = np.zeros((len(rows), *found.shape[1:]), found.dtype)
    numbers[has_label] = found
    return task, numbers


def _conflicts(
    keys: NDArray[np.uint64], has_label: NDArray[np.bool_], numbers: NDArray[Any]
) -> NDArray[np.uint64]:
    """The keys of texts that have different labels in different rows."""
    own_keys, own = keys[has_label], numbers[has_label]
    order = np.argsort(own_keys, kind="stable")
    same_text = own_keys[order][1:] == own_keys[order][:-1]
    after, before = own[order][1:][same_text], own[order][:-1][same_text]
    differs = after != before
    differs = differs.any(axis=1) if differs.ndim == 2 else differs
    return np.unique(own_keys[order][1:][same_text][differs])


def _first_of_each(
    keys: NDArray[np.uint64], has_label: NDArray[np.bool_], is_wanted: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """One wanted row of each key: the first with a label, else the first."""
    order = np.lexsort((~has_label, ~is_wanted, keys))  # the last one given sorts first
    is_first = np.r_[True, keys[order][1:] != keys[order][:-1]]
    found = np.zeros(len(keys), bool)
    found[order[is_first]] = True
    return np.asarray(found & is_wanted)


def _share(
    mask: NDArray[np.bool_],
    keys: NDArray[np.uint64],
    numbers: NDArray[Any],
    share: float,
    seed: tuple[int, int],
) -> NDArray[np.bool_]:
    """A share of the rows of every class among those of the mask."""
    found = np.zeros(len(mask), bool)
    found[mask] = hold_out(keys[mask], numbers[mask], share, seed=seed)
    return found


def _refuse_one_class(mask: NDArray[np.bool_], numbers: NDArray[Any], source: str) -> None:
    own = numbers[mask]
    num_classes = len(np.unique(own)) if own.ndim == 1 else int(own.any(axis=0).sum())
    if num_classes < 2 and own.ndim == 1:
        raise DataError(
            f"{source}: the {len(own):,} rows that are left to learn from have one label; there is "
            "nothing to learn from one class. Label rows of another, or raise keep_labels"
        )


def _balance(
    task: Task, numbers: NDArray[Any], is_learned: NDArray[np.bool_], is_test: NDArray[np.bool_]
) -> dict[str, dict[str, int]]:
    counts = {}
    for name, mask in (("labelled", is_learned), ("test", is_test)):
        own = numbers[mask]
        size = len(task.labels)
        counts[name] = own.sum(axis=0) if own.ndim == 2 else np.bincount(own, minlength=size)
    return {
        label: {name: int(found[c]) for name, found in counts.items()}
        for c, label in enumerate(task.labels)
    }


def _columns(
    rows: Rows, columns: Columns, part: str, mask: NDArray[np.bool_]
) -> dict[str, pa.ChunkedArray]:
    chosen = pa.array(mask)
    found = {columns.texts[0]: rows.texts.filter(chosen)}
    if part in ("labelled", "test"):
        assert rows.labels is not None
        found[str(columns.label)] = rows.labels.filter(chosen)
    return found


def _mask(values: Any) -> NDArray[np.bool_]:
    return np.array(values.to_numpy(), bool)
