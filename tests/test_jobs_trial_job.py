"""The finetune job of a point, and what is found wrong at the ends of a space."""

import pickle
import random

import pytest

from jobs.names import check_job_id
from jobs.search import METRICS, METRICS_OF_VALUES, METRICS_TO_RAISE
from jobs.spec import FinetuneJob, SweepJob, dump
from jobs.trial_job import TrialError, trial_job, worst_cases


def sweep(**fields):
    given = {"kind": "sweep", "name": "x", "data": {"train": "bbc-news"}, **fields}
    return SweepJob.model_validate(given)


def test_the_job_of_a_point_is_a_finetune_job_that_registers_nothing():
    job = sweep(register={"model": "m"}, cluster={"workers": 2}, train={"epochs": 7})
    trial = trial_job(job, {"train.lr": 0.01, "model.dropout": 0.15, "data.max_length": 99})
    assert type(trial) is FinetuneJob
    assert (trial.kind, trial.name, trial.registration.model) == ("finetune", "x", None)
    assert (trial.train.lr, trial.model.dropout, trial.data.max_length) == (0.01, 0.15, 99)
    assert (trial.train.epochs, trial.cluster.workers) == (7, 2)
    assert not {"space", "search"} & dump(trial).keys()


def test_the_seed_of_a_repeat_goes_before_that_of_the_job():
    job = sweep(train={"seed": 5})
    assert trial_job(job, {}).train.seed == 5
    assert trial_job(job, {"train.seed": 6}).train.seed == 6
    assert trial_job(job, {}, seed=7).train.seed == 7


def test_the_sweep_itself_is_left_as_it_was():
    job = sweep(space={"train.lr": {"uniform": [1, 2]}})
    before = dump(job)
    trial_job(job, {"train.lr": 2.0})
    assert dump(job) == before
    assert SweepJob.model_validate(before) == job


@pytest.mark.parametrize("name", ["default", "ulmfit", "head", "wide"])
def test_every_point_of_a_shipped_space_makes_a_job(name):
    job, rng = sweep(space=name, model={"pooling": "attention"}), random.Random(0)
    assert worst_cases(job) == []
    for _ in range(30):
        point = job.search_space.draw(rng, job.fixed)
        trial = dump(trial_job(job, point))
        for field, value in point.items():
            block, key = field.split(".")
            assert trial[block][key] == value


@pytest.mark.parametrize(
    ("point", "field"),
    [
        pytest.param({"train.lr": -1.0}, "train.lr", id="a value out of range"),
        pytest.param({"train.batch_size": 1}, "train.batch_size", id="fewer rows than workers"),
        pytest.param(
            {"train.early_stopping": {"metric": "f2", "patience": 1}}, "train.early_stopping",
            id="a rule about a part of a value",
        ),
        pytest.param({"train.lrr": 1}, "train.lrr", id="an unknown field"),
    ],
)  # fmt: skip
def test_a_point_that_makes_no_job_names_its_field(point, field):
    with pytest.raises(TrialError) as error:
        trial_job(sweep(cluster={"workers": 2}), point)
    assert field in str(error.value)
    assert error.value.faults[0][0] == field
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


def test_the_ends_of_a_space_are_tried_before_the_start():
    job = sweep(
        cluster={"workers": 4},
        space={"train.batch_size": {"integer": [2, 16]}, "train.lr": {"uniform": [1, 2]}},
    )
    (fault,) = worst_cases(job)
    assert fault[:2] == (("space", "train.batch_size"), 2)


def test_what_is_fixed_are_the_values_of_the_job_by_their_dotted_names():
    fixed = sweep(model={"pooling": "max"}, data={"train": "b", "max_length": 9}).fixed
    assert (fixed["model.pooling"], fixed["data.max_length"]) == ("max", 9)
    assert (fixed["train.lr"], fixed["train.early_stopping"]) == (1e-4, None)
    assert "data.train" not in fixed


@pytest.mark.parametrize(
    ("space", "search", "count"),
    [
        pytest.param("default", {}, 12, id="twelve unless told"),
        pytest.param("default", {"trials": 3}, 3, id="as told"),
        pytest.param({"train.epochs": {"integer": [1, 5]}}, {"searcher": "grid"}, 5, id="grid"),
        pytest.param(
            {"train.epochs": {"integer": [1, 5]}}, {"searcher": "grid", "trials": 2}, 2, id="cut"
        ),
        pytest.param({"train.epochs": {"integer": [1, 5]}}, {}, 12, id="drawn with repetition"),
    ],
)
def test_the_number_of_trials(space, search, count):
    assert sweep(space=space, search=search).num_trials == count


@pytest.mark.parametrize("metric", METRICS)
def test_the_metric_decides_whether_more_is_better(metric):
    task = "regression" if metric in METRICS_OF_VALUES else "classes"
    data = {"train": "scores.csv", "task": task}
    search = sweep(data=data, search={"metric": f"eval/{metric}"}).search
    assert search.metric == metric
    assert search.best_mode == ("max" if metric in METRICS_TO_RAISE else "min")
    given = {"metric": metric, "mode": search.best_mode}
    assert sweep(data=data, search=given).search.mode is not None


@pytest.mark.parametrize("searcher", ["random", "optuna"])
def test_a_condition_is_known_to_the_searchers_of_this_project(searcher):
    assert sweep(search={"searcher": searcher}, model={"pooling": "attention"})


def test_a_population_may_vary_what_can_change_in_training():
    space = {"train.lr": {"log_uniform": [1e-5, 1e-2]}, "model.dropout": {"uniform": [0, 0.3]}}
    assert sweep(space=space, search={"scheduler": "pbt", "trials": 4}).num_trials == 4


def test_a_preset_fills_a_sweep_too():
    from jobs.presets import fill

    values = {"kind": "sweep", "name": "x", "preset": "paper", "data": {"train": "b"}}
    assert SweepJob.model_validate(fill(values)).fixed["model.pooling"] == "attention"


def test_an_earlier_sweep_is_named_by_a_job_id():
    search = sweep(search={"warm_start": "x-20260101-abc"}).search
    assert check_job_id(search.warm_start) == "x-20260101-abc"
