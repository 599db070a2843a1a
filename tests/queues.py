"""A queue as a test uses it: real services, small jobs, and what must hold whatever happened."""

import itertools
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from commands import Commands, last_step, write_job

FINAL = ("SUCCEEDED", "FAILED", "STOPPED")
ONE_CPU = {"cpus_per_worker": 1}


@contextmanager
def queue_up(
    folder: Path, *words: str, variables: Mapping[str, str] | None = None, **config: Any
) -> Iterator[Commands]:
    """`gpt2cls cluster up` in a state folder of its own; afterwards nothing of it is left."""
    commands = Commands(folder / "home", folder, variables or {})
    commands.home.mkdir()
    (commands.home / "controller.yaml").write_text(json.dumps(config))
    try:
        up = commands.run("cluster", "up", *words)
        assert up.returncode == 0, up.stderr
        yield commands
    finally:
        commands.end()
    wait_until(lambda: not commands.processes(), 10, "`cluster down` left processes")


def submit(commands: Commands, name: str, *words: str, **settings: Any) -> str:
    """Submit a small job on one CPU; its id."""
    settings = {"name": name, "cluster": ONE_CPU} | settings
    job = write_job(commands.folder / f"{name}.yaml", **settings)
    ended = commands.run("submit", str(job), *words)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip().splitlines()[-1]


def show(commands: Commands, job_id: str) -> dict[str, Any]:
    document: dict[str, Any] = commands.json("show", job_id)
    return document


def wait_for_state(
    commands: Commands, job_id: str, *states: str, timeout_s: float = 240
) -> dict[str, Any]:
    """Wait until a job is in one of these states; what `show` says then."""
    deadline = time.monotonic() + timeout_s
    while True:
        document = show(commands, job_id)
        if document["state"] in states:
            return document
        assert document["state"] not in FINAL, document
        assert time.monotonic() < deadline, (document, server_log(commands))
        time.sleep(0.3)


def wait_for_step(commands: Commands, job_id: str, step: int, timeout_s: float = 200) -> None:
    """Wait until a job has made so many steps."""
    events = commands.home / "jobs" / job_id / "events.jsonl"
    wait_until(lambda: events.exists() and last_step(events) >= step, timeout_s, f"no step {step}")


def wait_until(is_so: Any, timeout_s: float, words: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, words
        time.sleep(0.1)


def server_log(commands: Commands) -> str:
    return (commands.home / "controller" / "server.log").read_text()


def worker_of(commands: Commands, job_id: str) -> psutil.Process:
    """The process of the attempt that lives."""
    named = f"-m jobs.work {job_id} "
    found = [p for p in commands.processes(named) if "python" in p.name()]
    assert found, server_log(commands)
    return found[-1]


def assert_all_is_well(commands: Commands) -> None:
    """The invariants of every fault, over all jobs of a state folder."""
    client = commands.mlflow()
    for row in commands.json("jobs")["jobs"]:
        document = show(commands, row["job_id"])
        assert_history_is_true(document)
        if document["state"] in FINAL and document["run_id"]:
            assert_record_agrees(client, document)
    busy = {row["job_id"] for row in commands.json("jobs")["jobs"] if row["state"] not in FINAL}
    left = [p.cmdline() for p in commands.processes("-m jobs.work")]
    assert all(any(job_id in " ".join(line) for job_id in busy) for line in left), left
    assert_usage_is_the_sum(commands)


def assert_history_is_true(document: dict[str, Any]) -> None:
    """One job of one request; an end is an end; one attempt at a time; every state led on."""
    events = [event for event in document["events"] if event["old"] != event["new"]]
    assert [event["new"] for event in events][-1] == document["state"]
    for before, after in itertools.pairwise(events):
        assert after["old"] == before["new"], document["events"]
        assert before["new"] not in FINAL or "resumed" in after["reason"], document["events"]
    attempts = document["attempts"]
    assert [attempt["attempt"] for attempt in attempts] == list(range(1, len(attempts) + 1))
    for before, after in itertools.pairwise(attempts):
        assert before["ended_unix_s"] is not None
        assert before["ended_unix_s"] <= after["started_unix_s"]
    if document["state"] in FINAL:
        assert all(attempt["ended_unix_s"] is not None for attempt in attempts)


def assert_record_agrees(client: Any, document: dict[str, Any]) -> None:
    """One run, whose status is the job's, with every step once."""
    status = {"SUCCEEDED": "FINISHED", "FAILED": "FAILED", "STOPPED": "KILLED"}
    run = client.get_run(document["run_id"])
    words = f"tags.`gpt2cls.job_id` = '{document['job_id']}'"
    runs = client.search_runs([run.info.experiment_id], words)
    assert [found.info.run_id for found in runs] == [document["run_id"]]
    assert run.info.status == status[document["state"]], document["job_id"]
    if document["kind"] == "finetune":
        points = client.get_metric_history(document["run_id"], "train/loss")
        steps = [point.step for point in points]
        assert steps == list(range(1, len(steps) + 1)), document["job_id"]


def assert_usage_is_the_sum(commands: Commands) -> None:
    usage = commands.json("cluster", "usage")["usage"]
    spent = sum(
        attempt["cpu_seconds"]
        for row in commands.json("jobs")["jobs"]
        for attempt in show(commands, row["job_id"])["attempts"]
    )
    assert abs(sum(row["cpu_seconds"] for row in usage) - spent) < 0.1 + 0.01 * spent
