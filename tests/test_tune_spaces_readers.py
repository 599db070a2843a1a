"""Spaces as Optuna and Ray Tune see them."""

import math

import optuna
import pytest

from tune_spaces import read_space
from tune_spaces.check import SpaceError
from tune_spaces.optuna_space import past_trial, suggest
from tune_spaces.ray_space import ray_faults, ray_space

FIXED = {"model.pooling": "mean"}
SPACE = {
    "train.lr": {"log_uniform": [1e-5, 1e-1]},
    "train.warmup": {"uniform": [0.0, 0.2]},
    "model.dropout": {"uniform": [0.0, 0.32], "step": 0.05},
    "model.temperature": {"log_uniform": [0.1, 2.0], "step": 0.1},
    "train.batch_size": {"integer": [8, 30], "step": 8},
    "train.epochs": {"integer": [1, 9]},
    "train.max_steps": {"integer": [10, 1000], "log": True, "step": 10},
    "train.clip": {"choice": [None, 1, 0.5]},
    "train.early_stopping": {"choice": [None, {"metric": "macro_f1", "patience": 3}]},
}
CONDITION = {
    "model.pooling": {"choice": ["mean", "attention"]},
    "model.heads": {"choice": [1, 2, 4], "when": {"model.pooling": "attention"}},
}


@pytest.fixture
def study():
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=5))


@pytest.mark.filterwarnings("error")
def test_what_optuna_suggests_are_points_of_the_space(study):
    space = read_space(SPACE | CONDITION)
    for i in range(40):
        trial = study.ask()
        point = suggest(space, FIXED, trial)
        assert space.is_point(point, FIXED)
        assert list(point) == [field for field in space if field in point]
        study.tell(trial, float(i))
    assert len({"model.heads" in trial.params for trial in study.trials}) == 2


@pytest.mark.filterwarnings("error")
def test_optuna_learns_the_same_from_a_journal_as_from_its_own_trials(study):
    # Steps between logarithms are ours alone: the journal holds what Optuna drew rounded to them.
    rounded = ("model.temperature", "train.max_steps")
    space = read_space({k: v for k, v in SPACE.items() if k not in rounded} | CONDITION)
    journal = []
    for _ in range(12):
        trial = study.ask()
        point = suggest(space, FIXED, trial)
        value = abs(math.log(point["train.lr"] / 1e-3))
        study.tell(trial, value)
        journal.append((point, value))
    restored = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=7, n_startup_trials=5))
    study.sampler = optuna.samplers.TPESampler(seed=7, n_startup_trials=5)
    for point, value in journal:
        restored.add_trial(past_trial(space, FIXED, point, value))
    assert [suggest(space, FIXED, restored.ask()) for _ in range(5)] == [
        suggest(space, FIXED, study.ask()) for _ in range(5)
    ]


@pytest.mark.parametrize(
    "point",
    [
        pytest.param({"model.pooling": "max"}, id="another value"),
        pytest.param({"model.pooling": "attention"}, id="a field less"),
        pytest.param({"model.pooling": "mean", "train.lr": 0.1}, id="a field more"),
    ],
)
def test_a_point_of_another_space_is_no_past_trial(point):
    assert past_trial(read_space(CONDITION), FIXED, point, 0.5) is None


def test_an_inactive_field_is_not_asked_about(study):
    space = read_space({"model.heads": CONDITION["model.heads"], "train.lr": SPACE["train.lr"]})
    trial = study.ask()
    assert list(suggest(space, FIXED, trial)) == ["train.lr"]
    assert list(trial.params) == ["train.lr"]


def test_what_ray_draws_are_points_of_the_space():
    space = read_space(SPACE)
    found = ray_space(space)
    assert list(found) == list(SPACE)
    for _ in range(200):
        point = {field: domain.sample() for field, domain in found.items()}
        tidy = space.tidy(point)
        assert space.is_point(tidy, FIXED)
        for field, value in tidy.items():
            if isinstance(value, int | float):
                assert value == pytest.approx(point[field])  # only the dust is taken off


def test_whole_numbers_reach_both_ends_in_ray():
    space = read_space({"train.epochs": {"integer": [1, 3]}})
    domain = ray_space(space)["train.epochs"]
    assert {domain.sample() for _ in range(100)} == {1, 2, 3}


def test_a_grid_is_a_grid_in_ray():
    found = ray_space(read_space({"train.epochs": {"grid": [1, 3]}}))
    assert found == {"train.epochs": {"grid_search": [1, 3]}}


def test_what_ray_cannot_express_is_refused_all_at_once():
    odd = {"model.dropout": {"uniform": [0.1, 0.5], "step": 0.15}}
    space = read_space(CONDITION | odd)
    with pytest.raises(SpaceError) as error:
        ray_space(space)
    places = [fault.path for fault in error.value.faults]
    assert places == [("model.heads", "when"), ("model.dropout", "step")]
    assert "no conditions" in str(error.value)
    attention = read_space({"model.heads": CONDITION["model.heads"]})
    assert not [*ray_faults(attention.within({"model.pooling": "attention"}))]
