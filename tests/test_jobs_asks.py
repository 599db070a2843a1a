"""What jobs ask of a cluster."""

import pytest

from jobs.asks import ask_of, entrypoint_cpus
from jobs.spec import KINDS, dump

JOB = {"kind": "finetune", "name": "x", "data": {"train": "bbc-news"}}
SPACE = {"train.lr": {"choice": [0.1, 0.2]}}


@pytest.mark.parametrize(
    ("given", "workers", "in_driver"),
    [
        pytest.param({"cluster": {"cpus_per_worker": 2}}, 1, 2, id="one worker is the driver"),
        pytest.param({"cluster": {"workers": 2}}, 2, 0, id="two are beside it"),
        pytest.param(
            {"cluster": {"workers": [1, 2]}}, 1, 0, id="and so is the first of an elastic"
        ),
        pytest.param({"kind": "sweep", "space": SPACE}, 2, 0, id="trials are beside it, too"),
    ],
)
def test_the_driver_holds_cores_only_where_it_trains_itself(given, workers, in_driver):
    job = KINDS[given.get("kind", "finetune")].model_validate(JOB | given)
    ask = ask_of(job, 2)
    assert ask.workers == workers
    assert entrypoint_cpus(ask, dump(job)) == (in_driver, 0)


def test_the_driver_of_a_pipeline_leaves_the_cores_to_the_workers_of_its_stages():
    stages = {"train": {"job": JOB | {"name": "p-train", "cluster": {"workers": 2}}}}
    spec = {"kind": "pipeline", "name": "p", "stages": stages}
    job = KINDS["pipeline"].model_validate(spec)
    ask = ask_of(job, 2)
    assert ask.cpus == 2
    assert entrypoint_cpus(ask, dump(job)) == (0, 0)
