"""Jobs whose processes or services are killed on purpose."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from commands import Commands, write_job
from safetensors.numpy import load_file

pytestmark = pytest.mark.faults


def test_a_killed_worker_is_replaced_and_the_weights_are_those_of_an_unbroken_run(
    commands: Commands,
) -> None:
    settings: dict[str, Any] = {
        "train__checkpoint_every": "20 steps",
        "cluster": {"workers": 2, "retries": 2},
    }
    unbroken = commands.json("run", str(write_job(commands.folder / "unbroken.yaml", **settings)))
    job = write_job(commands.folder / "broken.yaml", **settings)
    with commands.started("run", str(job), "--json") as process:
        commands.wait_for_step(30, process)
        victim = commands.processes("RayTrainWorker")[-1]
        victim.send_signal(signal.SIGKILL)
        assert process.wait(250) == 0, commands.stderr.read_text()
    broken = json.loads(commands.stdout.read_text())
    said = commands.stderr.read_text()
    assert "workers lost" in said
    assert "from the checkpoint of step" in said
    assert weights(commands, broken) == weights(commands, unbroken)
    assert recorded_steps(commands, broken["run_id"]) == list(range(1, 114))
    assert runs_of(commands, broken["job_id"]) == [(broken["run_id"], "FINISHED")]


def test_a_job_killed_with_its_process_is_settled_by_the_next_look_and_can_be_resumed(
    commands: Commands,
) -> None:
    unbroken = commands.json("run", str(write_job(commands.folder / "whole.yaml")))
    job = write_job(commands.folder / "cut.yaml", train__checkpoint_every="20 steps")
    with commands.started("run", str(job), "--json") as process:
        job_dir = commands.wait_for_step(50, process)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    shown = commands.json("show", job_dir.name)
    assert shown["state"] == "FAILED"
    assert "gpt2cls resume" in shown["reason"]
    [(_, status)] = runs_of(commands, job_dir.name)
    assert status == "FAILED"
    resumed = commands.json("resume", job_dir.name)
    assert weights(commands, resumed) == weights(commands, unbroken)
    assert recorded_steps(commands, resumed["run_id"]) == list(range(1, 114))
    assert runs_of(commands, job_dir.name) == [(resumed["run_id"], "FINISHED")]


def test_training_goes_on_while_mlflow_is_away_and_every_point_arrives_once(
    commands: Commands,
) -> None:
    job = write_job(commands.folder / "away.yaml", train__epochs=3)
    with commands.started("run", str(job), "--json") as process:
        job_dir = commands.wait_for_step(5, process)
        wait_for_run(commands)
        for server in commands.processes("tracking_main"):
            server.send_signal(signal.SIGKILL)
        commands.wait_for_step(60, process)
        assert process.wait(250) == 0, commands.stderr.read_text()
    document = json.loads(commands.stdout.read_text())
    assert document["job_id"] == job_dir.name
    assert recorded_steps(commands, document["run_id"]) == list(range(1, 340))


def wait_for_run(commands: Commands) -> None:
    """Until the record of the running job has its MLflow run."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        heads = [json.loads(p.read_text()) for p in commands.home.glob("jobs/*/record/run.json")]
        if heads and all(head.get("run_id") for head in heads):
            return
        time.sleep(0.2)
    raise AssertionError("the record never got its run")


def runs_of(commands: Commands, job_id: str) -> list[tuple[str, str]]:
    client = commands.mlflow()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.`gpt2cls.job_id` = '{job_id}'")
    return [(run.info.run_id, run.info.status) for run in runs]


def recorded_steps(commands: Commands, run_id: str) -> list[int]:
    history = commands.mlflow().get_metric_history(run_id, "train/loss")
    return [point.step for point in history]


def weights(commands: Commands, document: dict[str, Any]) -> dict[str, bytes]:
    file: Path = commands.home / "jobs" / document["job_id"] / "best" / "model.safetensors"
    return {name: tensor.tobytes() for name, tensor in load_file(file).items()}
