"""A queue whose parts are killed and frozen while a job runs."""

import signal
import time
from collections.abc import Iterator

import pytest
from commands import Commands
from memory_groups import starve
from queues import (
    assert_all_is_well,
    queue_up,
    show,
    submit,
    wait_for_state,
    wait_for_step,
    wait_until,
    worker_of,
)

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

LONG = {"train__epochs": 12, "train__checkpoint_every": "20 steps"}
STEPS = 12 * 113


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    with queue_up(tmp_path_factory.mktemp("cluster"), no_progress_s=30) as commands:
        yield commands


def kill(commands: Commands, words: str, number: int = signal.SIGKILL) -> None:
    """Send a signal to the processes with these words in their command line."""
    found = commands.processes(words)
    assert found, words
    for process in found:
        process.send_signal(number)


def test_an_attempt_that_is_killed_is_tried_again_from_its_checkpoint(commands: Commands) -> None:
    job_id = submit(commands, "killed", **LONG)
    wait_for_step(commands, job_id, 50)
    worker_of(commands, job_id).kill()
    document = wait_for_state(commands, job_id, "SUCCEEDED")
    assert [attempt["cause"] for attempt in document["attempts"]] == ["lost", "succeeded"]
    assert "signal 9" in document["attempts"][0]["reason"]
    assert_all_is_well(commands)


def test_a_job_that_runs_out_of_memory_says_so_and_is_not_tried_again(commands: Commands) -> None:
    other = submit(commands, "modest", **LONG)
    job_id = submit(commands, "starved", **LONG)
    wait_for_step(commands, job_id, 30)
    starve(worker_of(commands, job_id).pid)
    document = wait_for_state(commands, job_id, "FAILED")
    assert [attempt["cause"] for attempt in document["attempts"]] == ["memory"]
    assert "memory was exhausted" in document["reason"]
    assert len(wait_for_state(commands, other, "SUCCEEDED")["attempts"]) == 1
    assert_all_is_well(commands)


def test_a_job_that_hangs_is_ended_and_tried_again(commands: Commands) -> None:
    job_id = submit(commands, "hung", **LONG)
    wait_for_step(commands, job_id, 50)
    worker_of(commands, job_id).send_signal(signal.SIGSTOP)
    document = wait_for_state(commands, job_id, "SUCCEEDED")
    causes = [attempt["cause"] for attempt in document["attempts"]]
    assert causes == ["no_progress", "succeeded"]
    assert_all_is_well(commands)


def test_a_control_service_that_is_killed_comes_back_and_the_job_hears_nothing(
    commands: Commands,
) -> None:
    job_id = submit(commands, "headless", **LONG)
    wait_for_step(commands, job_id, 30)
    kill(commands, "gcs_server")
    document = wait_for_state(commands, job_id, "SUCCEEDED")
    assert len(document["attempts"]) == 1
    assert_all_is_well(commands)


def test_a_job_under_a_frozen_dashboard_is_unknown_and_goes_on(commands: Commands) -> None:
    job_id = submit(commands, "frozen", **LONG)
    wait_for_step(commands, job_id, 30)
    kill(commands, "dashboard/dashboard.py", signal.SIGSTOP)
    try:
        wait_until(lambda: show(commands, job_id)["unknown_since_unix_s"], 40, "never UNKNOWN")
        assert show(commands, job_id)["state"] == "RUNNING"
    finally:
        kill(commands, "dashboard/dashboard.py", signal.SIGCONT)
    document = wait_for_state(commands, job_id, "SUCCEEDED")
    assert len(document["attempts"]) == 1
    assert document["unknown_since_unix_s"] is None
    assert_all_is_well(commands)


def test_a_controller_that_is_killed_finds_its_jobs_where_they_are(commands: Commands) -> None:
    job_id = submit(commands, "orphan", **LONG)
    wait_for_step(commands, job_id, 30)
    kill(commands, "jobs.controller_main")
    time.sleep(3)
    assert commands.run("cluster", "up").returncode == 0
    document = wait_for_state(commands, job_id, "SUCCEEDED")
    assert len(document["attempts"]) == 1
    assert_all_is_well(commands)


def test_a_head_that_is_lost_is_survived_and_what_it_left_at_work_goes_on(
    commands: Commands,
) -> None:
    job_id = submit(commands, "lost-head", **LONG)
    patient = submit(commands, "patient", cluster={"cpus_per_worker": 2})
    wait_for_step(commands, job_id, 30)
    kill(commands, "cluster.head_main")
    wait_until(lambda: not commands.processes("raylet"), 30, "the head's parts outlive it")
    assert commands.run("cluster", "up").returncode == 0
    document = wait_for_state(commands, job_id, "SUCCEEDED")
    assert [attempt["cause"] for attempt in document["attempts"]] == ["succeeded"]
    assert len(wait_for_state(commands, patient, "SUCCEEDED")["attempts"]) == 1
    assert_all_is_well(commands)


def test_a_head_that_is_lost_with_its_jobs_is_survived(commands: Commands) -> None:
    job_id = submit(commands, "lost-all", **LONG)
    wait_for_step(commands, job_id, 30)
    kill(commands, "cluster.head_main")
    worker_of(commands, job_id).kill()
    assert commands.run("cluster", "up").returncode == 0
    document = wait_for_state(commands, job_id, "SUCCEEDED")
    assert [attempt["cause"] for attempt in document["attempts"]] == ["lost", "succeeded"]
    assert_all_is_well(commands)


def test_a_job_at_work_when_the_cluster_is_shut_down_goes_on_later(commands: Commands) -> None:
    job_id = submit(commands, "overnight", **LONG)
    wait_for_step(commands, job_id, 30)
    assert commands.run("cluster", "down").returncode == 0
    wait_until(lambda: not commands.processes(), 10, "`cluster down` left processes")
    assert show(commands, job_id)["state"] == "QUEUED"
    assert commands.run("cluster", "up").returncode == 0
    document = wait_for_state(commands, job_id, "SUCCEEDED")
    assert [attempt["cause"] for attempt in document["attempts"]] == ["preempted", "succeeded"]
    assert_all_is_well(commands)
