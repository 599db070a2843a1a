"""From sources to splits: read, refuse what cannot be trained on, divide."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gpt2cls.config import DataConfig
from gpt2cls.data.keys import fingerprint, row_keys
from gpt2cls.data.labels import (
    check_choices,
    label_names,
    label_numbers,
    require_labels,
    standardised,
)
from gpt2cls.data.report import Problem
from gpt2cls.data.rows import Columns, Rows
from gpt2cls.data.sources import read_source
from gpt2cls.data.splitting import hold_out
from gpt2cls.data.tasks import VALUE, Split, Task, TaskKind
from gpt2cls.data.values import some
from gpt2cls.errors import DataError

FINGERPRINT_FORMAT = b"gpt2cls data 1"


@dataclass(frozen=True)
class Prepared:
    """Everything a job needs to know of its data, but for tokens."""

    task: Task
    train: Split
    validation: Split
    test: Split | None
    fingerprint: str
    """Of the texts and labels of all splits and their order."""
    unlabelled: Split | None = None
    """Training rows whose labels are not used; a language model learns from their texts."""
    notes: tuple[str, ...] = ()
    """Sentences on what was decided on the way."""
    problems: tuple[Problem, ...] = ()
    """What only the reading could see; the data report has them all."""

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that there are, by name."""
        named = {"train": self.train, "validation": self.validation}
        return named if self.test is None else named | {"test": self.test}


class LabelledColumns(Protocol):
    """The part of a configuration that names columns."""

    @property
    def text(self) -> str | tuple[str, str]: ...
    @property
    def label(self) -> str: ...
    @property
    def separator(self) -> str | None: ...
    @property
    def choices(self) -> str | None: ...


def prepare(config: DataConfig, *, base_dir: Path, seed: int) -> Prepared:
    """Read and divide the data of a job; the same call gives the same splits.

    The labels are those of the training source. Rows of another validation or test source
    whose label is none of these are left out, and the notes say how many. A test share is
    taken before the validation share, which is a share of what is left.

    Raises:
        DataError: unreadable, or senseless to train on: no rows, rows without a label, a
            single class, numbers in place of classes.
    """
    columns = columns_of(config)
    found = read_source(config.train, columns, base_dir=base_dir)
    rows = choose(found, "train", config.train)
    require_labels(rows, config.label, config.train)
    task = _task(rows, config)
    notes = _Notes()

    train = _split(rows, task)
    test, train = _test(config, found, train, task, base_dir, seed, notes)
    if isinstance(config.validation, str):
        validation = _other(config.validation, "validation", columns, task, base_dir, notes)
    else:
        validation, train = _divide(train, config.validation, "validation", task, (seed, 0))
        if "validation" in found:
            notes.add(
                f"{config.train} has its own validation split, which was not used: "
                f"set data.validation to {config.train} to use it"
            )
    unlabelled, train = _limit(train, config.labelled, task, seed)
    if task.kind == "regression":
        task = standardised(task, train.labels, config.label, config.train)
    splits = [split for split in (train, validation, test, unlabelled) if split is not None]
    name = _fingerprint(task, splits)
    return Prepared(task, train, validation, test, name, unlabelled, *notes.said())


def columns_of(config: DataConfig) -> Columns:
    """The columns that a data block names."""
    is_number = config.task == "regression"
    return Columns(config.text, config.label, config.separator, is_number, config.choices)


def _task(rows: Rows, config: DataConfig) -> Task:
    both_orders = config.pair == "both_orders"
    if config.task == "regression":
        return Task("regression", (VALUE,), _is_pair(rows), both_orders)
    if config.choices is not None:
        most = check_choices(rows, config.label, config.train)
        return Task("multiple_choice", tuple(map(str, range(most))), _is_pair(rows))
    names = label_names(rows, config.label, config.train)
    kind: TaskKind = "multi_label" if rows.is_multi_label else "single_label"
    return Task(kind, names, _is_pair(rows), both_orders)


def read_labelled(source: str, columns: LabelledColumns, task: Task, *, base_dir: Path) -> Split:
    """Rows to measure an existing model on; of several splits "test" is taken.

    Raises:
        DataError: as `prepare`, and also when a row has a label that the model does not know.
    """
    is_number = task.kind == "regression"
    wanted = Columns(columns.text, columns.label, columns.separator, is_number, columns.choices)
    rows = choose(read_source(source, wanted, base_dir=base_dir), "test", source)
    require_labels(rows, columns.label, source)
    _same_kind(rows, task, source)
    split, unknown = _known(rows, task)
    if unknown:
        raise DataError(
            f"{source}: labels that the model does not know: {'; '.join(unknown)}. It knows "
            f"{_listed(task.labels)}. Take these rows out, or name the labels alike"
        )
    return split


class _Notes:
    """What is decided while preparing."""

    def __init__(self) -> None:
        self._notes: list[str] = []
        self._problems: list[Problem] = []

    def add(self, note: str, problem: Problem | None = None) -> None:
        self._notes.append(note)
        if problem is not None:
            self._problems.append(problem)

    def said(self) -> tuple[tuple[str, ...], tuple[Problem, ...]]:
        return tuple(self._notes), tuple(self._problems)


def choose(found: dict[str, Rows], wanted: str, source: str) -> Rows:
    """The split `wanted`; a source with a single split means that one."""
    if wanted in found:
        return found[wanted]
    if len(found) == 1:
        return next(iter(found.values()))
    raise DataError(
        f"{source}: has no split {wanted!r} but {_listed(sorted(found))}; save the one meant to a "
        "file or folder of its own"
    )


def _test(
    config: DataConfig,
    found: dict[str, Rows],
    train: Split,
    task: Task,
    base_dir: Path,
    seed: int,
    notes: _Notes,
) -> tuple[Split | None, Split]:
    """The test split, and what is left of the training rows."""
    if isinstance(config.test, float):
        return _divide(train, config.test, "test", task, (seed, 1))
    if isinstance(config.test, str):
        return _other(config.test, "test", columns_of(config), task, base_dir, notes), train
    own = found.get("test")
    if own is None:
        notes.add("no test split: nothing was held out to measure the final model on")
        return None, train
    if own.labels is not None and own.labels.null_count == len(own):
        notes.add(f"no test split: that of {config.train} has no labels")
        return None, train
    require_labels(own, config.label, f"{config.train}, split test")
    return _checked(own, "test", config.train, task, notes), train


def _other(
    source: str, name: str, columns: Columns, task: Task, base_dir: Path, notes: _Notes
) -> Split:
    rows = choose(read_source(source, columns, base_dir=base_dir), name, source)
    require_labels(rows, columns.label or "", source)
    return _checked(rows, name, source, task, notes)


def _checked(rows: Rows, name: str, source: str, task: Task, notes: _Notes) -> Split:
    """The rows whose labels are all among the task's; the others are told of."""
    _same_kind(rows, task, source)
    split, unknown = _known(rows, task)
    if not len(split):
        raise DataError(
            f"{source}: none of its labels ({'; '.join(unknown)}) is in the training rows, which "
            f"have {_listed(task.labels)}"
        )
    if unknown:
        notes.add(
            f"{name}: {len(rows) - len(split):,} of {len(rows):,} rows left out; the training rows "
            "have no such label",
            Problem(kind=f"labels_only_in_{name}", count=len(unknown), examples=unknown[:3]),
        )
    return split


def _same_kind(rows: Rows, task: Task, source: str) -> None:
    if rows.is_multi_label != (task.kind == "multi_label"):
        here, there = (
            ("lists of labels", "one label")
            if rows.is_multi_label
            else ("one label", "lists of labels")
        )
        raise DataError(f"{source}: has {here} a row where the training rows have {there}")
    if _is_pair(rows) != task.is_pair:
        here, there = ("pairs", "single texts") if _is_pair(rows) else ("single texts", "pairs")
        raise DataError(f"{source}: has {here} where the training rows have {there}")
    if task.kind == "multiple_choice":
        most = check_choices(rows, "label", source)
        if most > len(task.labels):
            raise DataError(
                f"{source}: has rows with {most} answers, the training rows {len(task.labels)} at "
                "most; take them out, or train on rows with as many"
            )


def _known(rows: Rows, task: Task) -> tuple[Split, list[str]]:
    """The rows with known labels only, and a line on each label that is not known."""
    numbers, unknown = label_numbers(rows, task)
    split = Split(rows.texts, rows.pairs, numbers, None, rows.origin)
    if not unknown:
        return with_keys(split, task), []
    is_known = np.ones(len(rows), bool)
    lines = []
    for name, rows_with in unknown.items():
        is_known[rows_with] = False
        lines.append(f"{name!r} in {len(rows_with):,} rows ({some(rows_with[:1], rows.where)})")
    return with_keys(kept(split, is_known), task), lines


def _split(rows: Rows, task: Task) -> Split:
    numbers, unknown = label_numbers(rows, task)
    assert not unknown
    return with_keys(Split(rows.texts, rows.pairs, numbers, None, rows.origin), task)


def with_keys(split: Split, task: Task | None = None) -> Split:
    is_ordered = task is None or not task.both_orders
    return replace(split, keys=row_keys(split.texts, split.seconds, is_ordered=is_ordered))


def _divide(
    split: Split, share: float, name: str, task: Task, seed: tuple[int, int]
) -> tuple[Split, Split]:
    is_held = _held_out(split, share, task, seed)
    if not is_held.any():
        raise DataError(
            f"data.{name} = {share:g}: no row can be held out of {len(split):,}, because equal "
            f"texts stay together and every class needs a row in training. Give more rows, or a "
            f"source for data.{name}"
        )
    return kept(split, is_held), kept(split, ~is_held)


def _held_out(split: Split, share: float, task: Task, seed: tuple[int, int]) -> NDArray[np.bool_]:
    """Which rows are held out: of every class its share; of values, of all."""
    assert split.keys is not None
    # A context stays on one side, whatever the answers.
    keys = row_keys(split.texts) if task.kind == "multiple_choice" else split.keys
    is_valued = task.kind == "regression"
    labels = np.zeros(len(split), np.int64) if is_valued else split.labels
    return hold_out(keys, labels, share, seed=seed)


def _limit(train: Split, num_rows: int | None, task: Task, seed: int) -> tuple[Split | None, Split]:
    """The rows whose labels are not used, and those whose labels are."""
    if num_rows is None or num_rows >= len(train):
        return None, train
    is_used = _held_out(train, num_rows / len(train), task, (seed, 2))
    used, num_classes = kept(train, is_used), _num_classes(train.labels)
    if task.kind != "regression" and _num_classes(used.labels) < num_classes:
        raise DataError(
            f"data.labelled = {num_rows}: not every one of {num_classes} classes would have a row; "
            "raise it"
        )
    return kept(train, ~is_used), used


def _num_classes(labels: NDArray[Any]) -> int:
    return len(np.unique(labels)) if labels.ndim == 1 else int(labels.any(axis=0).sum())


def kept(split: Split, mask: NDArray[np.bool_]) -> Split:
    chosen = pa.array(mask)
    return Split(
        split.texts.filter(chosen),
        None if split.pairs is None else split.pairs.filter(chosen),
        split.labels[mask],
        None if split.keys is None else split.keys[mask],
        None if split.origin is None else split.origin.keep(mask),
    )


def _is_pair(rows: Rows) -> bool:
    return rows.pairs is not None


def _listed(names: Sequence[str], most: int = 10) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")


def _fingerprint(task: Task, splits: Sequence[Split]) -> str:
    parts: list[Any] = [FINGERPRINT_FORMAT, task.kind.encode()]
    parts += [name.encode("utf-8") for name in task.labels]
    for split in splits:
        parts += [split.keys, split.labels]
    return fingerprint(parts)
