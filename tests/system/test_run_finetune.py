"""A whole job, as a user runs it, with a real MLflow server."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from commands import Commands, write_job
from safetensors.numpy import load_file

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def done(commands: Commands) -> dict[str, Any]:
    """The document of a job that ran to its end and was registered."""
    job = write_job(commands.folder / "small.yaml", register={"model": "small"})
    return commands.json("run", str(job))


def test_the_document_holds_what_scripts_rely_on(done: dict[str, Any]) -> None:
    assert done["status"] == "FINISHED"
    assert done["model"] == {"name": "small", "version": 1, "alias": "champion"}
    assert done["test"]["rows"] == 222
    low, high = done["test"]["accuracy_ci"]
    assert low <= done["test"]["accuracy"] <= high
    assert done["baselines"]["majority"]["accuracy"] < done["test"]["accuracy"]
    assert done["baselines"]["tfidf"]["accuracy"] > 0.9
    assert set(done["seconds"]) >= {"data", "train", "test", "register"}


def test_mlflow_has_one_finished_run_with_every_step_once(
    commands: Commands, done: dict[str, Any]
) -> None:
    client = commands.mlflow()
    run = client.get_run(done["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["gpt2cls.job_id"] == done["job_id"]
    assert run.data.params["train.lr"] == "0.002"
    assert run.data.metrics["test/accuracy"] == pytest.approx(done["test"]["accuracy"])
    steps = [point.step for point in client.get_metric_history(done["run_id"], "train/loss")]
    assert steps == list(range(1, 114))
    files = {file.path for file in client.list_artifacts(done["run_id"])}
    assert files >= {"job.yaml", "resolved.json", "data_report.json", "report.html", "job.log"}
    figures = {file.path for file in client.list_artifacts(done["run_id"], "figures")}
    assert figures == {"figures/confusion_matrix.png", "figures/reliability.png"}


def test_the_registered_model_labels_a_file(
    commands: Commands, done: dict[str, Any], tmp_path: Path
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("id,text\n7,The striker scored twice in the cup final\n8,Shares fell\n")
    commands.json("predict", "models:/small@champion", str(rows), "-o", str(tmp_path / "out.csv"))
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[0].startswith("id,text,label,score,p_business")
    assert [line.split(",")[0] for line in lines[1:]] == ["7", "8"]


def test_the_same_seed_gives_the_same_weights_and_the_next_version_is_judged(
    commands: Commands, done: dict[str, Any]
) -> None:
    again = commands.json("run", str(commands.folder / "small.yaml"))
    assert best_weights(commands, again) == best_weights(commands, done)
    # Equal, so it does not beat the champion.
    assert again["model"] == {"name": "small", "version": 2, "alias": "challenger"}
    versions = commands.json("models", "small")["versions"]
    assert {v["version"]: v["aliases"] for v in versions} == {1: ["champion"], 2: ["challenger"]}


def test_a_stopped_job_resumes_in_its_run_and_ends_with_the_same_weights(
    commands: Commands, done: dict[str, Any]
) -> None:
    job = write_job(commands.folder / "stopped.yaml", train__checkpoint_every="1000 steps")
    with commands.started("run", str(job), "--json") as process:
        job_dir = commands.wait_for_step(20, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130, commands.stderr.read_text()
    shown = commands.json("show", job_dir.name)
    assert shown["state"] == "STOPPED"
    resumed = commands.json("resume", job_dir.name)
    assert resumed["job_id"] == job_dir.name
    assert best_weights(commands, resumed) == best_weights(commands, done)
    history = commands.mlflow().get_metric_history(resumed["run_id"], "train/loss")
    assert [point.step for point in history] == list(range(1, 114))
    refused = commands.run("resume", job_dir.name)
    assert refused.returncode == 2
    assert "SUCCEEDED" in refused.stderr


def test_two_workers_are_stopped_by_a_signal_with_a_checkpoint(commands: Commands) -> None:
    job = write_job(commands.folder / "two.yaml", train__epochs=1000, cluster={"workers": 2})
    with commands.started("run", str(job), "--json") as process:
        job_dir = commands.wait_for_step(3, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(100) == 130, commands.stderr.read_text()
    shown = commands.json("show", job_dir.name)
    assert shown["state"] == "STOPPED"
    assert "the checkpoint of that step is kept" in shown["reason"]


@pytest.mark.parametrize("workers", [1, 2])
def test_data_that_cannot_be_trained_on_leaves_no_trace(tmp_path: Path, workers: int) -> None:
    commands = Commands(tmp_path / "home", tmp_path)
    (tmp_path / "one.csv").write_text("text,label\na,x\nb,x\nc,x\n")
    data, cluster = {"train": "one.csv"}, {"workers": workers}
    job = write_job(tmp_path / "one.yaml", data=data, cluster=cluster)
    ended = commands.run("run", str(job), "--json")
    assert ended.returncode == 2
    assert not commands.processes()
    assert "one.csv" in json.loads(ended.stdout)["error"]["message"]
    assert not commands.home.exists()


def test_a_gate_that_is_missed_registers_nothing(commands: Commands) -> None:
    job = write_job(
        commands.folder / "gated.yaml",
        name="gated",
        train__max_steps=3,
        register={"model": "gated", "gate": {"metric": "accuracy", "min": 0.99}},
    )
    document = commands.json("run", str(job))
    assert document["model"] is None
    assert "below 0.99" in document["gate"]["reason"]
    assert commands.run("models", "gated").returncode == 2


def best_weights(commands: Commands, document: dict[str, Any]) -> dict[str, bytes]:
    file = commands.home / "jobs" / document["job_id"] / "best" / "model.safetensors"
    return {name: tensor.tobytes() for name, tensor in load_file(file).items()}
