"""Which fields of a job vary together: points of it, drawn or walked, and how many there are.

A point is a plain mapping of field -> value. A dimension whose condition does not hold is absent
from the point; the job keeps its own value there, and conditions of others read that value.
"""

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

from tune_spaces.dimension import Dimension, same

Point = dict[str, Any]
"""Field -> value, of the dimensions that vary there, in the order of the space."""


class Random(Protocol):
    """`random.Random`, and the generators of numpy."""

    def random(self) -> float: ...


@dataclass(frozen=True)
class Space(Mapping[str, Dimension]):
    """Fields that vary, in the order in which they were given. Conditions go in no circle."""

    dimensions: tuple[Dimension, ...]

    def __getitem__(self, field: str) -> Dimension:
        for dimension in self.dimensions:
            if dimension.field == field:
                return dimension
        raise KeyError(field)

    def __iter__(self) -> Iterator[str]:
        return (dimension.field for dimension in self.dimensions)

    def __len__(self) -> int:
        return len(self.dimensions)

    @cached_property
    def in_order(self) -> tuple[Dimension, ...]:
        """Every dimension after those that its conditions ask about."""
        placed: dict[str, Dimension] = {}

        def place(dimension: Dimension) -> None:
            for field, _ in dimension.when:
                if field in self and field not in placed:
                    place(self[field])
            placed.setdefault(dimension.field, dimension)

        for dimension in self.dimensions:
            place(dimension)
        return tuple(placed.values())

    def draw(self, rng: Random, fixed: Mapping[str, Any], given: Mapping[str, Any] = {}) -> Point:
        """One point.

        Args:
            rng: gives one number per dimension, whether it varies here or not, so that a
                condition more or less leaves the draws of the others as they were.
            fixed: the values that the job's fields have outside the space.
            given: values that are not drawn.
        """
        shares = {field: rng.random() for field in self}

        def choose(dimension: Dimension) -> Any:
            return given.get(dimension.field, dimension.drawn(shares[dimension.field]))

        point: Point = {}
        for dimension in self.in_order:
            if is_active(dimension, point, fixed):
                point[dimension.field] = choose(dimension)
        return self.sorted(point)

    def draws(self, rng: Random, fixed: Mapping[str, Any]) -> Iterator[Point]:
        """Points without end: the grid dimensions walked round and round, the others drawn."""
        grids = [dimension for dimension in self.dimensions if dimension.kind == "grid"]
        names = [dimension.field for dimension in grids]
        while True:
            for values in itertools.product(*(dimension.values for dimension in grids)):
                yield self.draw(rng, fixed, dict(zip(names, values, strict=True)))

    def points(self, fixed: Mapping[str, Any]) -> Iterator[Point]:
        """Every point, the last dimension changing fastest; only for a countable space."""
        order = self.in_order

        def walk(at: int, point: Point) -> Iterator[Point]:
            if at == len(order):
                yield self.sorted(point)
                return
            dimension = order[at]
            if not is_active(dimension, point, fixed):
                yield from walk(at + 1, point)
                return
            if dimension.size is None:
                raise ValueError(f"{dimension.field} = {dimension.kind}: has no countable values")
            for index in range(dimension.size):
                yield from walk(at + 1, {**point, dimension.field: dimension.at(index)})

        yield from walk(0, {})

    def num_points(self, fixed: Mapping[str, Any]) -> int | None:
        """How many points there are, without walking them; None: more than can be counted."""
        order, asked = self.in_order, self.asked

        def count(at: int, point: Point) -> int | None:
            if at == len(order):
                return 1
            dimension = order[at]
            if not is_active(dimension, point, fixed):
                return count(at + 1, point)
            if dimension.size is None:
                return None
            # Values that no condition asks about all go on alike: one stands for them.
            named = [value for value in asked.get(dimension.field, ()) if dimension.holds(value)]
            parts = [(1, value) for value in named]
            if dimension.size > len(named):
                parts.append((dimension.size - len(named), _ANY_OTHER))
            total = 0
            for times, value in parts:
                after = count(at + 1, {**point, dimension.field: value})
                if after is None:
                    return None
                total += times * after
            return total

        return count(0, {})

    @cached_property
    def asked(self) -> dict[str, list[Any]]:
        """The values, each once, that conditions name, by the field they ask about."""
        asked: dict[str, list[Any]] = {}
        for dimension in self.dimensions:
            for field, values in dimension.when:
                known = asked.setdefault(field, [])
                known.extend(v for v in values if not any(same(v, other) for other in known))
        return asked

    def reachable(self, fixed: Mapping[str, Any]) -> frozenset[str]:
        """The fields that vary somewhere in the space, given the job's own values."""
        found: set[str] = set()
        for dimension in self.in_order:
            if all(self._may_hold(field, values, found, fixed) for field, values in dimension.when):
                found.add(dimension.field)
        return frozenset(found)

    def _may_hold(
        self, field: str, values: tuple[Any, ...], found: set[str], fixed: Mapping[str, Any]
    ) -> bool:
        if field in found and any(self[field].holds(value) for value in values):
            return True
        own = field in fixed and any(same(fixed[field], value) for value in values)
        always_varies = field in found and not self[field].when
        return own and not always_varies

    def within(self, fixed: Mapping[str, Any]) -> "Space":
        """The same points without what this job settles already.

        Fields that never vary are gone, and so are conditions that always hold.
        """
        reachable = self.reachable(fixed)
        return Space(
            tuple(
                replace(d, when=tuple(c for c in d.when if c[0] in reachable))
                for d in self.dimensions
                if d.field in reachable
            )
        )

    def extremes(self, fixed: Mapping[str, Any]) -> Iterator[Point]:
        """Points at the ends: each end of each dimension, the others at their first value."""
        seen: set[str] = set()
        for dimension in self.dimensions:
            for value in dimension.ends():
                forced = {**self._leading_to(dimension), dimension.field: value}
                point: Point = {}
                for other in self.in_order:
                    if is_active(other, point, fixed):
                        point[other.field] = forced.get(other.field, other.ends()[0])
                key = json.dumps(self.sorted(point))
                if key not in seen:
                    seen.add(key)
                    yield self.sorted(point)

    def _leading_to(self, dimension: Dimension) -> Point:
        """Values of other dimensions with which this one varies."""
        forced: Point = {}
        for field, values in dimension.when:
            if field in self:
                forced |= self._leading_to(self[field])
                forced[field] = values[0]
        return forced

    def is_point(self, point: Mapping[str, Any], fixed: Mapping[str, Any]) -> bool:
        """Whether the point could have been drawn from this space."""
        active = {d.field for d in self.dimensions if is_active(d, point, fixed)}
        return active == set(point) and all(self[f].holds(value) for f, value in point.items())

    def tidy(self, point: Mapping[str, Any]) -> Point:
        """A point that another library drew, with the nearest values of this space."""
        return self.sorted({f: self[f].tidy(value) for f, value in point.items() if f in self})

    def sorted(self, point: Mapping[str, Any]) -> Point:
        """The point in the order of the space."""
        return {field: point[field] for field in self if field in point}

    def table(self) -> list[dict[str, str]]:
        """A row of texts for every dimension: field, kind, range, step, when, why."""
        return [_row(dimension) for dimension in self.dimensions]


_ANY_OTHER = object()
"""Stands for a value that no condition names."""


def is_active(dimension: Dimension, point: Mapping[str, Any], fixed: Mapping[str, Any]) -> bool:
    """Whether the field varies at this point: every condition holds in the job of the point."""
    for field, values in dimension.when:
        if field not in point and field not in fixed:
            return False
        value = point[field] if field in point else fixed[field]
        if not any(same(value, allowed) for allowed in values):
            return False
    return True


def _row(dimension: Dimension) -> dict[str, str]:
    if dimension.values:
        span = ", ".join(_text(value) for value in dimension.values)
    else:
        span = f"{_text(dimension.low)} to {_text(dimension.high)}"
    conditions = [
        f"{field} = {' or '.join(_text(value) for value in values)}"
        for field, values in dimension.when
    ]
    log = " (log)" if dimension.kind == "integer" and dimension.log else ""
    return {
        "field": dimension.field,
        "kind": f"{dimension.kind}{log}",
        "range": span,
        "step": "" if dimension.step is None else _text(dimension.step),
        "when": " and ".join(conditions),
        "why": dimension.why,
    }


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
