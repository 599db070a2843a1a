"""What a row is: its label, its texts; and the rows of a split as numbers."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from gpt2cls.errors import DataError

if TYPE_CHECKING:  # the model needs Task and no pyarrow
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from gpt2cls.data.rows import Origin

TaskKind = Literal["single_label", "multi_label", "regression", "multiple_choice"]
KINDS: tuple[TaskKind, ...] = get_args(TaskKind)
VALUE = "value"


@dataclass(frozen=True)
class Task:
    """What is predicted."""

    kind: TaskKind
    labels: tuple[str, ...]
    """Class names, sorted; a label's number is its position. Regression has one, `value`; multiple
    choice the numbers of as many answers as a row may have."""
    is_pair: bool
    both_orders: bool = False
    """A pair has no order: the model reads it in both."""
    mean: float = 0.0
    std: float = 1.0
    """Of the training labels of regression: the network learns how far a label is from the mean."""

    @property
    def output_columns(self) -> tuple[str, ...]:
        """The columns of a prediction; all but `label` hold numbers."""
        if self.kind == "regression":
            return (VALUE,)
        return ("label", "score", *(f"p_{name}" for name in self.labels))

    @property
    def num_sequences(self) -> int:
        """Sequences of tokens that stand for a row, at most."""
        if self.kind == "multiple_choice":
            return len(self.labels)
        return 2 if self.both_orders else 1

    def to_json(self) -> dict[str, Any]:
        plain = {"kind": self.kind, "labels": list(self.labels), "is_pair": self.is_pair}
        # What is as it always was is not said, so that older folders and newer ones are alike.
        more = {name: getattr(self, name) for name in _MORE_FIELDS}
        return plain | {name: more[name] for name in more if more[name] != _MORE_FIELDS[name]}

    @classmethod
    def from_json(cls, document: Any) -> "Task":
        """The task that `to_json` wrote.

        Raises:
            DataError: the document is something else.
        """
        fault = _fault_of(document)
        if fault:
            raise DataError(f"the description of a task {fault}; it was not written by gpt2cls")
        return cls(**document | {"labels": tuple(document["labels"])})


_FIELDS = frozenset({"kind", "labels", "is_pair"})
_MORE_FIELDS: dict[str, Any] = {"both_orders": False, "mean": 0.0, "std": 1.0}


def _fault_of(document: Any) -> str | None:
    if not isinstance(document, dict) or not _FIELDS <= set(document) <= _FIELDS | set(
        _MORE_FIELDS
    ):
        return "does not have exactly the fields kind, labels and is_pair"
    if document["kind"] not in KINDS:
        return f"has kind = {document['kind']!r}, which is none of {', '.join(KINDS)}"
    if not isinstance(document["is_pair"], bool):
        return f"has is_pair = {document['is_pair']!r}, which is neither true nor false"
    both_orders = document.get("both_orders", False)
    if not isinstance(both_orders, bool) or both_orders > document["is_pair"]:
        return f"has both_orders = {both_orders!r}, which only a pair can have"
    numbers = [document.get("mean", 0.0), document.get("std", 1.0)]
    if not all(isinstance(n, float | int) and math.isfinite(n) for n in numbers) or numbers[1] <= 0:
        return f"has mean and std = {numbers}, which no labels have"
    labels = document["labels"]
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        return "has labels that are not a list of names"
    if len(set(labels)) != len(labels) or not labels:
        return "has no labels, or one of them twice"
    return None


@dataclass(frozen=True)
class Split:
    """Rows to train on or to measure with; row i has texts[i], pairs[i] and labels[i].

    Where there are answers to choose from, pairs[i] is the list of them.
    """

    texts: "pa.ChunkedArray"
    pairs: "pa.ChunkedArray | None"
    labels: "NDArray[Any]"
    """int64 [N] numbers of Task.labels; bool [N, C] when rows have several; float64 [N] values of
    regression."""
    keys: "NDArray[np.uint64] | None" = None
    """A hash of each row's texts; equal for equal texts."""
    origin: "Origin | None" = None

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def seconds(self) -> "pa.ChunkedArray | None":
        """The second texts; where they are answers to choose from, those of a row as one text."""
        return None if self.pairs is None else as_texts(self.pairs)

    def where(self, row: int) -> str:
        """For example "train.csv:17"."""
        return f"row {row + 1}" if self.origin is None else self.origin.where(row)


def as_texts(column: "pa.ChunkedArray") -> "pa.ChunkedArray":
    """A column of texts as it is; of lists of texts, one text for each."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_list(column.type):
        return column
    parts = [pc.binary_join(chunk, pa.scalar("\n", pa.large_string())) for chunk in column.chunks]
    return pa.chunked_array(parts, pa.large_string())


def joined(first: Split, second: Split) -> Split:
    """The rows of both splits; where a row came from is forgotten."""
    import numpy as np
    import pyarrow as pa

    def chained(a: "pa.ChunkedArray", b: "pa.ChunkedArray") -> "pa.ChunkedArray":
        return pa.chunked_array([*a.chunks, *b.chunks], type=a.type)

    has_pairs = first.pairs is not None and second.pairs is not None
    has_keys = first.keys is not None and second.keys is not None
    return Split(
        chained(first.texts, second.texts),
        chained(first.pairs, second.pairs) if has_pairs else None,
        np.concatenate([first.labels, second.labels]),
        np.concatenate([first.keys, second.keys]) if has_keys else None,
    )
