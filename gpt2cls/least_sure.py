"""The rows of a file that a model is least sure of, for a person to label."""

import heapq
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2cls.data.stream import MISSING

LABEL, PREDICTED, CONFIDENCE = "label", "predicted", "confidence"


class LeastSure:
    """Takes the chunks of a file one after the other; holds no more rows than are wanted."""

    def __init__(self, *, below: float, most: int) -> None:
        self.below, self.most = below, most
        self.num_below = 0
        """Rows with a lower confidence than `below`, so far."""
        self._names: dict[str, None] = {}
        # The surest of those held comes first. Row numbers differ, so no rows are compared.
        self._held: list[tuple[float, int, str, dict[str, Any]]] = []

    def add(
        self,
        columns: Mapping[str, Sequence[Any]],
        predicted: Sequence[str],
        confidence_N: NDArray[np.floating[Any]],
        first_row: int,
    ) -> None:
        """Look at a chunk that begins with row `first_row` of the file."""
        self._names |= dict.fromkeys(columns)
        unsure = np.flatnonzero(confidence_N < self.below)
        self.num_below += len(unsure)
        # The least sure ones first: what comes after one that is not wanted is not wanted either.
        for row in unsure[np.argsort(confidence_N[unsure], kind="stable")].tolist():
            key = (-float(confidence_N[row]), -(first_row + row))
            if len(self._held) == self.most and key < self._held[0][:2]:
                break
            values = {name: _plain(column[row]) for name, column in columns.items()}
            entry = (*key, predicted[row], values)
            if len(self._held) < self.most:
                heapq.heappush(self._held, entry)
            else:
                heapq.heappushpop(self._held, entry)

    def table(self) -> tuple[dict[str, Sequence[Any]], int]:
        """The columns of the file, then an empty label, the predicted one and how sure that is.

        The least sure rows come first. A column of the file that has one of these names is kept as
        `input_<name>`.
        """
        rows = sorted(self._held, reverse=True)
        kept = {name: [row[3].get(name, MISSING) for row in rows] for name in self._names}
        found: dict[str, Any] = {
            LABEL: [None] * len(rows),
            PREDICTED: [row[2] for row in rows],
            CONFIDENCE: np.array([-row[0] for row in rows], np.float64),
        }
        return joined(kept, found), len(rows)


def joined(
    columns: Mapping[str, Sequence[Any]], found: Mapping[str, Sequence[Any]]
) -> dict[str, Sequence[Any]]:
    """The columns of a file, then those that were found for its rows, under names that differ."""
    taken = {*columns, *found}
    whole: dict[str, Sequence[Any]] = {}
    for name, column in columns.items():
        kept_as = name
        while kept_as in found or (kept_as != name and kept_as in taken):
            kept_as = f"input_{kept_as}"
        taken.add(kept_as)
        whole[kept_as] = column
    return whole | dict(found)


def _plain(value: Any) -> Any:
    return value.as_py() if hasattr(value, "as_py") else value
