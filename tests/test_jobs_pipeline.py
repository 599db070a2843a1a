"""What is told and asked of pipelines without running one."""

import json

import pytest
from test_jobs_cli_jobs import a_job, home, said  # noqa: F401 - a fixture

from gpt2cls.errors import RequestError
from jobs.api import _job
from jobs.asks import ask_of
from jobs.backbones import PINS_FILE
from jobs.cli import main
from jobs.pipeline import _make_ready
from jobs.pipeline_document import new_document, stages_of, write_document
from jobs.schedule import Ask
from jobs.spec import PipelineJob, dump
from jobs.states import State


def a_pipeline(**clusters):
    """A pipeline of finetune stages with these blocks `cluster`, each needing the one before."""
    stages = {
        name: {"needs": needs, "job": {"kind": "finetune", "data": {"train": "x.csv"},
                                       "cluster": cluster}}
        for (name, cluster), needs in zip(
            clusters.items(), [[], *([name] for name in clusters)], strict=False
        )
    }  # fmt: skip
    return PipelineJob.model_validate({"kind": "pipeline", "name": "p", "stages": stages})


def test_a_pipeline_asks_for_as_much_as_its_largest_stage():
    job = a_pipeline(
        a={"workers": 1, "cpus_per_worker": 3}, b={"workers": 2, "cpus_per_worker": 2}, c={}
    )
    assert ask_of(job, 1) == Ask(2, 2, 0)
    with_gpu = a_pipeline(a={"workers": 4, "cpus_per_worker": 4}, b={"gpus_per_worker": 1})
    assert ask_of(with_gpu, 2) == Ask(1, 2, 1)


def test_the_queue_takes_a_pipeline_and_refuses_one_with_a_cycle():
    spec = dump(a_pipeline(a={}, b={}))
    assert isinstance(_job(spec), PipelineJob)
    spec["stages"]["a"]["needs"] = ["b"]
    with pytest.raises(RequestError, match=r"stages\.a\.needs\[0\] must be .*: a -> b -> a"):
        _job(spec)


def test_a_pipeline_that_waits_shows_its_stages(home, capfd):  # noqa: F811
    job_id = a_job(home, State.RUNNING, spec=dump(a_pipeline(b={}, a={})), kind="pipeline")
    _, document = said(capfd, "show", job_id)
    assert [(s["stage"], s["state"]) for s in document["stages"]] == [
        ("b", "PENDING"), ("a", "PENDING"),
    ]  # fmt: skip
    main(["show", job_id])
    assert "PENDING" in capfd.readouterr().out


def test_no_stage_runs_in_a_pipeline_that_has_ended(tmp_path):
    job = a_pipeline(a={}, b={})
    stages = new_document(job)
    stages[0]["state"] = "RUNNING"
    write_document(tmp_path, stages)
    assert stages_of(tmp_path, dump(job), State.RUNNING)[0]["state"] == "RUNNING"
    ended = stages_of(tmp_path, dump(job), State.FAILED)
    assert [stage["state"] for stage in ended] == ["KILLED", "PENDING"]


def test_a_pipeline_has_no_page_but_its_stages_have(home, capfd):  # noqa: F811
    a_job(home, State.SUCCEEDED, spec=dump(a_pipeline(a={})), kind="pipeline")
    code, document = said(capfd, "report", "last")
    assert code == 2
    assert "stages/STAGE/report.html" in document["error"]["message"]


def test_a_stage_with_other_inputs_begins_anew_and_else_goes_on(tmp_path):
    folder = tmp_path / "stages" / "a"
    _make_ready(folder, "one")
    (folder / "checkpoints").mkdir()
    (folder / "made" / "half").touch()
    (folder / "record").mkdir()
    _make_ready(folder, "one")
    assert (folder / "checkpoints").exists()
    assert not (folder / "made" / "half").exists()
    _make_ready(folder, "two")
    assert sorted(path.name for path in folder.iterdir()) == ["address", "made", "record"]
    # What an alias meant decides the inputs, so it outlives a change of them.
    (folder / PINS_FILE).touch()
    _make_ready(folder, "three")
    assert (folder / PINS_FILE).exists()


def test_a_pipeline_of_another_version_is_not_resumed(home, capfd):  # noqa: F811
    a_job(home, State.FAILED, spec=dump(a_pipeline(a={})) | {"old": 1}, kind="pipeline")
    code, document = said(capfd, "resume", "last")
    assert code == 2
    assert "another version" in json.dumps(document)
