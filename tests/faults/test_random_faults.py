"""A stream of small jobs while something breaks every few seconds."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from commands import Commands
from queues import FINAL, assert_all_is_well, queue_up, show, submit, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]

SEED = int(os.environ.get("GPT2CLS_FAULT_SEED", "20"))
NUM_FAULTS = int(os.environ.get("GPT2CLS_FAULTS", "50"))
JOBS_AT_ONCE = 3
PATIENT = {"cpus_per_worker": 1, "retries": 100}


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    with queue_up(tmp_path_factory.mktemp("random")) as commands:
        yield commands


def killed(commands: Commands, words: str) -> str:
    found = commands.processes(words)
    for process in found:
        _send(process, signal.SIGKILL)
    return f"{words}: {len(found)} killed"


def frozen(commands: Commands, words: str) -> str:
    found = commands.processes(words)
    for process in found:
        _send(process, signal.SIGSTOP)
    time.sleep(4)
    for process in found:
        _send(process, signal.SIGCONT)
    return f"{words}: {len(found)} frozen for 4 s"


def _send(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def restarted(commands: Commands, words: str) -> str:
    said = killed(commands, words)
    up = commands.run("cluster", "up")
    assert up.returncode == 0, up.stderr
    return f"{said}, and started again"


def stopped_and_resumed(commands: Commands, _words: str) -> str:
    live = [row for row in commands.json("jobs")["jobs"] if row["state"] not in FINAL]
    if not live:
        return "no job to stop"
    job_id = live[0]["job_id"]
    commands.json("stop", job_id)
    wait_until(lambda: show(commands, job_id)["state"] in FINAL, 120, "never stopped")
    if show(commands, job_id)["state"] == "STOPPED":
        commands.json("resume", job_id)
    return f"{job_id} stopped and resumed"


FAULTS: list[tuple[int, Callable[[Commands, str], str], str]] = [
    (4, killed, "-m jobs.work"),
    (2, killed, "gcs_server"),
    (2, killed, "dashboard/dashboard.py"),
    (2, frozen, "dashboard/dashboard.py"),
    (2, frozen, "-m jobs.work"),
    (2, frozen, "jobs.controller_main"),
    (3, restarted, "jobs.controller_main"),
    (2, restarted, "cluster.tracking_main"),
    (1, restarted, "cluster.head_main"),
    (2, stopped_and_resumed, ""),
]
"""How often, what is done, and to which processes."""


def test_every_job_ends_once_whatever_breaks(commands: Commands, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    accepted: list[str] = []
    weights = [weight for weight, _, _ in FAULTS]
    for number in range(NUM_FAULTS):
        live = [row for row in commands.json("jobs")["jobs"] if row["state"] not in FINAL]
        for _ in range(JOBS_AT_ONCE - len(live)):
            settings = {"train__epochs": 4, "train__checkpoint_every": "20 steps"}
            name = f"job-{len(accepted)}"
            accepted.append(submit(commands, name, cluster=PATIENT, **settings))
        time.sleep(chance.uniform(1.0, 6.0))
        [(_, fault, words)] = chance.choices(FAULTS, weights)
        print(f"fault {number + 1}: {fault(commands, words)}", flush=True)
    assert commands.run("cluster", "up").returncode == 0
    for job_id in accepted:
        wait_until(lambda: show(commands, job_id)["state"] in FINAL, 600, job_id)  # noqa: B023
        assert show(commands, job_id)["state"] == "SUCCEEDED", show(commands, job_id)
    assert sorted(row["job_id"] for row in commands.json("jobs")["jobs"]) == sorted(accepted)
    assert_all_is_well(commands)
