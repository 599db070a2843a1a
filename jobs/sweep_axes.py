"""Where the values of one dimension of a search space stand on an axis from 0 to 1.

Numbers, logarithms, categories and "not set" (a dimension whose condition did not hold) are
placed alike, so that every picture draws every kind of dimension the same way.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jobs.page_tables import Document

ABSENT_PLACE = -0.16
"""Below the axis: the dimension did not apply to the trial."""
ABSENT = "not set"
MAX_CATEGORY_TICKS = 12
MAX_EXTRA_CATEGORIES = 6
"""A parameter that no space describes is a scale of numbers from this many values on."""
_RANGE = re.compile(r"^\s*(\S+) to (\S+)\s*$")


@dataclass(frozen=True)
class Axis:
    """One dimension: what its values are, and where each stands."""

    field: str
    scale: Literal["log", "linear", "category"]
    low: float = 0.0
    high: float = 0.0
    categories: tuple[str, ...] = ()
    has_absent: bool = False

    def place(self, params: Mapping[str, Any]) -> float:
        """Where a trial stands: 0 to 1, or ABSENT_PLACE."""
        if self.field not in params:
            return ABSENT_PLACE
        value = params[self.field]
        if self.scale == "category":
            return _part(self.categories.index(value_text(value)), 0, len(self.categories) - 1)
        return self._place_of(value)

    def _place_of(self, value: float) -> float:
        if self.scale == "log":
            return _part(math.log(value), math.log(self.low), math.log(self.high))
        return _part(value, self.low, self.high)

    def ticks(self) -> list[tuple[float, str]]:
        """(place, text) of the marks, lowest first; the mark for "not set" where it is needed."""
        marks = [(ABSENT_PLACE, ABSENT)] if self.has_absent else []
        if self.scale == "category":
            last = len(self.categories) - 1
            stride = -(-len(self.categories) // MAX_CATEGORY_TICKS)
            names = list(enumerate(self.categories))[::stride]
            return marks + [(_part(i, 0, last), name) for i, name in names]
        values = _log_marks(self.low, self.high) if self.scale == "log" else []
        values = values or _even_marks(self.low, self.high)
        return marks + [(self._place_of(value), value_text(value)) for value in values]

    def edge(self, params: Mapping[str, Any]) -> Literal["lower", "upper"] | None:
        """The end of the range that the value lies at, within 3% of the axis."""
        if self.scale == "category" or self.field not in params or self.low == self.high:
            return None
        place = self.place(params)
        return "lower" if place < 0.03 else "upper" if place > 0.97 else None


def axes_of(space: Sequence[Document], trials: Iterable[Mapping[str, Any]]) -> list[Axis]:
    """An axis for each dimension that some trial has a value of.

    Args:
        space: the dimensions as the sweep's document lists them.
        trials: the parameters of each trial. What they hold beyond the space gets an axis too,
            unless it is the same in all.
    """
    params = list(trials)
    described = {str(dimension.get("field")): dimension for dimension in space}
    found = dict.fromkeys((*described, *(field for one in params for field in one)))
    axes = []
    for field in found:
        values = [one[field] for one in params if field in one]
        has_absent = len(values) < len(params)
        is_constant = len({value_text(value) for value in values}) < 2 and not has_absent
        if values and (field in described or not is_constant):
            axes.append(_axis(field, described.get(field, {}), values, has_absent))
    return axes


def _axis(field: str, dimension: Document, values: list[Any], has_absent: bool) -> Axis:
    kind = str(dimension.get("kind") or "")
    if not all(_is_number(value) for value in values) or _is_category(kind, values):
        by_size = sorted(values, key=lambda v: (not _is_number(v), v if _is_number(v) else 0))
        names = [value_text(value) for value in by_size]
        return Axis(field, "category", categories=_unique(names), has_absent=has_absent)
    low, high = _range(str(dimension.get("range") or ""), values)
    is_log = low > 0 and ("log" in kind or (not kind and high / low >= 100))
    return Axis(field, "log" if is_log else "linear", low, high, has_absent=has_absent)


def _is_category(kind: str, values: list[Any]) -> bool:
    if kind:
        return "choice" in kind or "categor" in kind or "grid" in kind
    return len(set(values)) <= MAX_EXTRA_CATEGORIES


def _unique(names: list[str]) -> tuple[str, ...]:
    numbers = [name for name in names if re.match(r"^-?[\d.]", name)]
    texts = sorted(name for name in names if name not in set(numbers))
    return tuple(dict.fromkeys([*numbers, *texts]))


def _range(text: str, values: list[float]) -> tuple[float, float]:
    """The range of the space, widened where trials went beyond it."""
    bounds = []
    if match := _RANGE.match(text):
        try:
            bounds = [float(bound) for bound in match.groups()]
        except ValueError:
            bounds = []
    bounds = [bound for bound in bounds if math.isfinite(bound)]
    return min(*bounds, *values, values[0]), max(*bounds, *values, values[0])


def _part(value: float, low: float, high: float) -> float:
    return 0.5 if high == low else (value - low) / (high - low)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _log_marks(low: float, high: float) -> list[float]:
    """Powers of ten, with steps between them where there are few; empty within a narrow range."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    slack = 1e-9
    for steps in ((1,), (1, 3), (1, 2, 5)):
        marks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        inside = [m for m in marks if low * (1 - slack) <= m <= high * (1 + slack)]
        if len(inside) >= 3:
            return inside[:: -(-len(inside) // 6)]
    return []


def _even_marks(low: float, high: float) -> list[float]:
    if low == high:
        return [low]
    from matplotlib.ticker import MaxNLocator

    marks = [
        float(mark) for mark in MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    ]
    slack = 1e-9 * (high - low)
    return [mark for mark in marks if low - slack <= mark <= high + slack]


def value_text(value: Any) -> str:
    """A sampled value as it is shown: short, and the same for the same value."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return re.sub(r"e([+-])0*", lambda m: "e" + m[1].replace("+", ""), f"{value:.4g}")
    return json.dumps(value, ensure_ascii=False)
