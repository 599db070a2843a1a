"""What a sweep found, read from its document: the trials, which is best, where each stands.

The document may be of a sweep that still runs, and its texts are a stranger's. Nothing here
draws or prints.
"""

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jobs.page_tables import Document
from jobs.sweep_axes import Axis, axes_of

Points = tuple[tuple[float, float], ...]
_WORDS = {
    "FINISHED": "finished",
    "FAILED": "failed",
    "KILLED": "stopped",
    "RUNNING": "running",
    "PENDING": "waiting",
}


@dataclass(frozen=True)
class Trial:
    """One trial, as far as it got."""

    trial: int
    status: str
    params: Mapping[str, Any]
    metric: float | None
    """Its best evaluation; never NaN or infinite."""
    pruned: bool
    cause: str | None
    step: int | None
    seconds: float | None
    curve: Points
    changes: tuple[tuple[int, Mapping[str, Any]], ...]
    seed: int | None
    configuration: int

    @property
    def words(self) -> str:
        """The status as a person says it."""
        if self.status == "FINISHED" and self.pruned:
            return "pruned"
        return _WORDS.get(self.status, self.status.lower())


@dataclass(frozen=True)
class Sweep:
    """All trials, in the order in which they ended as far as it is known."""

    metric: str
    mode: Literal["max", "min"]
    trials: tuple[Trial, ...]
    axes: tuple[Axis, ...]
    best: Trial | None
    """The one that the sweep names; until then the one with the best metric."""

    @property
    def scored(self) -> list[tuple[Trial, float]]:
        """The trials that were measured at least once."""
        return [(t, t.metric) for t in self.trials if t.metric is not None]

    @property
    def ranked(self) -> list[Trial]:
        """Best first; those without a metric last, in their own order."""
        return sorted(self.trials, key=lambda t: (t.metric is None, self.badness(t.metric or 0.0)))

    @property
    def median(self) -> float | None:
        """The median trial's metric."""
        values = [value for _, value in self.scored]
        return statistics.median(values) if values else None

    def badness(self, value: float) -> float:
        """Lower is better, whatever the mode."""
        return -value if self.mode == "max" else value

    def is_better(self, value: float, other: float) -> bool:
        """Whether the first metric beats the second."""
        return self.badness(value) < self.badness(other)

    def limits(self) -> tuple[float, float] | None:
        """The metrics worth an axis: all but far outliers on the bad side; None without any.

        A trial that diverged may be a million times worse than all others, which would then
        look the same. Outliers lie more than three interquartile ranges beyond the quartile.

        Source: Tukey 1977, "Exploratory Data Analysis" ("outer fences").
        """
        values = sorted(value for _, value in self.scored)
        if not values:
            return None
        low, high = values[0], values[-1]
        if len(values) >= 4:
            first, _, third = statistics.quantiles(values, n=4, method="inclusive")
            reach = 3 * (third - first)
            if reach > 0 and self.mode == "max":
                low = max(low, first - reach)
            elif reach > 0:
                high = min(high, third + reach)
        return low, high


def read_sweep(document: Mapping[str, Any]) -> Sweep:
    """The sweep of a `sweep.json`; what is missing or not finite is None."""
    listed = list(document.get("trials") or [])
    if listed and all(_number(one.get("finished_unix_s")) is not None for one in listed):
        listed.sort(key=lambda one: float(one["finished_unix_s"]))
    trials = tuple(_trial(one, number) for number, one in enumerate(listed))
    mode: Literal["max", "min"] = "min" if document.get("mode") == "min" else "max"
    axes = axes_of(list(document.get("space") or []), [trial.params for trial in trials])
    best = _best(trials, mode, document.get("best"))
    return Sweep(str(document.get("metric") or "metric"), mode, trials, tuple(axes), best)


def _best(trials: tuple[Trial, ...], mode: str, named: Any) -> Trial | None:
    scored = [(t, t.metric) for t in trials if t.metric is not None]
    for trial, _ in scored:
        if trial.trial == named:
            return trial
    if not scored:
        return None
    sign = 1 if mode == "max" else -1
    return max(scored, key=lambda item: sign * item[1])[0]


def _trial(one: Document, number: int) -> Trial:
    index = int(one.get("trial", number))
    return Trial(
        trial=index,
        status=str(one.get("status") or "PENDING"),
        params=dict(one.get("params") or {}),
        metric=_number(one.get("metric")),
        pruned=bool(one.get("pruned")),
        cause=None if one.get("cause") is None else str(one["cause"]),
        step=None if _number(one.get("step")) is None else int(one["step"]),
        seconds=_number(one.get("seconds")),
        curve=tuple(_points(one.get("curve") or [])),
        changes=tuple((int(step), dict(new)) for step, new in one.get("changes") or []),
        seed=one.get("seed"),
        configuration=int(one.get("configuration", index)),
    )


def _points(curve: Any) -> Iterator[tuple[float, float]]:
    for step, value in curve:
        if _number(step) is not None and _number(value) is not None:
            yield float(step), float(value)


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None
