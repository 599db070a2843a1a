"""The trials of one sweep: what each one tries, how far it came, how it ended.

A journal on disk is the truth: one JSON object a line, the newest value of a key wins. What a
trial measured is in the event file of its own folder, which its process writes.
"""

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpt2cls.training.payload import EVENTS_FILE
from jobs.rank_files import FAILURE_FILE
from jobs.spool import read_lines

JOURNAL = "trials.jsonl"
CHANGES_FILE = "changes.jsonl"
PAYLOAD_FILE = "payload.json"
SHOWN_STATUSES = ("PENDING", "RUNNING", "FINISHED", "FAILED", "KILLED")


@dataclass
class Trial:
    """One configuration with one seed."""

    number: int
    configuration: int
    """Repeats with other seeds have the same one."""
    seed: int
    params: dict[str, Any]
    status: str = "PENDING"
    """As MLflow says it: PENDING, RUNNING, FINISHED, FAILED or KILLED."""
    pruned: bool = False
    cause: str | None = None
    """Why it failed, was stopped or was pruned."""
    metric: float | None = None
    """The best evaluation."""
    step: int = 0
    seconds: float = 0.0
    """In training, over all attempts."""
    finished_unix_s: float | None = None

    @property
    def is_final(self) -> bool:
        """No resume will run it again."""
        return self.status in ("FINISHED", "FAILED")

    @property
    def is_scored(self) -> bool:
        return self.metric is not None and math.isfinite(self.metric)


def trial_dir(sweep_dir: Path, number: int) -> Path:
    """The folder of one trial."""
    return sweep_dir / "trials" / f"{number:04d}"


def child_id(sweep_id: str, number: int) -> str:
    """By which the run of a trial is found again."""
    return f"{sweep_id}-t{number:04d}"


class Journal:
    """Append-only; whoever reads it after a kill finds every trial that was begun."""

    def __init__(self, sweep_dir: Path) -> None:
        self.path = sweep_dir / JOURNAL

    def read(self) -> list[Trial]:
        """All trials, in the order of their numbers."""
        trials: dict[int, dict[str, Any]] = {}
        offset = 0
        while True:
            lines, end = read_lines(self.path, offset)
            for _, line in lines:
                trials.setdefault(line["number"], {}).update(line)
            if end == offset:
                break
            offset = end
        return [Trial(**trials[number]) for number in sorted(trials)]

    def write(self, trial: Trial) -> None:
        """Write down a trial as it is now; it survives the machine."""
        line = json.dumps(asdict(trial), separators=(",", ":"))
        with self.path.open("ab") as file:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


@dataclass
class Measured:
    """What the event file of a trial says."""

    curve: list[tuple[int, float]] = field(default_factory=list)
    """Step and value of each evaluation."""
    step: int = 0
    ended: str | None = None
    """How the newest attempt ended by itself: finished, early_stopped or stopped."""
    seconds: float = 0.0


def measured(folder: Path, metric: str) -> Measured:
    """Read the event file of a trial, whose metric is named as in `eval/<metric>`."""
    found, began_ms, newest_ms = Measured(), 0, 0
    try:
        lines = (folder / EVENTS_FILE).read_bytes().splitlines()
    except FileNotFoundError:
        return found
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue  # cut off by a kill
        kind, time_ms = event["kind"], event["time_ms"]
        if kind == "start":
            found.seconds += (newest_ms - began_ms) / 1000
            found.ended, began_ms = None, time_ms
        newest_ms = time_ms
        found.step = max(found.step, event["step"])
        if kind == "eval" and f"eval/{metric}" in event["metrics"]:
            found.curve.append((event["step"], event["metrics"][f"eval/{metric}"]))
        if kind == "stop":
            found.ended = event["reason"]
    found.seconds += (newest_ms - began_ms) / 1000
    return found


def best_value(curve: Iterable[tuple[int, float]], mode: str) -> float | None:
    """The best of the evaluations; NaN never wins."""
    values = [value for _, value in curve if math.isfinite(value)]
    return (max if mode == "max" else min)(values, default=None)


def settle_trial(trial: Trial, folder: Path, metric: str, mode: str, *, died: str | None) -> None:
    """Set how a trial ended, from what it left in its folder.

    Args:
        trial: changed in place.
        folder: the trial's own.
        metric: by which trials are compared.
        mode: `max` or `min`.
        died: how its process was lost, where it was.
    """
    found, failure = measured(folder, metric), folder / FAILURE_FILE
    trial.step, trial.seconds = found.step, round(found.seconds, 2)
    trial.metric, trial.pruned, trial.cause = best_value(found.curve, mode), False, None
    kept = _kept_value(folder, metric)
    if kept is not None:  # weights taken from another trial have another past than the curve
        trial.metric = kept
    if failure.exists():
        trial.status, trial.cause = "FAILED", failure.read_text()
    elif found.ended in ("finished", "early_stopped"):
        trial.status = "FINISHED"
        if trial.metric is None:
            trial.status, trial.cause = "FAILED", f"it never measured a finite eval/{metric}"
    elif found.ended == "stopped":
        trial.status = "KILLED"
    elif died is not None:
        trial.status, trial.cause = "FAILED", died
    else:
        trial.status, trial.pruned = "FINISHED", True


def _kept_value(folder: Path, metric: str) -> float | None:
    """What the weights that the trial kept were measured at, where it kept any."""
    try:
        record = json.loads((folder / "best" / "state.json").read_text())
    except FileNotFoundError:
        return None
    value = record["metrics"].get(metric)
    return value if value is not None and math.isfinite(value) else None


def mean_of_configurations(trials: Sequence[Trial]) -> dict[int, float]:
    """The mean metric of each configuration all of whose repeats so far have one.

    A configuration of which a repeat failed has none: it cannot be relied on.
    """
    groups: dict[int, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.configuration, []).append(trial)
    return {
        configuration: sum(t.metric or 0.0 for t in repeats) / len(repeats)
        for configuration, repeats in groups.items()
        if all(t.is_scored and t.status in ("FINISHED", "KILLED") for t in repeats)
    }


def best_trial(trials: Sequence[Trial], mode: str) -> Trial | None:
    """The trial whose model is taken: of the best configuration, the best repeat.

    Of equal values the lower number wins, whatever the order in which they ended.
    """
    means = mean_of_configurations([t for t in trials if t.status != "PENDING"])
    sign = -1.0 if mode == "max" else 1.0
    scored = [t for t in trials if t.configuration in means and not t.pruned]
    if not scored:
        return None
    return min(
        scored,
        key=lambda t: (sign * means[t.configuration], sign * (t.metric or 0.0), t.number),
    )
