"""Label names and their numbers; what is refused about labels."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gpt2cls.data.rows import Rows
from gpt2cls.data.tasks import Task
from gpt2cls.data.values import TEXT, some
from gpt2cls.errors import DataError

MAX_CLASSES = 100_000
MAX_CELLS = 2**30
"""Rows times labels where rows have several: one byte each in memory."""
_MANY_NUMBERS = 20
"""As many different decimal numbers are measurements, not names of classes."""


def require_labels(rows: Rows, column: str, source: str) -> None:
    """Refuse no rows, and rows without a label.

    Raises:
        DataError: naming how many, and the first of them.
    """
    if not len(rows):
        raise DataError(f"{source}: no rows; give a file with texts and labels")
    assert rows.labels is not None
    if rows.labels.null_count:
        bare = pc.is_null(rows.labels).to_numpy().nonzero()[0]
        raise DataError(
            f"{source}: {len(bare):,} of {len(rows):,} rows have no label in column {column!r} "
            f"(empty, null, NaN or infinite): {some(bare, rows.where)}. "
            "Label these rows or take them out"
        )


def label_names(rows: Rows, column: str, source: str) -> tuple[str, ...]:
    """All labels of the rows, sorted.

    Raises:
        DataError: too few or too many to be classes, or decimal numbers.
    """
    flat = pc.list_flatten(rows.labels) if rows.is_multi_label else rows.labels
    found = pc.unique(flat)
    if len(found) > MAX_CLASSES:
        raise DataError(
            f"{source}: {len(found):,} different labels in column {column!r}; at most "
            f"{MAX_CLASSES:,} classes can be told apart. Is data.label the right column?"
        )
    names = sorted(found.to_pylist())
    if _are_measurements(names):
        raise DataError(
            f"{source}: column {column!r} holds numbers such as {names[0]} and {names[-1]}, "
            "and classes are expected. Set data.task to regression, or make classes of them, for "
            "example low and high"
        )
    if rows.is_multi_label:
        _check_multi_label(names, rows, column, source)
    elif len(names) < 2:
        raise DataError(
            f"{source}: all {len(rows):,} rows have the label {names[0]!r} in column {column!r}; "
            "there is nothing to learn from one class. Add rows of another"
        )
    return tuple(names)


def _check_multi_label(names: list[str], rows: Rows, column: str, source: str) -> None:
    if not names:
        raise DataError(f"{source}: every list of labels in column {column!r} is empty")
    if len(names) * len(rows) > MAX_CELLS:
        raise DataError(
            f"{source}: {len(rows):,} rows with any of {len(names):,} labels need more than "
            f"{MAX_CELLS:,} bytes. Leave out rare labels, or give fewer rows"
        )


def check_choices(rows: Rows, column: str, source: str) -> int:
    """The most answers that a row has to choose from.

    Raises:
        DataError: a label is not the number of one of the row's answers.
    """
    assert rows.labels is not None and rows.pairs is not None
    counts = pc.list_value_length(rows.pairs).to_numpy()
    labels = [] if rows.is_multi_label else rows.labels.to_pylist()
    wrong = [
        row
        for row, (label, count) in enumerate(zip(labels, counts, strict=False))
        if label is None or not label.isdecimal() or int(label) >= count
    ]
    if rows.is_multi_label or wrong:
        place = some(wrong, rows.where) if wrong else rows.where(0)
        found = f"{labels[wrong[0]]!r}" if wrong else "a list"
        last = counts[wrong[0] if wrong else 0] - 1
        raise DataError(
            f"{source}: {place}: column {column!r} holds {found} where the number of the right "
            f"answer is due, 0 to {last}"
        )
    return int(counts.max())


def standardised(task: Task, labels: NDArray[np.generic], column: str, source: str) -> Task:
    """The task of regression with mean and spread of its training labels.

    Raises:
        DataError: all labels are alike.
    """
    values = labels.astype(np.float64)
    mean, std = float(values.mean()), float(values.std())
    if std <= 1e-9 * max(abs(mean), 1.0):
        raise DataError(
            f"{source}: all {len(values):,} training rows have the label {mean:g} in column "
            f"{column!r}; there is nothing to learn from one value"
        )
    return replace(task, mean=mean, std=std)


def _are_measurements(names: list[str]) -> bool:
    if len(names) <= _MANY_NUMBERS:
        return False
    try:
        return any(not float(name).is_integer() for name in names)
    except ValueError:
        return False


def label_numbers(
    rows: Rows, task: Task
) -> tuple[NDArray[np.generic], dict[str, NDArray[np.int64]]]:
    """Positions in `task.labels`, as Split.labels has them, and the rows of each other label.

    An unknown label is -1 in int64 [N], and nothing in bool [N, C]. Values stay as they are.
    """
    if task.kind == "regression":
        assert rows.labels is not None
        return np.asarray(rows.labels.to_numpy(), np.float64), {}
    if task.kind == "multiple_choice":
        assert rows.labels is not None
        return rows.labels.cast(pa.int64()).to_numpy(), {}
    if rows.is_multi_label:
        return _matrix(rows, task)
    numbers = _positions(rows.labels, task)
    return numbers, _by_name(rows.labels, numbers, np.arange(len(numbers)))


def _matrix(rows: Rows, task: Task) -> tuple[NDArray[np.bool_], dict[str, NDArray[np.int64]]]:
    assert rows.labels is not None
    lengths = pc.list_value_length(rows.labels).to_numpy()
    row_of_label = np.repeat(np.arange(len(rows)), lengths)
    flat = pc.list_flatten(rows.labels)
    numbers = _positions(flat, task)
    known = numbers >= 0
    labels = np.zeros((len(rows), len(task.labels)), bool)
    labels[row_of_label[known], numbers[known]] = True
    return labels, _by_name(flat, numbers, row_of_label)


def _positions(names: pa.ChunkedArray, task: Task) -> NDArray[np.int64]:
    found = pc.index_in(names, pa.array(task.labels, TEXT))
    return np.asarray(pc.fill_null(found, -1).to_numpy(), np.int64)


def _by_name(
    names: pa.ChunkedArray, numbers: NDArray[np.int64], rows: NDArray[np.int64]
) -> dict[str, NDArray[np.int64]]:
    """Of the labels without a number: the rows that have them."""
    unknown = np.flatnonzero(numbers < 0)
    if not len(unknown):
        return {}
    given = pc.take(names, pa.array(unknown)).to_pylist()
    result: dict[str, list[int]] = {}
    for name, row in zip(given, rows[unknown].tolist(), strict=True):
        result.setdefault(name, []).append(row)
    return {name: np.asarray(result[name]) for name in sorted(result)}
