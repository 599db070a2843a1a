"""Rows of a CSV, TSV, JSON, JSON Lines or Parquet file: the columns asked for, and no others."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gpt2cls.data.forms import BETWEEN
from gpt2cls.data.rows import Columns, Origin, Place, Rows
from gpt2cls.data.stream import MISSING, Chunk, read_chunks, table_format
from gpt2cls.data.values import (
    TEXT,
    TEXTS,
    Values,
    Where,
    choice_array,
    label_array,
    number_array,
    text_array,
)
from gpt2cls.errors import DataError


@dataclass
class Collected:
    """Columns of the rows read so far."""

    columns: Columns
    texts: list[list[pa.Array]] = field(default_factory=lambda: [[], []])
    labels: list[pa.Array] = field(default_factory=list)
    answers: list[pa.Array] = field(default_factory=list)

    def add(
        self,
        found: dict[str, Values],
        where: Where,
        *,
        class_names: Sequence[str] | None = None,
    ) -> None:
        for chunks, name in zip(self.texts, self.columns.texts, strict=False):
            chunks.append(text_array(found[name], name, where))
        if self.columns.choices is not None:
            name = self.columns.choices
            self.answers.append(choice_array(found[name], name, where))
        if self.columns.label is not None:
            name = self.columns.label
            if self.columns.is_number:
                self.labels.append(number_array(found[name], name, where))
                return
            self.labels.append(
                label_array(
                    found[name],
                    name,
                    where,
                    separator=self.columns.separator,
                    class_names=class_names,
                )
            )

    def rows(self, place: Place) -> Rows:
        texts, pairs = self._texts()
        return Rows(
            texts,
            pairs,
            None if self.columns.label is None else self._labels(place),
            Origin([place]),
        )

    def _texts(self) -> tuple[pa.ChunkedArray, pa.ChunkedArray | None]:
        texts = pa.chunked_array(self.texts[0], TEXT)
        second = pa.chunked_array(self.texts[1], TEXT) if len(self.columns.texts) == 2 else None
        if self.columns.choices is None:
            return texts, second
        if second is not None:
            between = pa.scalar(BETWEEN, TEXT)
            texts = pc.binary_join_element_wise(texts, second, between)
        return texts, pa.chunked_array(self.answers, TEXTS)

    def _labels(self, place: Place) -> pa.ChunkedArray:
        kinds = {chunk.type for chunk in self.labels if chunk.null_count < len(chunk)}
        if len(kinds) > 1:
            raise DataError(
                f"{place.name}: column {self.columns.label!r} holds one label in some rows and "
                "lists of labels in others; make every label a list"
            )
        kind = kinds.pop() if kinds else TEXT
        return pa.chunked_array([chunk.cast(kind) for chunk in self.labels], kind)


def read_table(path: Path, name: str, columns: Columns) -> Rows:
    """All rows of one file.

    Raises:
        DataError: the file is not what its ending says, or lacks a column.
    """
    collected = Collected(columns)
    lines = array("q")
    num_rows = 0
    for chunk in read_chunks(path):
        if num_rows == 0:
            check_columns(chunk.columns, columns, name, num_rows=len(chunk))
        if not len(chunk):
            continue
        found = {
            wanted: chunk.columns.get(wanted, [MISSING] * len(chunk)) for wanted in columns.wanted
        }
        collected.add(found, _where(chunk, name))
        lines.extend(chunk.places)
        num_rows += len(chunk)
    return collected.rows(Place(name, num_rows, _line_numbers(path, lines)))


def check_columns(present: Iterable[str], columns: Columns, name: str, *, num_rows: int) -> None:
    """Refuse a table without the columns asked for, naming those that it has.

    Raises:
        DataError: a column is missing.
    """
    names = list(present)
    if not names and not num_rows:
        return  # a JSON file without a row; that it has none is said elsewhere
    missing = [wanted for wanted in columns.wanted if wanted not in names]
    if missing:
        faults = " and ".join(_missing(wanted, names) for wanted in missing)
        hint = _hint(names)
        raise DataError(f"{name}: {faults}. Its columns: {_listed(names)}.{hint}")


def _missing(wanted: str, names: list[str]) -> str:
    trimmed = {name.strip().lower(): name for name in names}
    near = get_close_matches(wanted.strip().lower(), trimmed, n=1)
    return f"no column {wanted!r}" + (f" (did you mean {trimmed[near[0]]!r}?)" if near else "")


def _hint(names: list[str]) -> str:
    if len(names) != 1:
        return " Set data.text and data.label to what they are called here"
    for delimiter, called in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if delimiter in names[0]:
            return f" The columns seem to be separated by {called}; .csv means commas, .tsv tabs"
    return " Is the first line the header?"


def _listed(names: list[str], most: int = 20) -> str:
    shown = ", ".join(repr(name[:60]) for name in names[:most])
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")


def _where(chunk: Chunk, name: str) -> Where:
    after = ":" if chunk.before_place.endswith(":") else " row "
    return lambda row: f"{name}{after}{chunk.places[row]}"


def _line_numbers(path: Path, lines: "array[int]") -> np.ndarray | None:
    """Only text formats have lines; the rows of the others are simply counted."""
    kind, _ = table_format(path)
    return None if kind in ("json", "parquet") else np.frombuffer(lines, np.int64)
