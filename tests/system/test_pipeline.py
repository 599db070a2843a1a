"""Pipelines from the command line, with real training and a real MLflow server."""

import csv
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Commands, last_step
from sweeps import children

pytestmark = pytest.mark.system
STAGES = ["small", "label", "again", "check"]
WORDS = {"sport": "goal match team cup", "money": "bank share price fund"}
MODEL = {"backbone": "gpt2-tiny", "tokenizer": {"train": 300}, "pooling": "mean"}
TRAIN = {"epochs": 1, "lr": 2.0e-3, "precision": "fp32"}


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    folder = tmp_path_factory.mktemp("pipelines")
    commands = Commands(folder / "home", folder)
    rows = [(f"the {word} of day {i}", label) for i in range(30) for label, words in WORDS.items()
            for word in words.split()]  # fmt: skip
    write_rows(folder / "rows.csv", ("text", "label"), rows)
    write_rows(folder / "texts.csv", ("text",), [(text,) for text, _ in rows])
    yield commands
    commands.end()
    assert not commands.processes(), "`cluster down` left processes"


def write_rows(path: Path, head: tuple[str, ...], rows: list[Any]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])


def write_pipeline(commands: Commands, name: str = "four", **train: Any) -> str:
    """Train, label with the model, train on the labels, measure; `train` is of the second."""
    data = {"validation": "rows.csv", "test": "rows.csv", "max_length": 16}
    stages: dict[str, Any] = {
        # In another order than they run: `check` is the last one.
        "check": {"job": {"kind": "evaluate", "model": "${stages.again.model}",
                          "data": {"test": "rows.csv"}}},
        "small": {"job": {"kind": "finetune", "data": {"train": "rows.csv"} | data,
                          "model": MODEL, "train": TRAIN}},
        "label": {"job": {"kind": "predict", "model": "${stages.small.model}",
                          "input": "texts.csv", "output": f"{name}.csv"}},
        "again": {"needs": ["small"],
                  "job": {"kind": "finetune", "data": {"train": "${stages.label.output}"} | data,
                          "model": MODEL, "train": TRAIN | train}},
    }  # fmt: skip
    path = commands.folder / f"{name}.yaml"
    path.write_text(json.dumps({"kind": "pipeline", "name": name, "stages": stages}, indent=1))
    return str(path)


@pytest.fixture(scope="module")
def done(commands: Commands) -> dict[str, Any]:
    return dict(commands.json("run", write_pipeline(commands)))


def by_name(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {stage["stage"]: stage for stage in document["stages"]}


def events(commands: Commands, document: dict[str, Any], stage: str) -> Path:
    return commands.home / "jobs" / document["job_id"] / "stages" / stage / "events.jsonl"


def test_four_stages_run_in_the_order_of_their_needs(
    commands: Commands, done: dict[str, Any]
) -> None:
    assert [stage["stage"] for stage in done["stages"]] == STAGES
    assert {stage["state"] for stage in done["stages"]} == {"FINISHED"}
    assert not any(stage["reused"] for stage in done["stages"])
    stages = by_name(done)
    assert stages["again"]["needs"] == ["small", "label"]
    assert stages["check"]["metrics"]["test/accuracy"] == pytest.approx(
        stages["again"]["metrics"]["test/accuracy"]
    )
    assert (commands.folder / "four.csv").read_bytes() == Path(
        stages["label"]["output"]
    ).read_bytes()
    document = commands.json("evaluate", stages["small"]["output"], "rows.csv")
    assert document["test"]["accuracy"] == stages["small"]["metrics"]["test/accuracy"]


def test_the_pipeline_is_one_run_with_a_run_under_it_for_each_stage(
    commands: Commands, done: dict[str, Any]
) -> None:
    assert commands.mlflow().get_run(done["run_id"]).info.status == "FINISHED"
    runs = {run.info.run_name: run for run in children(commands, done)}
    assert {name: run.info.status for name, run in runs.items()} == dict.fromkeys(
        STAGES, "FINISHED"
    )
    for name, stage in by_name(done).items():
        assert stage["run_id"] == runs[name].info.run_id
        assert runs[name].data.tags["gpt2cls.address"] == stage["address"]
        assert runs[name].data.metrics.items() >= stage["metrics"].items()
    assert runs["again"].data.params["train.lr"] == "0.002"


def test_a_second_run_reuses_every_stage(commands: Commands, done: dict[str, Any]) -> None:
    (commands.folder / "four.csv").unlink()
    again = commands.json("run", write_pipeline(commands))
    assert [stage["reused"] for stage in again["stages"]] == [True] * 4
    assert again["seconds"]["total"] < done["seconds"]["total"] / 2
    for name, stage in by_name(again).items():
        first = by_name(done)[name]
        assert stage["job"] == done["job_id"]
        assert {k: stage[k] for k in ("address", "metrics", "output")} == {
            k: first[k] for k in ("address", "metrics", "output")
        }
    assert not events(commands, again, "small").exists()
    assert (commands.folder / "four.csv").exists()
    first_runs = {run.info.run_name: run.info.run_id for run in children(commands, done)}
    for run in children(commands, again):
        assert run.info.status == "FINISHED"
        assert run.data.tags["gpt2cls.reused_from"] == first_runs[run.info.run_name]
    shown = commands.run("show", "last").stdout
    assert shown.count("reused") == 4


def test_a_changed_stage_runs_again_with_those_that_need_it_and_no_other(
    commands: Commands, done: dict[str, Any]
) -> None:
    changed = commands.json("run", write_pipeline(commands, lr=1.0e-3))
    assert {s["stage"]: s["reused"] for s in changed["stages"]} == {
        "small": True, "label": True, "again": False, "check": False,
    }  # fmt: skip


def test_what_was_damaged_is_made_again_and_equal_results_are_reused(
    commands: Commands, done: dict[str, Any]
) -> None:
    model = Path(by_name(done)["small"]["output"])
    with (model / "head.safetensors").open("ab") as file:
        file.write(b"x")
    ended = commands.run("run", write_pipeline(commands), "--json")
    assert "head.safetensors was altered after it was made" in ended.stderr
    again = json.loads(ended.stdout)
    assert [stage["reused"] for stage in again["stages"]] == [False, True, True, True]


def test_a_stage_killed_half_way_goes_on_from_its_checkpoint(commands: Commands) -> None:
    job = write_pipeline(commands, "killed", epochs=30, checkpoint_every="5 steps")
    with commands.started("run", job, "--json") as process:
        job_dir = wait_for_stage(commands, "killed", "again", 40, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    at_kill = last_step(job_dir / "stages" / "again" / "events.jsonl")
    shown = commands.json("show", job_dir.name)
    assert shown["state"] == "FAILED"
    assert [s["state"] for s in shown["stages"]] == ["FINISHED", "FINISHED", "KILLED", "PENDING"]
    resumed = commands.json("resume", job_dir.name)
    assert [stage["state"] for stage in resumed["stages"]] == ["FINISHED"] * 4
    assert [stage["reused"] for stage in resumed["stages"][2:]] == [False, False]
    starts = [event for line in (job_dir / "stages" / "again" / "events.jsonl").open()
              if (event := json.loads(line))["kind"] == "start"]  # fmt: skip
    assert len(starts) == 2
    assert 0 < starts[1]["step"] <= at_kill
    assert commands.mlflow().get_run(resumed["run_id"]).info.status == "FINISHED"
    runs = {run.info.run_name: run.info for run in children(commands, resumed)}
    assert {run.status for run in runs.values()} == {"FINISHED"}
    assert len(children(commands, resumed)) == 4
    history = commands.mlflow().get_metric_history(runs["again"].run_id, "train/loss")
    assert [point.step for point in history] == [*range(1, 451)]
    assert commands.run("resume", job_dir.name).returncode == 2


def wait_for_stage(commands: Commands, name: str, stage: str, step: int, process: Any) -> Path:
    """Wait until a stage of a pipeline has made so many steps; the pipeline's folder."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        assert process.poll() is None, commands.stderr.read_text()
        for path in commands.home.glob(f"jobs/{name}-*/stages/{stage}/events.jsonl"):
            if last_step(path) >= step:
                return path.parents[2]
        time.sleep(0.05)
    raise AssertionError(f"no step {step}: {commands.stderr.read_text()}")


def test_a_stop_ends_the_stage_with_a_checkpoint_and_the_runs_as_killed(
    commands: Commands,
) -> None:
    job = write_pipeline(commands, "stopped", epochs=2000, checkpoint_every="1000 steps")
    with commands.started("run", job, "--json") as process:
        job_dir = wait_for_stage(commands, "stopped", "again", 20, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130, commands.stderr.read_text()
    shown = commands.json("show", job_dir.name)
    assert shown["state"] == "STOPPED"
    assert "stage again: stopped after step" in shown["reason"]
    assert shown["stages"][2]["state"] == "KILLED"
    statuses = {run.info.run_name: run.info.status for run in children(commands, shown)}
    assert statuses == {"small": "FINISHED", "label": "FINISHED", "again": "KILLED"}
    assert any((job_dir / "stages" / "again" / "checkpoints").iterdir())


def test_a_stage_that_fails_is_named_and_goes_on_once_its_input_is_repaired(
    commands: Commands,
) -> None:
    texts = commands.folder / "texts.csv"
    whole = texts.read_bytes()
    texts.write_text("words\nsome\n")
    job = write_pipeline(commands, "failing")
    ended = commands.run("run", job, "--json")
    assert ended.returncode == 1
    assert "stage label: " in json.loads(ended.stdout)["error"]["message"]
    shown = commands.json("show", "last")
    assert [s["state"] for s in shown["stages"]] == ["FINISHED", "FAILED", "PENDING", "PENDING"]
    statuses = {run.info.run_name: run.info.status for run in children(commands, shown)}
    assert statuses == {"small": "FINISHED", "label": "FAILED"}
    texts.write_bytes(whole)
    resumed = commands.json("resume", "last")
    assert {stage["state"] for stage in resumed["stages"]} == {"FINISHED"}
    assert resumed["run_id"] == shown["run_id"]


def test_two_stages_have_two_workers_each(commands: Commands) -> None:
    job = {"kind": "finetune", "data": {"train": "rows.csv", "max_length": 16}, "model": MODEL,
           "train": TRAIN | {"max_steps": 2}, "cluster": {"workers": 2}}  # fmt: skip
    other = job | {"model": {"backbone": "${stages.one.model}"}}
    stages = {"one": {"job": job}, "two": {"job": other}}
    path = commands.folder / "workers.yaml"
    path.write_text(json.dumps({"kind": "pipeline", "name": "workers", "stages": stages}))
    document = commands.json("run", str(path))
    assert [stage["state"] for stage in document["stages"]] == ["FINISHED", "FINISHED"]
    assert not commands.processes("ray")
