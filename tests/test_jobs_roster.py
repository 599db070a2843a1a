"""The state of a sweep: which trial is next, and that nothing is lost by a kill."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.proposals import Drawn, Grid, Learned, Proposer, new_proposer
from jobs.roster import Roster
from jobs.search import SearchConfig
from jobs.trials import Journal, trial_dir
from tune_spaces import read_space
from tune_spaces.space import Point

SPACE = read_space(
    {
        "train.lr": {"log_uniform": [1e-4, 1e-1]},
        "model.dropout": {"uniform": [0.0, 0.5], "step": 0.1},
    }
)


class Noted(Drawn):
    """Draws, and remembers what it was told."""

    def __init__(self) -> None:
        super().__init__(SPACE, {}, 0)
        self.told: list[tuple[int | None, float | None]] = []

    def learn(self, index: int | None, point: Point, value: float | None) -> None:
        self.told.append((index, value))


def roster(folder: Path, proposer: Proposer | None = None, **search: Any) -> Roster:
    trials = search.setdefault("trials", 4)
    return Roster(
        folder,
        SearchConfig(**search),
        proposer or Drawn(SPACE, {}, 0),
        num_configurations=trials,
        first_seed=5,
    )


def finish(sweep: Roster, number: int, value: float | None) -> None:
    """As the process of the trial would have left its folder."""
    folder = trial_dir(sweep.sweep_dir, number)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"kind": "start", "step": 0, "time_ms": 0, "metrics": {}}]
    if value is not None:
        metrics = {"eval/accuracy": value}
        lines.append({"kind": "eval", "step": 9, "time_ms": 1, "metrics": metrics})
    lines.append({"kind": "stop", "step": 9, "time_ms": 1, "metrics": {}, "reason": "finished"})
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def end(sweep: Roster, number: int, value: float | None) -> None:
    sweep.started(number)
    finish(sweep, number, value)
    sweep.ended(number)


def test_trials_are_handed_out_once_each_until_there_are_enough(tmp_path: Path) -> None:
    sweep = roster(tmp_path)
    handed = [sweep.next() for _ in range(5)]
    assert [trial.number for trial in handed if trial] == [0, 1, 2, 3]
    assert handed[4] is None
    assert sweep.num_trials == 4
    assert {trial.seed for trial in sweep.trials} == {5}


def test_after_a_kill_finished_trials_stay_and_the_others_come_again(tmp_path: Path) -> None:
    sweep = roster(tmp_path)
    params = [trial.params for trial in iter(sweep.next, None)]
    end(sweep, 0, 0.7)
    sweep.started(1)
    sweep.started(2)
    finish(sweep, 2, 0.9)  # it ended, and the driver died before it heard of it

    again, noted = None, Noted()
    again = roster(tmp_path, noted)
    assert [trial.status for trial in again.trials] == [
        "FINISHED",
        "PENDING",
        "FINISHED",
        "PENDING",
    ]
    assert noted.told == [(0, 0.7), (2, 0.9)]
    assert Journal(tmp_path).read()[2].status == "FINISHED", "known to this process alone"
    left = list(iter(again.next, None))
    assert [trial.number for trial in left] == [1, 3]
    assert [trial.params for trial in again.trials] == params


def test_a_sweep_is_done_when_every_configuration_is_over(tmp_path: Path) -> None:
    sweep = roster(tmp_path, trials=2)
    assert not sweep.is_done
    for trial in iter(sweep.next, None):
        assert not sweep.is_done
        end(sweep, trial.number, 0.5)
    assert sweep.is_done
    assert not roster(tmp_path, trials=3).is_done


def test_a_sweep_can_be_extended_and_goes_on_drawing_where_it_was(tmp_path: Path) -> None:
    unbroken = roster(tmp_path / "a", trials=6)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    wanted = [trial.params for trial in iter(unbroken.next, None)]
    sweep = roster(tmp_path / "b", trials=3)
    for trial in iter(sweep.next, None):
        end(sweep, trial.number, 0.5)
    longer = roster(tmp_path / "b", trials=6)
    new = list(iter(longer.next, None))
    assert [trial.number for trial in new] == [3, 4, 5]
    assert [trial.params for trial in longer.trials] == wanted


def test_every_configuration_is_repeated_with_other_seeds_and_the_mean_is_learned(
    tmp_path: Path,
) -> None:
    noted = Noted()
    sweep = roster(tmp_path, noted, trials=2, seeds=3)
    handed = list(iter(sweep.next, None))
    assert [(trial.configuration, trial.seed) for trial in handed] == [
        *((0, seed) for seed in (5, 6, 7)),
        *((1, seed) for seed in (5, 6, 7)),
    ]
    for number, value in enumerate((0.5, 0.6, 0.7)):
        end(sweep, number, value)
    assert noted.told == [(0, pytest.approx(0.6))]
    end(sweep, 3, None)
    end(sweep, 4, 0.9)
    end(sweep, 5, 0.9)
    assert noted.told[1] == (1, None)  # one repeat came to nothing
    assert sweep.best is not None
    assert sweep.best.number == 2


def test_without_a_better_trial_for_long_no_further_one_begins(tmp_path: Path) -> None:
    sweep = roster(tmp_path, trials=10, patience=2)
    for value in (0.6, 0.7, 0.5):
        trial = sweep.next()
        assert trial is not None
        end(sweep, trial.number, value)
    assert sweep.why_no_more is None
    trial = sweep.next()
    assert trial is not None
    end(sweep, trial.number, 0.7)  # as good is not better
    assert sweep.why_no_more == "no better trial in 2"
    assert sweep.next() is None


def test_draws_depend_on_the_seed_and_the_number_alone() -> None:
    one, other = Drawn(SPACE, {}, 3), Drawn(SPACE, {}, 3)
    assert [one.propose(i) for i in range(5)] == [other.propose(i) for i in (0, 1, 2, 3, 4)]
    assert one.propose(4) == other.propose(4) != Drawn(SPACE, {}, 4).propose(4)


def test_grid_dimensions_are_walked_beside_others_that_are_drawn() -> None:
    space = read_space(
        {"model.heads": {"grid": [1, 2, 4]}, "train.lr": {"log_uniform": [1e-4, 1e-1]}}
    )
    points = [Drawn(space, {}, 0).propose(i) for i in range(6)]
    assert [point["model.heads"] for point in points] == [1, 2, 4, 1, 2, 4]
    assert len({point["train.lr"] for point in points}) == 6


def test_a_grid_gives_every_point_once() -> None:
    space = read_space({"model.heads": {"choice": [1, 2]}, "model.dropout": {"choice": [0.0, 0.1]}})
    points = [Grid(space, {}).propose(i) for i in range(4)]
    assert len({tuple(point.values()) for point in points}) == 4


def bowl(point: Point) -> float:
    """Best, 0, at a learning rate of 3e-3 and a dropout of 0.2."""
    import math

    return -((math.log10(point["train.lr"] / 3e-3)) ** 2) - (point["model.dropout"] - 0.2) ** 2


def best_of(proposer: Proposer, count: int) -> float:
    values = []
    for index in range(count):
        point = proposer.propose(index)
        values.append(bowl(point))
        proposer.learn(index, point, values[-1])
    return max(values)


def test_learning_from_trials_beats_chance_on_a_known_function() -> None:
    seeds = range(5)
    learned = [best_of(new_proposer("optuna", SPACE, {}, seed=s, mode="max"), 40) for s in seeds]
    drawn = [best_of(new_proposer("random", SPACE, {}, seed=s, mode="max"), 40) for s in seeds]
    assert sum(learned) > sum(drawn)


def test_what_was_learned_survives_a_restart() -> None:
    unbroken = Learned(SPACE, {}, 0, "max")
    points = []
    for index in range(20):
        points.append(unbroken.propose(index))
        unbroken.learn(index, points[-1], bowl(points[-1]))
    resumed = Learned(SPACE, {}, 0, "max")
    for index in range(15):
        resumed.learn(index, points[index], bowl(points[index]))
    assert [resumed.propose(15)] == [points[15]]
