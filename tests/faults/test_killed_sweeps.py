"""Sweeps, and processes of their trials, that are killed or stopped on purpose."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Commands
from memory_groups import starve
from sweeps import children, write_sweep

pytestmark = pytest.mark.faults


def test_a_killed_sweep_goes_on_and_ends_like_one_that_was_not(commands: Commands) -> None:
    search = {"trials": 12, "scheduler": "none"}
    job = write_sweep(commands, name="killed", search=search, train__epochs=6)
    with commands.started("run", job) as process:
        shown = wait_for_trials(commands, "killed", 5)
        process.kill()
        process.wait()
    done = {t["run_id"]: t for t in shown["trials"] if t["status"] == "FINISHED"}
    left = commands.json("sweep", "show", "last")
    assert left["state"] == "FAILED"
    assert "its process" in left["reason"]
    document = commands.json("resume", "last")  # `resume` takes sweeps, too
    assert [t["trial"] for t in document["trials"]] == [*range(12)]
    for trial in document["trials"]:
        assert trial["status"] == "FINISHED"
        assert done.get(trial["run_id"], trial) == trial
    client = commands.mlflow()
    runs = children(commands, document)
    assert len(runs) == 12
    for run in runs:
        assert run.info.status == "FINISHED"
        steps = [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")]
        assert len(steps) == len(set(steps))
    undisturbed = commands.json("run", write_sweep(commands, search=search, train__epochs=6))
    for ours, theirs in zip(document["trials"], undisturbed["trials"], strict=True):
        assert (ours["params"], ours["metric"]) == (theirs["params"], theirs["metric"])


def test_a_trial_whose_end_nobody_wrote_down_is_not_run_again(commands: Commands) -> None:
    """As if the kill had come after the trial's last event and before the driver heard of it."""
    search = {"trials": 2, "scheduler": "none", "max_concurrent": 1}
    job = write_sweep(commands, name="untold", search=search, train__epochs=6)
    with commands.started("run", job) as process:
        before = wait_for_trials(commands, "untold", 1)["trials"][0]
        process.kill()
        process.wait()
    (journal,) = commands.home.glob("jobs/untold-*/trials.jsonl")
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(line for line in lines if '"status":"FINISHED"' not in line))
    (head,) = commands.home.glob("jobs/untold-*/trials/0000/record/run.json")
    head.write_text(json.dumps(json.loads(head.read_text()) | {"ended": None}))
    events = head.parents[1] / "events.jsonl"
    starts = events.read_text().count('"kind": "start"')
    document = commands.json("sweep", "resume", "last")
    assert events.read_text().count('"kind": "start"') == starts
    after = document["trials"][0]
    assert (after["status"], after["metric"]) == ("FINISHED", before["metric"])
    assert {run.info.status for run in children(commands, document)} == {"FINISHED"}
    # And what is done is not begun again where only the end of the sweep has to be made anew.
    assert commands.json("sweep", "resume", "last", "--trials", "2")["trials"] == document["trials"]


def wait_for_trials(commands: Commands, name: str, number: int) -> dict[str, Any]:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        for journal in commands.home.glob(f"jobs/{name}-*/trials.jsonl"):
            if journal.read_text().count('"status":"FINISHED"') >= number:
                return dict(commands.json("sweep", "show", "last"))
        time.sleep(0.1)
    raise AssertionError(commands.stderr.read_text())


def test_the_process_of_a_trial_may_be_killed(commands: Commands) -> None:
    """Killed once it goes on from its checkpoint; killed again and again it fails alone."""
    job = write_sweep(
        commands,
        name="shot",
        search={"trials": 2, "scheduler": "none", "max_concurrent": 1},
        train__epochs=10,
        train__eval_every="5 steps",
        cluster={"retries": 1},
    )
    with commands.started("run", job) as process:
        for _ in range(2):
            kill_trial(commands, "shot", 0)
        assert process.wait(200) == 0, commands.stderr.read_text()
    trials = commands.json("sweep", "show", "last")["trials"]
    assert [t["status"] for t in trials] == ["FAILED", "FINISHED"]
    assert "its process was lost" in trials[0]["cause"]


def test_a_trial_that_runs_out_of_memory_fails_alone_and_says_so(commands: Commands) -> None:
    job = write_sweep(
        commands,
        name="starved",
        search={"trials": 3, "scheduler": "none", "max_concurrent": 1},
        train__epochs=10,
        train__eval_every="5 steps",
        cluster={"retries": 0},
    )
    with commands.started("run", job) as process:
        kill_trial(commands, "starved", 0, starve)
        assert process.wait(200) == 0, commands.stderr.read_text()
    document = commands.json("sweep", "show", "last")
    assert [t["status"] for t in document["trials"]] == ["FAILED", "FINISHED", "FINISHED"]
    assert "out of memory, so the kernel ended it" in document["trials"][0]["cause"]
    client = commands.mlflow()
    tags = [client.get_run(trial["run_id"]).data.tags for trial in document["trials"]]
    assert ["out of memory" in of.get("gpt2cls.cause", "") for of in tags] == [True, False, False]


def shoot(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def kill_trial(
    commands: Commands, name: str, number: int, kill: Callable[[int], None] = shoot
) -> None:
    """Kill the process that trains this trial, once it has made a step since its start."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        for events in commands.home.glob(f"jobs/{name}-*/trials/{number:04d}/events.jsonl"):
            since = events.read_text().rpartition('"kind": "start"')[2]
            workers = commands.processes("run_trial") or commands.processes("ImplicitFunc")
            if '"kind": "step"' in since and workers:
                for worker in workers:
                    kill(worker.pid)
                starts = events.read_text().count('"kind": "start"')
                wait_until_restarted(events, starts, deadline)
                return
        time.sleep(0.05)
    raise AssertionError(commands.stderr.read_text())


def wait_until_restarted(events: Path, starts: int, deadline: float) -> None:
    journal = events.parents[2] / "trials.jsonl"
    while time.monotonic() < deadline:
        if events.read_text().count('"kind": "start"') > starts or "FAILED" in journal.read_text():
            return
        time.sleep(0.05)


def test_a_stop_is_a_checkpoint_and_the_trials_go_on_from_it(commands: Commands) -> None:
    job = write_sweep(
        commands, name="stopped", search={"trials": 2, "scheduler": "none"}, train__epochs=40
    )
    with commands.started("run", job) as process:
        kill_after_steps(commands, "stopped", 20, process.pid)
        assert process.wait(60) == 130
    shown = commands.json("sweep", "show", "last")
    assert shown["state"] == "STOPPED"
    stopped_at = [t["step"] for t in shown["trials"] if t["status"] == "KILLED"]
    assert stopped_at
    document = commands.json("sweep", "resume", "last")
    assert [t["status"] for t in document["trials"]] == ["FINISHED"] * 2
    folder = commands.home / "jobs" / document["job_id"] / "trials"
    resumed = [
        json.loads(line)["step"]
        for path in folder.glob("*/events.jsonl")
        for line in path.read_text().splitlines()
        if '"kind": "start"' in line
    ]
    assert set(stopped_at) <= set(resumed)


def kill_after_steps(commands: Commands, name: str, steps: int, pid: int) -> None:
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        for events in commands.home.glob(f"jobs/{name}-*/trials/*/events.jsonl"):
            if events.read_text().count('"kind": "step"') >= steps:
                os.kill(pid, signal.SIGINT)
                return
        time.sleep(0.05)
    raise AssertionError(commands.stderr.read_text())
