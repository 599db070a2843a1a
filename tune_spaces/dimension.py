"""One field that varies: which values it takes, and when it varies at all."""

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

RANGES = ("uniform", "log_uniform", "integer")
LISTS = ("choice", "grid")
KINDS = (*RANGES, *LISTS)

Condition = tuple[str, tuple[Any, ...]]
"""A field of the job, and the values of it with which a dimension varies."""


@dataclass(frozen=True)
class Dimension:
    """The values of one field of the job file."""

    field: str
    """As in the job file: train.lr."""
    kind: str
    """One of KINDS."""
    low: float = 0
    high: float = 0
    """Of a range; both ends belong to it. Whole numbers if the kind is integer."""
    step: float | None = None
    """Between the values of a range, counted from `low`; None: every number, or whole number."""
    log: bool = False
    """Whether each order of magnitude gets the same share of the draws."""
    values: tuple[Any, ...] = ()
    """Of a list."""
    when: tuple[Condition, ...] = ()
    """All must hold for the field to vary; otherwise it stays as the job file has it."""
    why: str = ""

    @property
    def spacing(self) -> float | None:
        """Between neighbouring values; None: there is no next number."""
        return self.step or (1 if self.kind == "integer" else None)

    @property
    def size(self) -> int | None:
        """How many values there are; None: more than can be counted."""
        if self.kind in LISTS:
            return len(self.values)
        if self.spacing is None:
            return None
        return int((_exact(self.high) - _exact(self.low)) // _exact(self.spacing)) + 1

    def at(self, index: int) -> Any:
        """The value of that number, counted from 0, without the dust of binary fractions."""
        if self.kind in LISTS:
            return self.values[index]
        assert self.spacing is not None, "an uncountable dimension has no value of a number"
        value = _exact(self.low) + index * _exact(self.spacing)
        return int(value) if self.kind == "integer" else float(value)

    def drawn(self, share: float) -> Any:
        """The value that lies at a share, from 0 to below 1, of all draws."""
        if self.log:
            # An integer owns the numbers up to the next one, so that the last has its share too.
            end = self.high + 1 if self.kind == "integer" else self.high
            log_low = math.log(self.low)
            value = math.exp(log_low + share * (math.log(end) - log_low))
            value = math.floor(value) if self.kind == "integer" else value
            return self.tidy(min(max(value, self.low), self.high))
        if self.size is not None:
            return self.at(min(int(share * self.size), self.size - 1))
        # In two parts: high - low can be more than a float holds.
        return min(max(self.low * (1 - share) + self.high * share, self.low), self.high)

    def tidy(self, value: Any) -> Any:
        """The nearest value of this dimension, as plain JSON; for numbers that others drew."""
        if self.kind in LISTS:
            return next((own for own in self.values if same(own, value)), value)
        value = int(value) if self.kind == "integer" else float(value)  # numpy has its own
        if self.spacing is None or self.size is None:
            return min(max(value, self.low), self.high)
        index = round((_exact(value) - _exact(self.low)) / _exact(self.spacing))
        return self.at(min(max(index, 0), self.size - 1))

    def holds(self, value: Any) -> bool:
        """Whether it takes exactly this value."""
        if self.kind in LISTS:
            return any(same(own, value) for own in self.values)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return self.low <= value <= self.high and bool(same(self.tidy(value), value))

    def ends(self) -> tuple[Any, ...]:
        """The values to try before any other: all of a list, both ends of a range."""
        if self.kind in LISTS:
            return self.values
        if self.size is not None:
            return self.at(0), self.at(self.size - 1)
        return self.low, self.high


def same(one: Any, other: Any) -> bool:
    """Whether two values of a job file mean the same; true is not 1."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _exact(number: float) -> Decimal:
    return Decimal(repr(number))
