"""The record against a real embedded server, which is stopped, frozen and started again."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter

import psutil
import pytest

from cluster.home import Home, Surroundings
from cluster.tracking_server import ensure_server, find_server, stop_server, wait_ready
from jobs.record import Record, deliver_pending
from jobs.settle import settle
from jobs.spool import Spool
from jobs.states import State
from jobs.store import Store
from jobs.tracking import JOB_TAG, connect, find_or_create_run, find_runs

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory):
    home = Home(tmp_path_factory.mktemp("record") / "home")
    wait_ready(home, ensure_server(home))
    yield Surroundings(home, None, None, None)
    stop_server(home)


@pytest.fixture
def job_dir(surroundings, request):
    return surroundings.home.job_dir(f"j-{abs(hash(request.node.name)) % 10**8}")


def client(surroundings):
    server = ensure_server(surroundings.home)
    wait_ready(surroundings.home, server)
    return connect(server.uri)


def open_record(surroundings, job_dir, **settings):
    return Record(job_dir, surroundings, job_id=job_dir.name, experiment="exp", **settings)


def write_events(job_dir, steps):
    job_dir.mkdir(parents=True, exist_ok=True)
    with (job_dir / "events.jsonl").open("a") as file:
        for step in steps:
            event = {"kind": "step", "step": step, "time_ms": 1000 + step}
            file.write(json.dumps(event | {"metrics": {"train/loss": 1 / (1 + step)}}) + "\n")


def steps_told(surroundings, run_id, key="train/loss"):
    history = client(surroundings).get_metric_history(run_id, key)
    return Counter(point.step for point in history)


def once(num_steps):
    return Counter(range(num_steps))


def test_everything_recorded_arrives_with_its_own_times(surroundings, job_dir):
    record = open_record(surroundings, job_dir)
    record.params({"train.lr": 1e-4, "data.labels": "x" * 7000})
    record.tags({"gpt2cls.git_commit": "abc"})
    write_events(job_dir, range(2500))
    (job_dir / "job.yaml").write_text("data: {train: 's3://me:hunter2@host/x'}\n")
    record.artifact(job_dir / "job.yaml")
    record.metrics({"test/accuracy": 0.9, "test/f1/体育": 0.8}, step=2500)
    assert record.finish("FINISHED", timeout_s=60)

    found = client(surroundings).get_run(record.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.tags[JOB_TAG] == job_dir.name
    assert found.data.params["train.lr"] == "0.0001"
    assert "whole in artifact" in found.data.params["data.labels"]
    assert found.data.metrics["test/f1/体育"] == 0.8
    assert "system/job_memory_mib" in found.data.metrics
    assert steps_told(surroundings, record.run_id) == once(2500)
    history = client(surroundings).get_metric_history(record.run_id, "train/loss")
    assert {point.timestamp - point.step for point in history} == {1000}


def test_secrets_are_masked_in_what_is_uploaded(surroundings, job_dir, tmp_path):
    record = open_record(surroundings, job_dir, with_usage=False)
    job_dir.joinpath("job.yaml").write_text("data: {train: 's3://me:hunter2@host/x'}\n")
    record.artifact(job_dir / "job.yaml", "given")
    assert record.finish("FINISHED", timeout_s=60)
    fetched = client(surroundings).download_artifacts(
        record.run_id, "given/job.yaml", str(tmp_path)
    )
    with open(fetched) as file:
        assert file.read() == "data: {train: 's3://***@host/x'}\n"


def test_steps_made_again_after_a_resume_are_not_told_twice(surroundings, job_dir):
    first = open_record(surroundings, job_dir)
    write_events(job_dir, range(30))
    assert first.finish("FAILED", timeout_s=60)
    second = open_record(surroundings, job_dir)
    second.params({"late": 1})
    write_events(job_dir, range(20, 50))
    assert second.flush(60)
    assert client(surroundings).get_run(second.run_id).info.status == "RUNNING"
    assert second.finish("FINISHED", timeout_s=60)
    assert second.run_id == first.run_id
    assert client(surroundings).get_run(second.run_id).info.status == "FINISHED"
    assert steps_told(surroundings, second.run_id) == once(50)


def test_points_written_while_the_server_was_away_arrive_once(surroundings, job_dir):
    record = open_record(surroundings, job_dir)
    write_events(job_dir, range(100))
    assert record.flush(60)
    stop_server(surroundings.home)
    write_events(job_dir, range(100, 300))
    time.sleep(4)
    assert Spool(job_dir).num_points_left() >= 200
    wait_ready(surroundings.home, ensure_server(surroundings.home))
    write_events(job_dir, range(300, 400))
    assert record.finish("FINISHED", timeout_s=60)
    assert steps_told(surroundings, record.run_id) == once(400)


def test_a_frozen_server_holds_up_neither_writer_nor_record(surroundings, job_dir):
    record = open_record(surroundings, job_dir)
    write_events(job_dir, range(10))
    assert record.flush(60)
    server = psutil.Process(find_server(surroundings.home).pid)
    server.send_signal(signal.SIGSTOP)
    start = time.monotonic()
    record.metrics({"test/accuracy": 1.0}, step=10)
    write_events(job_dir, range(10, 20))
    assert time.monotonic() - start < 0.5
    assert not record.flush(2)
    server.send_signal(signal.SIGCONT)
    assert record.finish("FINISHED", timeout_s=60)
    assert steps_told(surroundings, record.run_id) == once(20)


def test_a_recording_process_that_is_killed_is_gone_on_with(surroundings, job_dir):
    code = """
import json, sys, time
from pathlib import Path
from cluster.home import Home, Surroundings
from jobs.record import Record
surroundings = Surroundings(Home(Path(sys.argv[1])), None, None, None)
job_dir = Path(sys.argv[2])
record = Record(job_dir, surroundings, job_id=job_dir.name, experiment="exp")
with (job_dir / "events.jsonl").open("a") as file:
    for step in range(10_000):
        event = {"step": step, "time_ms": step, "metrics": {"train/loss": step}}
        file.write(json.dumps(event) + "\\n")
        file.flush()
        time.sleep(0.005)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(surroundings.home.root), str(job_dir)]
    )
    spool = Spool(job_dir)
    deadline = time.monotonic() + 60
    while spool.position().steps.get("train/loss", 0) < 100 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.kill()
    process.wait()
    # What was delivered and not noted is delivered again: the server must not double it.
    spool.set_position(type(spool.position())())
    record = open_record(surroundings, job_dir)
    write_events(job_dir, range(50, 3000))
    assert record.finish("FINISHED", timeout_s=60)
    told = steps_told(surroundings, record.run_id)
    assert told == once(3000)


def test_one_job_has_one_run_also_when_an_answer_was_lost(surroundings, job_dir):
    mlflow = client(surroundings)
    wanted = dict(experiment="exp", job_id=job_dir.name, run_name="x", start_ms=1000)
    run_id = find_or_create_run(mlflow, **wanted)
    assert find_or_create_run(mlflow, **wanted) == run_id
    experiment_id = mlflow.get_run(run_id).info.experiment_id
    mlflow.create_run(experiment_id, start_time=2000, tags={JOB_TAG: job_dir.name})

    record = open_record(surroundings, job_dir)
    assert record.finish("FINISHED", timeout_s=60)
    assert record.run_id == run_id
    assert find_runs(mlflow, experiment_id, job_dir.name) == [run_id]


def test_a_point_that_the_server_refuses_does_not_hold_up_the_others(surroundings, job_dir):
    notes = []
    record = open_record(surroundings, job_dir, log=notes.append)
    record.params({"train.lr": 0.1})
    record.params({"train.lr": 0.2})
    spool = Spool(job_dir)
    spool.metrics({"test/accuracy": 0.9}, step=1)
    spool.append("artifact", path="not-there.png", folder="")
    assert record.finish("FINISHED", timeout_s=60)
    found = client(surroundings).get_run(record.run_id).data
    assert found.params["train.lr"] == "0.1"
    assert found.metrics["test/accuracy"] == 0.9
    assert any("stays so" in note for note in notes)
    assert any("not-there.png" in note for note in notes)


def test_a_run_that_somebody_deleted_stays_deleted(surroundings, job_dir):
    notes = []
    record = open_record(surroundings, job_dir, log=notes.append)
    assert record.wait_run_id(60)
    client(surroundings).delete_run(record.run_id)
    write_events(job_dir, range(2000))
    assert record.finish("FINISHED", timeout_s=60)
    assert client(surroundings).get_run(record.run_id).info.lifecycle_stage == "deleted"
    assert any("deleted" in note for note in notes)


def test_an_end_that_stands_in_mlflow_is_not_overwritten(surroundings, job_dir):
    record = open_record(surroundings, job_dir)
    assert record.wait_run_id(60)
    client(surroundings).set_terminated(record.run_id, "KILLED")
    assert record.finish("FINISHED", timeout_s=60)
    assert client(surroundings).get_run(record.run_id).info.status == "KILLED"


def test_the_next_command_settles_a_job_whose_process_was_killed(surroundings):
    code = """
import sys, time
from pathlib import Path
from cluster.home import Home, Surroundings
from jobs.record import Record
from jobs.store import Store
surroundings = Surroundings(Home(Path(sys.argv[1])), None, None, None)
store = Store(surroundings.home)
job = store.start(store.create(name="killed", kind="finetune", spec={}).id)
job_dir = surroundings.home.job_dir(job.id)
record = Record(job_dir, surroundings, job_id=job.id, experiment="exp")
record.wait_run_id(60)
record.metrics({"train/loss": 1.0}, step=5)
print(job.id, flush=True)
time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(surroundings.home.root)],
        stdout=subprocess.PIPE,
        text=True,
    )
    job_id = process.stdout.readline().strip()
    process.kill()
    process.wait()
    store = Store(surroundings.home)

    stop_server(surroundings.home)
    (orphan,) = settle(store, surroundings)  # no server: the store is true at once
    assert (orphan.id, orphan.state) == (job_id, State.FAILED)
    assert f"gpt2cls resume {job_id}" in orphan.reason

    mlflow = client(surroundings)
    assert settle(store, surroundings) == []  # the server is back: MLflow is told
    found = mlflow.get_run(Spool(surroundings.home.job_dir(job_id)).head()["run_id"])
    assert found.info.status == "FAILED"
    assert found.data.metrics["train/loss"] == 1.0
    assert deliver_pending(surroundings) == {}


def test_a_server_that_lost_its_database_is_told_everything_anew(tmp_path):
    surroundings = Surroundings(Home(tmp_path / "home"), None, None, None)
    job_dir = surroundings.home.job_dir("j-1")
    client(surroundings)
    record = open_record(surroundings, job_dir)
    write_events(job_dir, range(20))
    assert record.flush(60)
    first = record.run_id
    stop_server(surroundings.home)
    (surroundings.home.mlflow / "mlflow.db").unlink()
    client(surroundings)
    write_events(job_dir, range(20, 40))
    assert record.finish("FINISHED", timeout_s=60)
    assert record.run_id != first
    assert steps_told(surroundings, record.run_id) == once(40)
    stop_server(surroundings.home)
