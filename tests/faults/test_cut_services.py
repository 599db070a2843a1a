"""A queue whose services are cut off, slow, locked or full while a job runs."""

import itertools
import json
import re
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Commands
from cut_proxy import CutProxy
from losing_proxy import LosesReplies
from queues import (
    assert_all_is_well,
    queue_up,
    show,
    submit,
    wait_for_state,
    wait_for_step,
    wait_until,
)

from cluster.home import Home
from cluster.tracking_server import ensure_server, stop_server, wait_ready
from jobs.tracking import connect, find_runs

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

LONG = {"train__epochs": 12, "train__checkpoint_every": "20 steps"}


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    with queue_up(tmp_path_factory.mktemp("cut"), unreachable_note_s=3) as commands:
        yield commands


def test_a_controller_that_is_cut_off_from_the_cluster_does_nothing_and_catches_up(
    commands: Commands,
) -> None:
    record = commands.home / "ray" / "server.json"
    place = json.loads(record.read_text())
    with CutProxy(place["uri"]) as line:
        record.write_text(json.dumps(place | {"uri": line.uri}))
        job_id = submit(commands, "apart", **LONG)
        wait_for_step(commands, job_id, 50)
        line.cut()
        wait_until(lambda: show(commands, job_id)["unknown_since_unix_s"], 60, "never UNKNOWN")
        waits = submit(commands, "waits")
        time.sleep(20)
        assert show(commands, waits)["state"] == "QUEUED"
        assert "no cluster answers" in show(commands, waits)["reason"]
        line.mend()
        documents = [wait_for_state(commands, one, "SUCCEEDED") for one in (job_id, waits)]
        assert [len(document["attempts"]) for document in documents] == [1, 1]
        record.write_text(json.dumps(place))
    told = re.findall(r"step (\d+)/1356 ", commands.run("logs", job_id).stdout)
    steps = [int(step) for step in told]
    assert (steps[0], steps[-1]) == (1, 1356)
    assert all(0 <= b - a < 400 for a, b in itertools.pairwise(steps)), steps
    assert_all_is_well(commands)


def test_training_does_not_wait_for_mlflow_and_what_it_lacked_arrives_once(
    commands: Commands,
) -> None:
    job_id = submit(commands, "unrecorded", **LONG | {"train__epochs": 40})
    wait_for_step(commands, job_id, 50)
    for server in commands.processes("tracking_main"):
        server.kill()
    wait_for_step(commands, job_id, 900)
    assert show(commands, job_id)["record_lag"] > 100
    assert "on their way to MLflow" in commands.run("show", job_id).stdout
    assert commands.run("cluster", "up").returncode == 0
    document = wait_for_state(commands, job_id, "SUCCEEDED")
    assert len(document["attempts"]) == 1
    wait_until(lambda: show(commands, job_id)["record_lag"] == 0, 60, "it never caught up")
    assert_all_is_well(commands)


def test_a_database_of_mlflow_that_is_locked_delays_the_record_alone(commands: Commands) -> None:
    job_id = submit(commands, "locked", **LONG)
    wait_for_step(commands, job_id, 50)
    [database] = (commands.home / "mlflow").glob("*.db")
    with sqlite3.connect(database, timeout=60, isolation_level=None) as held:
        held.execute("BEGIN EXCLUSIVE")
        wait_for_step(commands, job_id, 600)
        time.sleep(15)
        held.execute("ROLLBACK")
    wait_for_state(commands, job_id, "SUCCEEDED")
    assert_all_is_well(commands)


def test_storage_that_is_full_fails_the_job_in_words_and_room_lets_it_go_on(
    commands: Commands,
) -> None:
    folder = commands.folder / "small"
    folder.mkdir()
    asked = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if subprocess.run(asked, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        job_id = submit(commands, "full", cluster={"cpus_per_worker": 1, "retries": 0}, **LONG)
        checkpoints = commands.home / "jobs" / job_id / "checkpoints"
        checkpoints.parent.mkdir(parents=True, exist_ok=True)
        checkpoints.symlink_to(folder, target_is_directory=True)
        wait_for_step(commands, job_id, 50)
        ballast = folder / "ballast"
        with ballast.open("wb") as file:
            try:
                while file.write(b"x" * 65536):
                    file.flush()
            except OSError:
                pass
        document = wait_for_state(commands, job_id, "FAILED")
        assert "storage full" in document["reason"]
        assert "of 64 MiB are free" in document["reason"]
        ballast.unlink()
        commands.json("resume", job_id)
        document = wait_for_state(commands, job_id, "SUCCEEDED")
        assert "from the checkpoint of step" in commands.run("logs", job_id).stdout
        assert_all_is_well(commands)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_replies_of_mlflow_that_are_lost_make_neither_a_second_run_nor_a_second_version(
    tmp_path: Path,
) -> None:
    home = Home(tmp_path / "mlflow")
    server = ensure_server(home)
    try:
        wait_ready(home, server)
        proxy = LosesReplies(server.uri)
        proxy.lost = {"runs/create": 1, "runs/log-batch": 3, "model-versions/create": 1}
        with queue_up(tmp_path, variables={"MLFLOW_TRACKING_URI": proxy.uri}) as commands:
            job_id = submit(commands, "once", register={"model": "once"})
            document = wait_for_state(commands, job_id, "SUCCEEDED")
            assert proxy.num_lost == 5
            client = connect(server.uri)
            run = client.get_run(document["run_id"])
            assert find_runs(client, run.info.experiment_id, job_id) == [document["run_id"]]
            versions = client.search_model_versions("name = 'once'")
            assert [int(version.version) for version in versions] == [1]
            points = client.get_metric_history(document["run_id"], "train/loss")
            assert sorted(point.step for point in points) == list(range(1, 114))
    finally:
        stop_server(home)
