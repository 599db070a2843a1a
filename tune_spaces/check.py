"""From what a job file says to a space: every fault of it at once, before anything starts."""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tune_spaces.dimension import KINDS, LISTS, RANGES, Condition, Dimension, same
from tune_spaces.fields import FIELDS, UnfitError, as_field, likely_field, takes
from tune_spaces.space import Space

OPTIONS = ("step", "log", "when", "why")
MAX_VALUES_OF_A_LIST = 256
MAX_STEPS = 10**12
MAX_CASES = 10_000
"""Combinations of values that conditions tell apart: each is looked at when points are counted."""

SPACE_WORDS = "a mapping of fields such as train.lr to what they may be"
DIMENSION_WORDS = (
    "one of uniform: [low, high], log_uniform: [low, high], integer: [low, high], "
    "choice: [value, ...], grid: [value, ...]"
)
_VARY = "a space may vary data.max_length and the fields of model and train"

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class SpaceFault:
    """One thing that is wrong with a space."""

    path: Path
    """Where, from the top of the space."""
    value: Any
    allowed: str | None
    """What it must be; None: what the job file's `like` takes."""
    like: str | None = None
    message: str | None = None
    """The whole sentence after the place, if it is not 'must be' and `allowed`."""


class SpaceError(ValueError):
    """A space has faults."""

    def __init__(self, faults: Sequence[SpaceFault]) -> None:
        super().__init__(list(faults))  # so that pickle can rebuild it
        self.faults = list(faults)

    def __str__(self) -> str:
        return "\n".join(
            f"{'.'.join(map(str, f.path)) or 'space'} = {f.value!r}: "
            + (f.message or f"must be {f.allowed or f'what {f.like} takes'}")
            for f in self.faults
        )


def checked_space(given: Mapping[str, Any]) -> Space:
    """The space of a mapping from fields to dimensions.

    Raises:
        SpaceError: all of its faults at once.
    """
    if not given:
        words = f"{SPACE_WORDS}, with at least one"
        raise SpaceError([SpaceFault((), dict(given), words)])
    faults: list[SpaceFault] = []
    dimensions = []
    for name, spec in given.items():
        reading = _Reading(str(name), spec)
        dimension = reading.dimension()
        faults.extend(reading.faults)
        if dimension is not None:
            dimensions.append(dimension)
    space = Space(tuple(dimensions))
    faults.extend(_condition_faults(space))
    if faults:
        raise SpaceError(faults)
    return space


@dataclass
class _Reading:
    """One dimension as it is read, with the faults found on the way."""

    name: str
    spec: Any
    faults: list[SpaceFault] = field(default_factory=list)

    def fault(self, at: Path, value: Any, allowed: str | None, message: str | None = None) -> None:
        like = self.name if allowed is None else None
        self.faults.append(SpaceFault((self.name, *at), value, allowed, like, message))

    def dimension(self) -> Dimension | None:
        """The dimension; None: a fault was found in it."""
        if self.name not in FIELDS:
            self.fault((), self.spec, ", ".join(FIELDS), unknown_words(self.name))
            return None
        if not isinstance(self.spec, Mapping):
            self.fault((), self.spec, DIMENSION_WORDS)
            return None
        when = self._when()
        kind = self._kind()
        parts: dict[str, Any] | None = None
        if kind in LISTS:
            parts = self._list(kind)
        elif kind in RANGES:
            parts = self._range(kind)
        why = self.spec.get("why", "")
        if not isinstance(why, str):
            self.fault(("why",), why, "text")
        if self.faults or parts is None or kind is None:
            return None
        return Dimension(self.name, kind, when=when, why=why, **parts)

    def _kind(self) -> str | None:
        kinds = [key for key in self.spec if key in KINDS]
        unknown = [str(key) for key in self.spec if key not in KINDS and key not in OPTIONS]
        for key in unknown:
            near = difflib.get_close_matches(key, (*KINDS, *OPTIONS), n=1)
            way_out = f"did you mean '{near[0]}'?" if near else f"write {DIMENSION_WORDS}"
            words = f"no such kind of dimension; {way_out}"
            self.fault((key,), self.spec[key], DIMENSION_WORDS, words)
        if len(kinds) > 1:
            both = " and ".join(kinds)
            words = f"has {both}; keep one of them"
            self.fault((), dict(self.spec), DIMENSION_WORDS, words)
            return None
        if not kinds and not unknown:
            self.fault((), dict(self.spec), DIMENSION_WORDS)
        return kinds[0] if kinds else None

    def _list(self, kind: str) -> dict[str, Any] | None:
        for key in ("step", "log"):
            if key in self.spec:
                words = f"left out: {kind} lists its values"
                self.fault((key,), self.spec[key], words)
        values = self.spec[kind]
        if not isinstance(values, list | tuple) or not values:
            self.fault((kind,), values, "a list of at least one value")
            return None
        if len(values) > MAX_VALUES_OF_A_LIST:
            words = f"a list of at most {MAX_VALUES_OF_A_LIST:,} values, not {len(values):,}"
            self.fault((kind,), list(values), words)
            return None
        found: list[Any] = []
        for i, value in enumerate(values):
            try:
                fit = as_field(self.name, value)
            except UnfitError:
                self.fault((kind, i), value, None)
                continue
            if any(same(fit, other) for other in found):
                self.fault((kind, i), value, "a value that is not in the list already")
            found.append(fit)
        return {"values": tuple(found)}

    def _range(self, kind: str) -> dict[str, Any] | None:
        bounds = self.spec[kind]
        type_words = "whole numbers" if kind == "integer" else "numbers"
        words = f"a list of two {type_words}, [low, high] with low below high"
        if not isinstance(bounds, list | tuple) or len(bounds) != 2:
            self.fault((kind,), bounds, words)
            return None
        right = [_is_whole(bound) if kind == "integer" else _is_number(bound) for bound in bounds]
        for i, bound in enumerate(bounds):
            if not right[i]:
                one = "a whole number" if kind == "integer" else "a finite number"
                self.fault((kind, i), bound, one)
        if not all(right):
            return None
        low, high = (bound if kind == "integer" else float(bound) for bound in bounds)
        if low >= high:
            self.fault((kind,), list(bounds), words)
            return None
        log = self._log(kind)
        if log and low <= 0:
            what = "log_uniform" if kind == "log_uniform" else "log: true"
            self.fault((kind, 0), bounds[0], f"above 0 with {what}")
        self._check_bounds(kind, bounds, (low, high))
        return {"low": low, "high": high, "log": log, "step": self._step(kind, low, high)}

    def _check_bounds(self, kind: str, bounds: Sequence[Any], read: tuple[float, float]) -> None:
        is_whole_field = not takes(self.name, read[0]) and not takes(self.name, read[1])
        if kind != "integer" and is_whole_field and all(_takes_whole(self.name, b) for b in bounds):
            words = f"{self.name} takes whole numbers; write integer: [low, high]"
            self.fault((kind,), list(bounds), "integer: [low, high]", words)
            return
        for i, bound in enumerate(read):
            if not takes(self.name, bound):
                self.fault((kind, i), bounds[i], None)

    def _log(self, kind: str) -> bool:
        log = self.spec.get("log", kind == "log_uniform")
        if not isinstance(log, bool):
            self.fault(("log",), log, "true or false")
            return False
        if "log" in self.spec and kind != "integer":
            self.fault(("log",), log, "left out: write log_uniform, or integer with log: true")
        return log

    def _step(self, kind: str, low: float, high: float) -> float | None:
        step = self.spec.get("step")
        if step is None:
            return None
        type_words = "a whole number" if kind == "integer" else "a number"
        words = f"{type_words} above 0 and at most {high - low:g}, the width of the range"
        is_right = _is_whole(step) if kind == "integer" else _is_number(step)
        if not is_right or step <= 0 or step > high - low:
            self.fault(("step",), step, words)
            return None
        if (high - low) / step > MAX_STEPS:
            words = f"at least {(high - low) / MAX_STEPS:g}, or left out for every number"
            self.fault(("step",), step, words)
            return None
        return int(step) if kind == "integer" else float(step)

    def _when(self) -> tuple[Condition, ...]:
        given = self.spec.get("when")
        if given is None:
            return ()
        if not isinstance(given, Mapping) or not given:
            self.fault(("when",), given, "a mapping of fields to a value or a list of values")
            return ()
        conditions = []
        for name, values in given.items():
            at = ("when", str(name))
            if name not in FIELDS:
                self.fault(at, values, ", ".join(FIELDS), unknown_words(str(name)))
                continue
            if name == self.name:
                self.fault(at, values, "another field than the one that varies")
                continue
            conditions.append((str(name), tuple(self._when_values(at, str(name), values))))
        return tuple(conditions)

    def _when_values(self, at: Path, name: str, values: Any) -> list[Any]:
        listed = list(values) if isinstance(values, list | tuple) else [values]
        if not listed:
            self.fault(at, values, "a value or a list of values")
        found = []
        for i, value in enumerate(listed):
            try:
                found.append(as_field(name, value))
            except UnfitError:
                where = (*at, i) if isinstance(values, list | tuple) else at
                path = (self.name, *where)
                self.faults.append(SpaceFault(path, value, None, like=name))
        return found


def unknown_words(name: str) -> str:
    """What to say of a field that cannot vary."""
    near = likely_field(name)
    words = f"did you mean '{near}'?" if near and near != name else _VARY
    return f"no such field to vary; {words}"


def _condition_faults(space: Space) -> list[SpaceFault]:
    """Conditions that cannot hold, or that go in a circle."""
    faults = []
    for dimension in space.dimensions:
        for name, values in dimension.when:
            if name in space:
                faults.extend(_never(dimension.field, space[name], values))
    faults.extend(_circles(space))
    if not faults and (cases := _num_cases(space)) > MAX_CASES:
        words = f"conditions that tell at most {MAX_CASES:,} cases apart; these tell {cases:,}"
        faults.append(SpaceFault((), None, words))
    return faults


def _never(of: str, asked: Dimension, values: Sequence[Any]) -> list[SpaceFault]:
    at = (of, "when", asked.field)
    if asked.size is None:
        words = (
            f"about a field with countable values; give {asked.field} a step, or list its values"
        )
        return [SpaceFault(at, list(values), words)]
    return [
        SpaceFault(at, value, f"one of the values of {asked.field} in this space")
        for value in values
        if not asked.holds(value)
    ]


def _circles(space: Space) -> list[SpaceFault]:
    """One fault for each circle of conditions."""
    faults: list[SpaceFault] = []
    done: set[str] = set()
    for start in space:
        trail: list[str] = []
        if circle := _circle_from(space, start, trail, done):
            words = f"conditions go round in a circle: {' -> '.join(circle)}; take one out"
            at = (circle[0], "when", circle[1])
            faults.append(SpaceFault(at, circle, "conditions without a circle", message=words))
    return faults


def _circle_from(space: Space, name: str, trail: list[str], done: set[str]) -> list[str] | None:
    if name in trail:
        return [*trail[trail.index(name) :], name]
    if name in done or name not in space:
        return None
    trail.append(name)
    found = None
    for asked, _ in space[name].when:
        found = found or _circle_from(space, asked, trail, done)
    trail.pop()
    done.add(name)
    return found


def _num_cases(space: Space) -> int:
    return math.prod(len(values) + 1 for name, values in space.asked.items() if name in space)


def _takes_whole(name: str, bound: float) -> bool:
    return float(bound).is_integer() and takes(name, int(bound))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and abs(value) < 1e300
