"""Whole commands against a queue: a Ray head, an MLflow server and a controller of its own."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from commands import GPT2CLS, Commands, write_job
from queues import (
    assert_all_is_well,
    queue_up,
    show,
    submit,
    wait_for_state,
    wait_for_step,
    wait_until,
)

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    caps = {"default": {}, "narrow": {"running": 1}}
    with queue_up(tmp_path_factory.mktemp("queue"), queues=caps) as commands:
        yield commands


def test_a_submitted_job_ends_with_a_model_logs_and_one_run(commands: Commands) -> None:
    job_id = submit(commands, "whole", register={"model": "whole"})
    document = wait_for_state(commands, job_id, "SUCCEEDED")
    assert document["result"]["model"]["name"] == "whole"
    assert document["attempts"][0]["cpu_seconds"] > 1
    followed = commands.run("logs", job_id, "-f").stdout
    assert "step 113/113" in followed
    assert "attempt 1" in followed
    assert_all_is_well(commands)


def test_one_key_is_one_job_and_another_job_under_it_is_refused(commands: Commands) -> None:
    first = submit(commands, "keyed", "--key", "k")
    assert submit(commands, "keyed", "--key", "k") == first
    job = write_job(commands.folder / "keyed.yaml", name="keyed", train={"epochs": 3})
    refused = commands.run("submit", str(job), "--key", "k")
    assert refused.returncode == 2
    assert "train.epochs = 1 there, 3 here" in refused.stderr
    commands.json("stop", first)
    wait_for_state(commands, first, "STOPPED", "SUCCEEDED")


def test_a_stopped_job_keeps_a_checkpoint_and_goes_on_in_its_run(commands: Commands) -> None:
    job_id = submit(commands, "halted", train__epochs=8)
    wait_for_step(commands, job_id, 40)
    commands.json("stop", job_id)
    commands.json("stop", job_id)
    stopped = wait_for_state(commands, job_id, "STOPPED")
    assert "step" in stopped["attempts"][0]["reason"]
    commands.json("resume", job_id)
    done = wait_for_state(commands, job_id, "SUCCEEDED")
    assert done["run_id"] == stopped["run_id"]
    assert_all_is_well(commands)


def test_a_higher_priority_makes_room_and_the_other_goes_on_afterwards(commands: Commands) -> None:
    low = submit(commands, "low", train__epochs=10, cluster={"cpus_per_worker": 2})
    wait_for_step(commands, low, 30)
    high = submit(commands, "high", "--priority", "5", cluster={"cpus_per_worker": 2})
    wait_for_state(commands, high, "SUCCEEDED")
    document = wait_for_state(commands, low, "SUCCEEDED")
    assert [attempt["cause"] for attempt in document["attempts"]] == ["preempted", "succeeded"]
    assert_all_is_well(commands)


def test_a_job_of_two_workers_and_a_sweep_run_on_the_cluster(commands: Commands) -> None:
    both = submit(commands, "both", cluster={"workers": 2})
    search = {"trials": 2, "scheduler": "none"}
    space = {"train.lr": {"log_uniform": [1.0e-3, 1.0e-2]}}
    sweep = submit(commands, "search", kind="sweep", search=search, space=space)
    assert wait_for_state(commands, both, "SUCCEEDED")["result"]["test"]["rows"] == 222
    assert len(wait_for_state(commands, sweep, "SUCCEEDED")["result"]["trials"]) == 2
    assert_all_is_well(commands)


def test_a_job_stays_with_its_cluster_where_another_ray_runs(commands: Commands) -> None:
    elsewhere = Commands(commands.folder / "elsewhere", commands.folder)
    alone = write_job(commands.folder / "alone.yaml", cluster={"workers": 2}, train__epochs=20)
    try:
        with elsewhere.started("run", str(alone)) as process:
            elsewhere.wait_for_step(1, process)
            job_id = submit(commands, "loyal", cluster={"workers": 2, "cpus_per_worker": 1})
            wait_for_step(commands, job_id, 1)
            folder = commands.home / "jobs" / job_id / "attempts" / "1"
            address = json.loads((folder / "started.json").read_text())["ray"]
            assert address == commands.json("cluster", "status")["ray"]["address"]
        wait_for_state(commands, job_id, "SUCCEEDED")
    finally:
        elsewhere.end()


def test_a_job_waits_for_another_and_a_cap_holds_the_third(commands: Commands) -> None:
    parent = submit(commands, "parent", "--queue", "narrow", train__epochs=3)
    child = submit(commands, "child", "--after", parent)
    capped = submit(commands, "capped", "--queue", "narrow")
    assert f"after job {parent}" in show(commands, child)["reason"]
    wait_until(lambda: "cap of 1" in show(commands, capped)["reason"], 20, "no cap is named")
    for job_id in (parent, child, capped):
        wait_for_state(commands, job_id, "SUCCEEDED")
    began = {job: show(commands, job)["started_unix_s"] for job in (child, capped)}
    assert min(began.values()) >= show(commands, parent)["ended_unix_s"]


def test_a_typo_is_refused_and_a_job_that_can_never_fit(commands: Commands) -> None:
    before = len(commands.json("jobs")["jobs"])
    job = write_job(commands.folder / "typo.yaml", train={"epoch": 3})
    refused = commands.run("submit", str(job))
    assert (refused.returncode, "did you mean 'train.epochs'" in refused.stderr) == (2, True)
    job = write_job(commands.folder / "huge.yaml", cluster={"gpus_per_worker": 1, "workers": 8})
    refused = commands.run("submit", str(job))
    assert (refused.returncode, "can never hold it" in refused.stderr) == (2, True)
    assert len(commands.json("jobs")["jobs"]) == before


def test_nothing_of_a_job_file_reaches_a_shell(commands: Commands, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for number, hostile in enumerate((f"$(touch {canary})", f"`touch {canary}`;touch {canary}")):
        folder = commands.folder / f"{hostile.replace('/', '_')}"
        folder.mkdir()
        (folder / "rows.csv").write_text("text,label\n" + "good,a\nbad,b\n" * 30)
        data = {"train": str(folder / "rows.csv"), "max_length": 16}
        job_id = submit(commands, f"hostile-{number}", data=data, preset=None)
        wait_for_state(commands, job_id, "SUCCEEDED", "FAILED")
    assert not canary.exists()


def test_nothing_answers_without_a_token(commands: Commands) -> None:
    services = commands.json("cluster", "status")
    ray, controller = services["ray"]["uri"], services["controller"]["uri"]
    asked = [f"{ray}/api/{path}" for path in ("version", "jobs/", "v0/nodes", "v0/actors")]
    asked += [f"{controller}/api/{path}" for path in ("jobs", "status", "tokens", "usage")]
    for token in ({}, {"Authorization": "Bearer wrong"}):
        codes = {uri: httpx.get(uri, headers=token).status_code for uri in asked}
        assert set(codes.values()) <= {401, 403}, codes
    body = {"entrypoint": "true"}
    assert httpx.post(f"{ray}/api/jobs/", json=body).status_code in (401, 403)
    code = "import ray; ray.init(address='" + services["ray"]["address"] + "')"
    environment = commands.environment | {"RAY_AUTH_MODE": "disabled"}
    driver = subprocess.run(
        [GPT2CLS[0], "-c", code], env=environment, capture_output=True, timeout=120
    )
    assert driver.returncode != 0


def test_another_user_sees_through_a_token_and_may_not_stop_what_is_not_hers(
    commands: Commands,
) -> None:
    token = commands.run("token", "add", "ann", "--role", "submitter").stdout.strip()
    uri = commands.json("cluster", "status")["controller"]["uri"]
    theirs = commands.environment | {"GPT2CLS_CONTROLLER": uri, "GPT2CLS_TOKEN": token}
    theirs["GPT2CLS_HOME"] = str(commands.folder / "elsewhere")

    def ann(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*GPT2CLS, *words], env=theirs, cwd=commands.folder, capture_output=True, text=True
        )

    jobs = json.loads(ann("jobs", "--json").stdout)["jobs"]
    assert jobs
    refused = ann("stop", jobs[0]["job_id"])
    assert (refused.returncode, "may not" in refused.stderr) == (2, True)
    job = write_job(commands.folder / "anns.yaml", name="anns", cluster={"cpus_per_worker": 1})
    job_id = ann("submit", str(job)).stdout.strip()
    assert json.loads(ann("show", job_id, "--json").stdout)["user"] == "ann"
    assert ann("stop", job_id).returncode == 0
