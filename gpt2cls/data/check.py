"""What is known of the data before any training: counts, lengths, and what looks wrong."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gpt2cls.data.forms import sequences
from gpt2cls.data.prepare import Prepared, with_keys
from gpt2cls.data.report import DataReport, NumberReport, Problem, TokenReport
from gpt2cls.data.tasks import Split, Task, as_texts

RARE_ROWS = 10
"""With fewer training rows a class's own numbers say little, and it is seldom learned."""
BATCH_ROWS = 4096
EXAMPLES = 3
_LOOKS_MISSING = frozenset({"none", "null", "na", "n/a", "#n/a", "<na>", "-", "?", "unknown"})


class TokenLengths(Protocol):
    """What can say how many tokens texts have before anything is cut off."""

    def encode_lengths(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None
    ) -> NDArray[Any]: ...


def check(
    prepared: Prepared,
    *,
    encode: TokenLengths | None = None,
    full_lengths: Mapping[str, NDArray[Any]] | None = None,
    max_length: int,
) -> DataReport:
    """The data report.

    Args:
        prepared: the splits.
        encode: counts tokens; None: the report has no token lengths, unless they are given.
        full_lengths: for each split the tokens of each sequence, where they were counted before.
        max_length: tokens, from which on a text is cut off.
    """
    splits = prepared.splits
    lengths = dict(full_lengths or {})
    if encode is not None:
        lengths |= {
            name: _lengths(prepared.task, split, encode)
            for name, split in splits.items()
            if name not in lengths
        }
    return DataReport(
        rows=sum(len(split) for split in splits.values()),
        splits={name: len(split) for name, split in splits.items()},
        kind=prepared.task.kind,
        is_pair=prepared.task.is_pair,
        labels=_balance(prepared.task, splits),
        numbers=_numbers(prepared.task, splits),
        tokens={name: _tokens(lengths[name], max_length) for name in splits if name in lengths},
        max_length=max_length,
        fingerprint=prepared.fingerprint,
        notes=list(prepared.notes),
        problems=[*prepared.problems, *_problems(prepared.task, splits)],
    )


def _problems(task: Task, splits: dict[str, Split]) -> Iterator[Problem]:
    keys = {name: _keys(task, split) for name, split in splits.items()}
    yield from _empty_texts(splits)
    yield from _duplicates(splits, keys)
    yield from _overlaps(splits, keys)
    yield from _conflicts(splits, keys)
    yield from _class_problems(task, splits)


def _keys(task: Task, split: Split) -> NDArray[np.uint64]:
    keys = with_keys(split, task).keys if split.keys is None else split.keys
    assert keys is not None
    return keys


def _lengths(task: Task, split: Split, encode: TokenLengths) -> NDArray[Any]:
    parts = []
    for start in range(0, len(split), BATCH_ROWS):
        texts = split.texts.slice(start, BATCH_ROWS).to_pylist()
        pairs = None
        if split.pairs is not None:
            pairs = split.pairs.slice(start, BATCH_ROWS).to_pylist()
        read = sequences(texts, pairs, task)
        parts.append(np.asarray(encode.encode_lengths(read.texts, read.pairs)))
    return np.concatenate(parts)


def _tokens(lengths: NDArray[Any], max_length: int) -> TokenReport:
    p50, p95 = np.percentile(lengths, [50, 95])
    return TokenReport(
        mean=round(float(lengths.mean()), 2),
        p50=float(p50),
        p95=float(p95),
        max=int(lengths.max()),
        share_truncated=float((lengths > max_length).mean()),
    )


def _balance(task: Task, splits: dict[str, Split]) -> dict[str, dict[str, int]]:
    if task.kind == "regression":
        return {}
    counts = {name: _label_counts(split, task).tolist() for name, split in splits.items()}
    return {
        label: {name: counts[name][number] for name in splits}
        for number, label in enumerate(task.labels)
    }


def _numbers(task: Task, splits: dict[str, Split]) -> dict[str, NumberReport]:
    if task.kind != "regression":
        return {}
    return {
        name: NumberReport(
            mean=float(split.labels.mean()),
            std=float(split.labels.std()),
            min=float(split.labels.min()),
            max=float(split.labels.max()),
        )
        for name, split in splits.items()
    }


def _label_counts(split: Split, task: Task) -> NDArray[np.int64]:
    if task.kind == "multi_label":
        return np.asarray(split.labels.sum(axis=0), np.int64)
    return np.bincount(split.labels, minlength=len(task.labels))


def _empty_texts(splits: dict[str, Split]) -> Iterator[Problem]:
    count, examples = 0, []
    for split in splits.values():
        is_empty = _blank(split.texts)
        if split.pairs is not None:
            is_empty |= _blank(as_texts(split.pairs))
        rows = np.flatnonzero(is_empty)
        count += len(rows)
        examples += [split.where(int(row)) for row in rows[:EXAMPLES]]
    if count:
        yield Problem(kind="empty_texts", count=count, examples=examples[:EXAMPLES])


def _blank(texts: pa.ChunkedArray) -> NDArray[np.bool_]:
    blank = pc.equal(pc.utf8_trim_whitespace(texts), "")
    return np.array(blank.to_numpy(), bool)


def _duplicates(splits: dict[str, Split], keys: dict[str, NDArray[np.uint64]]) -> Iterator[Problem]:
    """Rows that say again what an earlier row of the same split says."""
    count, examples = 0, []
    for name, split in splits.items():
        unique, first = np.unique(keys[name], return_index=True)
        is_again = np.ones(len(split), bool)
        is_again[first] = False
        rows = np.flatnonzero(is_again)
        count += len(rows)
        firsts = first[np.searchsorted(unique, keys[name][rows[:EXAMPLES]])]
        examples += [
            f"{_row(split, int(row))} is also at {split.where(int(earlier))}"
            for row, earlier in zip(rows[:EXAMPLES], firsts, strict=True)
        ]
    if count:
        yield Problem(kind="duplicates", count=count, examples=examples[:EXAMPLES])


def _overlaps(splits: dict[str, Split], keys: dict[str, NDArray[np.uint64]]) -> Iterator[Problem]:
    """Rows to measure with that were also trained on."""
    for name in list(splits)[1:]:
        rows = np.flatnonzero(np.isin(keys[name], keys["train"]))
        if len(rows):
            examples = [_row(splits[name], int(row)) for row in rows[:EXAMPLES]]
            yield Problem(kind=f"train_{name}_overlap", count=len(rows), examples=examples)


def _conflicts(splits: dict[str, Split], keys: dict[str, NDArray[np.uint64]]) -> Iterator[Problem]:
    """Texts that have one label here and another there."""
    all_keys = np.concatenate(list(keys.values()))
    codes = np.concatenate([_label_codes(split.labels) for split in splits.values()])
    order = np.lexsort((codes, all_keys))
    same_text = all_keys[order][1:] == all_keys[order][:-1]
    other_label = codes[order][1:] != codes[order][:-1]
    at = np.flatnonzero(same_text & other_label)
    if not len(at):
        return
    _, first = np.unique(all_keys[order][at], return_index=True)
    examples = [
        f"{_located(splits, int(order[i]), with_text=True)} and "
        f"{_located(splits, int(order[i + 1]), with_text=False)}"
        for i in at[np.sort(first)[:EXAMPLES]]
    ]
    yield Problem(kind="conflicting_labels", count=len(first), examples=examples)


def _label_codes(labels: NDArray[Any]) -> NDArray[np.uint64]:
    """One number per set of labels."""
    if labels.dtype.kind == "f":
        return labels.astype(np.float64).view(np.uint64)
    if labels.ndim == 1:
        return labels.astype(np.uint64)
    weights = np.random.default_rng(0).integers(1, 2**63, labels.shape[1], np.uint64)
    codes = np.zeros(len(labels), np.uint64)
    for column, weight in zip(labels.T, weights, strict=True):
        codes[column] += weight  # wraps; a product with the matrix would copy it eightfold
    return codes


def _located(splits: dict[str, Split], row: int, *, with_text: bool) -> str:
    for split in splits.values():
        if row < len(split):
            return _row(split, row) if with_text else split.where(row)
        row -= len(split)
    raise AssertionError("a row beyond the last split")


def _row(split: Split, row: int) -> str:
    """Where a row is and how it begins, on one line."""
    start = " ".join(split.texts[row].as_py()[:200].split())
    shown = start if len(start) <= 60 else start[:57] + "..."
    return f"{split.where(row)} {shown!r}"


def _class_problems(task: Task, splits: dict[str, Split]) -> Iterator[Problem]:
    if task.kind == "regression":
        return
    counts = {name: _label_counts(split, task) for name, split in splits.items()}
    train_C = counts["train"]
    yield from _named_classes(
        "rare_classes",
        [
            f"{task.labels[c]!r}: {train_C[c]} rows in train"
            for c in np.argsort(train_C, kind="stable")
            if train_C[c] < RARE_ROWS
        ],
    )
    for name in list(splits)[1:]:
        absent = [repr(task.labels[c]) for c in np.flatnonzero(counts[name] == 0)]
        yield from _named_classes(f"classes_not_in_{name}", absent)
    yield from _named_classes("labels_alike", _alike(task.labels))
    odd = [repr(label) for label in task.labels if label.strip().lower() in _LOOKS_MISSING]
    yield from _named_classes("labels_that_look_missing", odd)


def _named_classes(kind: str, lines: Sequence[str]) -> Iterator[Problem]:
    if lines:
        yield Problem(kind=kind, count=len(lines), examples=list(lines[:EXAMPLES]))


def _alike(labels: Sequence[str]) -> list[str]:
    """Labels that differ only in case and blanks."""
    by_form: dict[str, list[str]] = {}
    for label in labels:
        by_form.setdefault("".join(label.split()).casefold(), []).append(repr(label))
    return [" and ".join(names) for names in by_form.values() if len(names) > 1]
