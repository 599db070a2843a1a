"""Verbs about jobs that are there: what they say of each state, and what they refuse."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from cluster.home import Home, from_environment
from jobs import cli_sweep
from jobs.cli import main
from jobs.spec import FinetuneJob, dump
from jobs.states import State
from jobs.store import Store

SPEC = dump(FinetuneJob.model_validate({"kind": "finetune", "name": "x", "data": {"train": "b"}}))


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2CLS_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return Home(tmp_path / "home")


def a_job(home, state=State.STARTING, *, spec=SPEC, kind="finetune", reason=""):
    """A job of the store in a state, with its folder."""
    store = Store(home)
    job = store.create(name="x", kind=kind, spec=spec)
    home.job_dir(job.id).mkdir(parents=True)
    if state is not State.STARTING:
        store.start(job.id)
    if state not in (State.STARTING, State.RUNNING):
        store.finish(job.id, state, reason)
    return job.id


def said(capfd, *arguments):
    code = main([*arguments, "--json"])
    return code, json.loads(capfd.readouterr().out)


def test_jobs_are_listed_newest_first(home, capfd):
    first, second = a_job(home, State.SUCCEEDED), a_job(home, State.FAILED, reason="no memory")
    code, document = said(capfd, "jobs")
    assert code == 0
    assert [job["job_id"] for job in document["jobs"]] == [second, first]
    assert main(["jobs"]) == 0
    table = capfd.readouterr().out
    assert first in table
    assert "no memory" in table


def test_one_job_is_shown_with_its_attempts_and_result(home, capfd):
    job_id = a_job(home, State.SUCCEEDED)
    result = {"job_id": job_id, "test": {"accuracy": 0.5, "accuracy_ci": [0.4, 0.6]}}
    (home.job_dir(job_id) / "result.json").write_text(json.dumps(result))
    lost = {"time_ms": 1, "lost": {"1": "killed"}}
    (home.job_dir(job_id) / "attempts.jsonl").write_text(json.dumps(lost) + "\n")
    code, document = said(capfd, "show", "last")
    assert code == 0
    assert (document["job_id"], document["state"]) == (job_id, "SUCCEEDED")
    assert document["attempts"] == [{"attempt": 1, "state": "SUCCEEDED", "lost": [lost]}]
    assert document["result"] == result
    main(["show", job_id])
    page = capfd.readouterr().out
    assert "0.4000 to 0.6000" in page
    assert "workers lost" in page


def test_a_job_whose_process_died_is_shown_as_failed(home, capfd):
    code = (
        "import sys\n"
        "from cluster.home import Home\nfrom pathlib import Path\nfrom jobs.store import Store\n"
        "store = Store(Home(Path(sys.argv[1])))\n"
        "job = store.create(name='x', kind='finetune', spec={}); store.start(job.id)\n"
        "Path(sys.argv[1], 'jobs', job.id).mkdir(parents=True)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(home.root)], check=True, timeout=60)
    _, document = said(capfd, "show", "last")
    assert document["state"] == "FAILED"
    assert "died" in document["reason"]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (State.STARTING, "is STARTING"),
        (State.RUNNING, f"is RUNNING (process {os.getpid()}"),
        (State.SUCCEEDED, "there is nothing to resume"),
    ],
)
def test_a_job_in_another_state_is_not_resumed(home, capfd, state, words):
    job_id = a_job(home, state)
    code, document = said(capfd, "resume", job_id)
    assert code == 2
    assert words in document["error"]["message"]
    assert Store(home).get(job_id).state is state


def test_a_job_whose_folder_is_gone_is_not_resumed(home, capfd):
    job_id = a_job(home, State.STOPPED)
    shutil.rmtree(home.job_dir(job_id))
    for verb in ("resume", "report"):
        code, document = said(capfd, verb, job_id)
        assert code == 2
        assert "is gone" in document["error"]["message"]


def test_a_job_of_another_version_is_not_resumed(home, capfd):
    job_id = a_job(home, State.FAILED, spec=SPEC | {"new_block": {}})
    code, document = said(capfd, "resume", job_id)
    assert code == 2
    assert "made by another version" in document["error"]["message"]


def test_a_job_of_another_kind_is_not_resumed(home, capfd):
    code, document = said(capfd, "resume", a_job(home, State.FAILED, kind="evaluate"))
    assert code == 2
    assert "kind evaluate" in document["error"]["message"]


def test_a_report_goes_only_where_a_file_can_be(home, capfd, tmp_path):
    job_id = a_job(home, State.FAILED)
    os.mkfifo("pipe")
    for output in (str(tmp_path), "no/such/folder.html", "pipe"):
        code, document = said(capfd, "report", job_id, "-o", output)
        assert code == 2
        assert "name a file" in document["error"]["message"]


def test_a_report_that_cannot_be_written_is_refused_in_words(home, capfd):
    job_id = a_job(home, State.FAILED)
    code, document = said(capfd, "report", job_id, "-o", "/proc/page.html")
    assert code == 2
    assert "/proc/page.html: cannot be written" in document["error"]["message"]


def test_a_report_is_written_of_what_there_is(home, capfd, tmp_path):
    job_id = a_job(home, State.FAILED)
    (home.job_dir(job_id) / "resolved.json").write_text(json.dumps(SPEC))
    code, document = said(capfd, "report", job_id, "-o", "page.html")
    assert code == 0
    assert document == {"job_id": job_id, "output": "page.html"}
    assert "<html" in (tmp_path / "page.html").read_text()


def test_the_newest_sweep_comes_with_its_settings(home):
    job_id = a_job(home, State.FAILED, kind="sweep", spec={"kind": "sweep"})
    a_job(home, State.SUCCEEDED)
    found = cli_sweep._sweep("last", from_environment())
    assert (found.id, found.spec) == (job_id, {"kind": "sweep"})
