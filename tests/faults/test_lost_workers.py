"""Jobs of the queue whose workers, trials or checkpoints are lost."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Commands
from queues import (
    ONE_CPU,
    assert_all_is_well,
    queue_up,
    show,
    submit,
    wait_for_state,
    wait_for_step,
    wait_until,
    worker_of,
)
from safetensors.numpy import load_file
from sweeps import children, write_sweep

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

LONG = {"train__epochs": 6, "train__checkpoint_every": "20 steps"}


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    with queue_up(tmp_path_factory.mktemp("workers"), no_progress_s=60) as commands:
        yield commands


@pytest.fixture(scope="module")
def undisturbed(commands: Commands) -> dict[str, bytes]:
    """The weights that such a job ends with if nothing happens to it."""
    return weights(
        commands, wait_for_state(commands, submit(commands, "calm", **LONG), "SUCCEEDED")
    )


def test_a_worker_that_is_killed_is_named_and_replaced(commands: Commands) -> None:
    two = {"workers": 2, "cpus_per_worker": 1, "retries": 2}
    calm = wait_for_state(commands, submit(commands, "two", cluster=two, **LONG), "SUCCEEDED")
    job_id = submit(commands, "shot", cluster=two, **LONG)
    wait_for_step(commands, job_id, 50)
    commands.processes("RayTrainWorker")[-1].kill()
    document = wait_for_state(commands, job_id, "SUCCEEDED")
    [attempt] = document["attempts"]
    [(rank, words)] = attempt["lost"][0]["lost"].items()
    assert rank in "01"
    assert "process has died" in words
    assert weights(commands, document) == weights(commands, calm)
    assert "from the checkpoint of step" in commands.run("logs", job_id).stdout
    assert_all_is_well(commands)


def test_a_kill_in_the_middle_of_a_checkpoint_costs_that_one_alone(
    commands: Commands, undisturbed: dict[str, bytes]
) -> None:
    job_id = submit(commands, "torn", **LONG)
    wait_for_step(commands, job_id, 30)
    worker = worker_of(commands, job_id)
    checkpoints = commands.home / "jobs" / job_id / "checkpoints"
    deadline = time.monotonic() + 60
    while not list(checkpoints.glob(".step-*.writing")):
        assert time.monotonic() < deadline, "no checkpoint was ever seen half-written"
    worker.kill()
    assert list(checkpoints.glob(".step-*.writing"))
    document = wait_for_state(commands, job_id, "SUCCEEDED")
    assert [attempt["cause"] for attempt in document["attempts"]] == ["lost", "succeeded"]
    assert not list(checkpoints.glob(".step-*"))
    assert weights(commands, document) == undisturbed
    assert_all_is_well(commands)


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    commands: Commands, undisturbed: dict[str, bytes], damage: str
) -> None:
    job_id = submit(commands, f"damaged-{damage}", **LONG)
    wait_for_step(commands, job_id, 90)
    commands.json("stop", job_id)
    wait_for_state(commands, job_id, "STOPPED")
    newest = sorted((commands.home / "jobs" / job_id / "checkpoints").glob("step-*"))[-1]
    spoil(max(newest.glob("*.safetensors"), key=lambda path: path.stat().st_size), damage)
    commands.json("resume", job_id)
    document = wait_for_state(commands, job_id, "SUCCEEDED")
    words = f"checkpoint of step {int(newest.name[5:])} is damaged"
    assert words in commands.run("logs", job_id).stdout
    assert weights(commands, document) == undisturbed
    assert_all_is_well(commands)


def test_without_a_whole_checkpoint_nothing_begins_again_in_silence(commands: Commands) -> None:
    job_id = submit(commands, "hopeless", **LONG)
    wait_for_step(commands, job_id, 90)
    commands.json("stop", job_id)
    wait_for_state(commands, job_id, "STOPPED")
    for manifest in (commands.home / "jobs" / job_id / "checkpoints").glob("*/manifest.json"):
        spoil(manifest, "cut")
    commands.json("resume", job_id)
    document = wait_for_state(commands, job_id, "FAILED")
    assert "no checkpoint can be used" in document["reason"]
    assert "begin again from step 0" in document["reason"]
    assert_all_is_well(commands)


def test_the_driver_of_a_sweep_is_killed_and_its_finished_trials_stay(commands: Commands) -> None:
    search = {"trials": 6, "scheduler": "none", "max_concurrent": 1}
    job = write_sweep(commands, name="swept", search=search, cluster=ONE_CPU, train__epochs=6)
    job_id = commands.json("submit", job)["job_id"]
    journal = commands.home / "jobs" / job_id / "trials.jsonl"
    wait_until(lambda: num_finished(journal) >= 3, 200, "three trials never ended")
    shown = commands.json("sweep", "show", job_id)["trials"]
    done = {trial["trial"]: trial for trial in shown if trial["status"] == "FINISHED"}
    worker = worker_of(commands, job_id)
    for process in worker.children(recursive=True):
        os.kill(process.pid, signal.SIGKILL)
    worker.kill()
    document = wait_for_state(commands, job_id, "SUCCEEDED")
    assert [attempt["cause"] for attempt in document["attempts"]] == ["lost", "succeeded"]
    trials = document["result"]["trials"]
    assert [trial["trial"] for trial in trials] == [*range(6)]
    for number, before in done.items():
        after = trials[number]
        assert (after["run_id"], after["seconds"]) == (before["run_id"], before["seconds"])
    runs = children(commands, document)
    assert [run.info.status for run in runs] == ["FINISHED"] * 6
    assert_all_is_well(commands)


def num_finished(journal: Path) -> int:
    return journal.read_text().count('"status":"FINISHED"') if journal.exists() else 0


def spoil(path: Path, damage: str) -> None:
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 0x10
        path.write_bytes(content)


def weights(commands: Commands, document: dict[str, Any]) -> dict[str, bytes]:
    document = show(commands, document["job_id"])
    file = commands.home / "jobs" / document["job_id"] / "best" / "model.safetensors"
    return {name: tensor.tobytes() for name, tensor in load_file(file).items()}
