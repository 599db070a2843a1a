"""What a sweep will use on this machine, and what can never fit it."""

import pytest

from jobs.faults import BadRequestError
from jobs.plan import refuse_if_never_fits, sweep_plan, sweep_warnings
from jobs.spec import SweepJob
from tune_spaces import shipped_document


def sweep(cluster=None, search=None, **fields):
    given = {"kind": "sweep", "name": "x", "data": {"train": "b"}, **fields}
    return SweepJob.model_validate(given | {"cluster": cluster or {}, "search": search or {}})


@pytest.mark.parametrize(
    ("cluster", "search", "cores", "at_a_time", "cpus"),
    [
        pytest.param({}, {}, 8, 8, 1, id="one core per trial unless told"),
        pytest.param({}, {}, 64, 12, 1, id="no more than there are trials"),
        pytest.param({}, {"max_concurrent": 3}, 8, 3, 1, id="no more than told"),
        pytest.param({}, {"max_concurrent": 9}, 8, 8, 1, id="no more than there are cores"),
        pytest.param({}, {"trials": 2, "seeds": 3}, 8, 6, 1, id="repeats run side by side"),
        pytest.param({"workers": 2}, {}, 8, 4, 2, id="workers of a trial"),
        pytest.param({"workers": 2, "cpus_per_worker": 1.5}, {}, 8, 2, 3, id="parts of cores"),
        pytest.param({"cpus_per_worker": 0.5}, {}, 2, 4, 0.5, id="half a core"),
        pytest.param({"workers": [1, 4]}, {}, 2, 1, 2, id="as many workers as there is room for"),
        pytest.param({"workers": [1, 4]}, {}, 16, 4, 4, id="all workers"),
        pytest.param({"workers": 4}, {}, 2, 1, 4, id="never fits, and is refused elsewhere"),
    ],
)
def test_trials_at_a_time(cluster, search, cores, at_a_time, cpus):
    plan = sweep_plan(sweep(cluster, search), cores)
    assert (plan["trials_at_a_time"], plan["cpus_per_trial"]) == (at_a_time, cpus)


def test_the_plan_counts_points_trials_and_runs():
    space = {"train.epochs": {"integer": [1, 5]}, "train.clip": {"choice": [None, 1.0]}}
    plan = sweep_plan(sweep(search={"searcher": "grid", "seeds": 2}, space=space), 4)
    assert (plan["points"], plan["trials"], plan["runs"]) == (10, 10, 20)
    assert (plan["searcher"], plan["scheduler"]) == ("grid", "asha")
    assert plan["objective"] == "max of eval/accuracy"
    assert sweep_plan(sweep(), 4)["points"] is None


@pytest.mark.parametrize(
    ("cluster", "field", "allowed"),
    [
        pytest.param({"cpus_per_worker": 8}, "cluster.cpus_per_worker", "at most 2", id="cores"),
        pytest.param({"workers": 4}, "cluster.workers", "at most 2", id="workers"),
        pytest.param({"workers": [3, 4]}, "cluster.workers", "at most 2", id="the fewest workers"),
        pytest.param(
            {"workers": 2, "cpus_per_worker": 8}, "cluster.cpus_per_worker", "at most 1", id="both"
        ),
    ],
)
def test_a_trial_larger_than_the_machine_is_refused(cluster, field, allowed):
    job = sweep(cluster)
    with pytest.raises(BadRequestError) as error:
        refuse_if_never_fits(job, 2)
    (problem,) = error.value.problems
    assert (problem.field, problem.allowed) == (field, allowed)
    assert "this machine has 2; ask for at most" in problem.message
    assert problem.message in sweep_warnings(job, 2)


def test_a_trial_of_all_cores_fits():
    refuse_if_never_fits(sweep({"workers": 2}), 2)
    refuse_if_never_fits(sweep({"workers": [1, 8]}), 2)


def test_what_the_space_overrides_or_never_reaches_is_told():
    train = {"lr": 0.1, "precision": "fp16"}
    warnings = sweep_warnings(sweep(train=train, space=shipped_document("default")), 2)
    assert "train.lr = 0.1 is not used: the space varies this field" in warnings
    assert "space.model.heads never varies in this job: see model.pooling" in warnings
    assert any("fp16 is slow" in words for words in warnings)
    assert sweep_warnings(sweep(), 2) == []  # a shipped space is for many jobs
