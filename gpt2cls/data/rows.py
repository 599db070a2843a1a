"""Rows as they were read, and where each of them came from."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass(frozen=True)
class Columns:
    """Which columns hold the text (or the two texts of a pair) and the label."""

    text: str | tuple[str, str]
    label: str | None
    separator: str | None = None
    is_number: bool = False
    """The label is a number, not the name of a class."""

    choices: str | None = None
    """The column with lists of answers."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The text columns, one or two."""
        return (self.text,) if isinstance(self.text, str) else self.text

    @property
    def wanted(self) -> tuple[str, ...]:
        """Every column to read, the label last."""
        extra = (self.choices, self.label)
        return (*self.texts, *(name for name in extra if name is not None))


@dataclass(frozen=True)
class Place:
    """A file (or a split of a data set) and what tells its rows apart."""

    name: str
    num_rows: int
    lines: NDArray[np.int64] | None = None
    """The line on which each row begins; None: rows are counted from 1."""
    is_one_row: bool = False
    """The file as a whole is the row."""

    def where(self, row: int) -> str:
        if self.is_one_row:
            return self.name
        if self.lines is None:
            return f"{self.name} row {row + 1}"
        return f"{self.name}:{self.lines[row]}"


@dataclass(frozen=True)
class Origin:
    """Where the rows of one or more places, one after the other, came from."""

    places: Sequence[Place]
    kept: NDArray[np.int64] | None = None
    """The rows that are left, as numbers before anything was taken out; None: all."""

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *accumulate(place.num_rows for place in self.places)]

    def where(self, row: int) -> str:
        """For example "train.csv:17"."""
        number = row if self.kept is None else int(self.kept[row])
        index = bisect_right(self._starts, number) - 1
        return self.places[index].where(number - self._starts[index])

    def keep(self, mask: NDArray[np.bool_]) -> "Origin":
        """The origin of the rows where `mask` is true."""
        rows = np.flatnonzero(mask)
        return Origin(self.places, rows if self.kept is None else self.kept[rows])


@dataclass(frozen=True)
class Rows:
    """Everything that was read from one split of a source, in its order."""

    texts: pa.ChunkedArray
    """large_string, without nulls."""
    pairs: pa.ChunkedArray | None
    """The second texts; lists of texts: answers to choose from; None: the rows are not pairs."""
    labels: pa.ChunkedArray | None
    """large_string: one label a row; list of large_string: several; float64: a number; None: not
    asked for."""
    origin: Origin

    def __len__(self) -> int:
        return len(self.texts)

    def where(self, row: int) -> str:
        return self.origin.where(row)

    @property
    def is_multi_label(self) -> bool:
        return self.labels is not None and pa.types.is_list(self.labels.type)


def join_rows(parts: Sequence[Rows]) -> Rows:
    """The rows of all `parts`, which have the same columns, as one."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    return Rows(
        _joined([part.texts for part in parts]),
        None if first.pairs is None else _joined([part.pairs for part in parts]),
        None if first.labels is None else _joined([part.labels for part in parts]),
        Origin([place for part in parts for place in part.origin.places]),
    )


def _joined(columns: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray:
    return pa.chunked_array([c for col in columns for c in col.chunks], columns[0].type)
