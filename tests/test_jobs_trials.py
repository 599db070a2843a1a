"""What a trial left on disk decides how it ended; which trial is best is a pure function."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from jobs.rank_files import FAILURE_FILE
from jobs.trials import (
    Journal,
    Trial,
    best_trial,
    mean_of_configurations,
    measured,
    settle_trial,
)


def trial(number: int = 0, **values: Any) -> Trial:
    made = Trial(number, values.pop("configuration", number), 0, {"train.lr": 0.1})
    for name, value in values.items():
        setattr(made, name, value)
    return made


def events(folder: Path, *lines: tuple[str, int, dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    rows = []
    for i, (kind, step, more) in enumerate(lines):
        event = {"kind": kind, "step": step, "time_ms": 1000 * i, "metrics": {}, **more}
        rows.append(json.dumps(event) + "\n")
    (folder / "events.jsonl").write_text("".join(rows))
    return folder


def evaluated(step: int, value: float) -> tuple[str, int, dict[str, Any]]:
    return "eval", step, {"metrics": {"eval/accuracy": value}}


START = ("start", 0, {})
CURVE = (START, evaluated(7, 0.5), evaluated(14, 0.8), evaluated(21, 0.7))


def settled(folder: Path, *, died: str | None = None) -> Trial:
    found = trial()
    settle_trial(found, folder, "accuracy", "max", died=died)
    return found


def test_a_finished_trial_is_scored_by_its_best_evaluation_not_its_last(tmp_path: Path) -> None:
    found = settled(events(tmp_path, *CURVE, ("stop", 21, {"reason": "finished"})))
    assert (found.status, found.metric, found.step, found.pruned) == ("FINISHED", 0.8, 21, False)
    assert found.seconds == 4.0


def test_a_trial_that_did_not_come_back_from_its_report_was_pruned(tmp_path: Path) -> None:
    found = settled(events(tmp_path, *CURVE[:2]))
    assert (found.status, found.pruned, found.metric) == ("FINISHED", True, 0.5)


def test_an_end_before_the_newest_start_is_none(tmp_path: Path) -> None:
    stopped = ("stop", 14, {"reason": "stopped"})
    assert settled(events(tmp_path, *CURVE[:3], stopped)).status == "KILLED"
    assert settled(events(tmp_path, *CURVE[:3], stopped, START)).pruned


def test_a_lost_process_a_failure_and_no_measurement_are_told_apart(tmp_path: Path) -> None:
    lost = settled(events(tmp_path, *CURVE), died="its process was lost")
    assert (lost.status, lost.cause) == ("FAILED", "its process was lost")
    silent = settled(events(tmp_path, START, ("stop", 3, {"reason": "finished"})))
    assert (silent.status, silent.cause) == ("FAILED", "it never measured a finite eval/accuracy")
    (tmp_path / FAILURE_FILE).write_text("the loss became nan")
    failed = settled(events(tmp_path, *CURVE))
    assert (failed.status, failed.cause, failed.pruned) == ("FAILED", "the loss became nan", False)


def test_weights_taken_from_another_trial_count_with_what_they_were_measured_at(
    tmp_path: Path,
) -> None:
    events(tmp_path, *CURVE, ("stop", 21, {"reason": "finished"}))
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "state.json").write_text(json.dumps({"metrics": {"accuracy": 0.75}}))
    assert settled(tmp_path).metric == 0.75


def test_a_torn_event_is_passed_over(tmp_path: Path) -> None:
    events(tmp_path, *CURVE)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"kind": "eval", "st')
    assert measured(tmp_path, "accuracy").curve == [(7, 0.5), (14, 0.8), (21, 0.7)]


def test_the_journal_gives_every_trial_as_it_was_last_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.read() == []
    first, second = trial(0), trial(1, params={"model.dropout": 0.1})
    for one in (first, second):
        journal.write(one)
    first.status, first.metric = "FINISHED", 0.9
    journal.write(first)
    with journal.path.open("a") as file:
        file.write('{"number": 2, "conf')  # a kill in mid-line
    assert journal.read() == [first, second]


@pytest.mark.parametrize(("mode", "winner"), [("max", 1), ("min", 2)])
def test_the_best_trial_by_mode_and_nan_never_wins(mode: str, winner: int) -> None:
    values = [math.nan, 0.9, 0.1, None]
    trials = [trial(i, status="FINISHED", metric=value) for i, value in enumerate(values)]
    best = best_trial(trials, mode)
    assert best is not None
    assert best.number == winner


def test_of_equal_values_the_lower_number_wins_and_pruned_trials_never() -> None:
    done = {"status": "FINISHED", "metric": 0.5}
    trials = [trial(0, pruned=True, **done), trial(1, **done), trial(2, **done)]
    assert best_trial(trials, "max") is trials[1]
    assert best_trial(trials[:1], "max") is None
    assert best_trial([], "max") is None


def test_the_mean_of_the_repeats_decides_and_a_failed_repeat_disqualifies() -> None:
    values = {0: (0.9, 0.5), 1: (0.8, 0.75), 2: (0.99, None)}
    trials = [
        trial(
            2 * configuration + i,
            configuration=configuration,
            status="FINISHED" if value is not None else "FAILED",
            metric=value,
        )
        for configuration, pair in values.items()
        for i, value in enumerate(pair)
    ]
    assert mean_of_configurations(trials) == pytest.approx({0: 0.7, 1: 0.775})
    best = best_trial(trials, "max")
    assert best is not None
    assert (best.configuration, best.metric) == (1, 0.8)
