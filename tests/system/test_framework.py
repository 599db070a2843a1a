"""From a table of which few rows have a label to a served model, with one command."""

import csv
import json
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from commands import Commands, last_step
from sweeps import children
from test_pipeline import by_name, events, wait_for_stage, write_rows

from gpt2cls.data.rows import Columns
from gpt2cls.data.sources import read_source

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]
STAGES = ["prepare", "language", "probe", "label", "tuned", "deploy"]
QUICK = {"precision": "fp32", "batch_size": 16}
ONE_CORE = {"cpus_per_worker": 1}
DATA = {"train": "${stages.prepare.labelled}", "test": "${stages.prepare.test}",
        "validation": 0.2, "max_length": 64}  # fmt: skip


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    folder = tmp_path_factory.mktemp("framework")
    commands = Commands(folder / "home", folder)
    write_table(folder / "table.csv")
    yield commands
    commands.end()
    assert not commands.processes(), "`cluster down` left processes"


def write_table(path: Path) -> None:
    """Every second text of BBC news, begun; one in ten has its label."""
    rows = read_source("bbc-news", Columns("text", "label"), base_dir=path.parent)["train"]
    assert rows.labels is not None
    pairs = list(zip(rows.texts.to_pylist(), rows.labels.to_pylist(), strict=True))[::2]
    table = [(i, text[:300], label if i % 10 == 0 else "") for i, (text, label) in enumerate(pairs)]
    write_rows(path, ("id", "text", "label"), table)


def write_framework(
    commands: Commands, name: str = "news", *, below: float = 1.1, **probe: Any
) -> str:
    """The five stages; `probe` is of its training."""
    network = {"backbone": "${stages.language.model}", "pooling": "mean"}
    stages: dict[str, Any] = {
        "prepare": {"job": {"kind": "prepare", "input": "table.csv"}},
        "language": {"job": {"kind": "pretrain",
                             "data": {"train": "${stages.prepare.texts}", "max_length": 64},
                             "model": {"backbone": "gpt2-tiny", "tokenizer": {"train": 600}},
                             "train": QUICK | {"max_steps": 20, "lr": 3.0e-3},
                             "cluster": ONE_CORE}},
        "probe": {"job": {"kind": "finetune", "data": DATA, "model": network, "cluster": ONE_CORE,
                          "train": QUICK | {"freeze": "last_layer", "epochs": 3, "lr": 1.0e-2}
                          | probe}},
        "label": {"job": {"kind": "predict", "model": "${stages.probe.model}",
                          "input": "${stages.prepare.unlabelled}", "output": f"{name}-labelled.csv",
                          "low_confidence": {"below": 0.9, "output": f"{name}-ask.csv",
                                             "most": 20}}},
        "tuned": {"when": {"stage": "probe", "metric": "accuracy", "below": below},
                  "otherwise": "probe",
                  "job": {"kind": "finetune", "data": DATA, "model": network, "cluster": ONE_CORE,
                          "train": QUICK | {"max_steps": 10, "lr": 1.0e-3}}},
        "deploy": {"job": {"kind": "deploy", "model": "${stages.tuned.model}",
                           "data": {"test": "${stages.prepare.test}"},
                           "register": {"model": name}}},
    }  # fmt: skip
    path = commands.folder / f"{name}.yaml"
    path.write_text(json.dumps({"kind": "pipeline", "name": name, "stages": stages}, indent=1))
    return str(path)


@pytest.fixture(scope="module")
def done(commands: Commands) -> dict[str, Any]:
    return dict(commands.json("run", write_framework(commands)))


def served(commands: Commands, address: str, texts: list[str]) -> list[str]:
    """The labels that a served model gives."""
    with commands.started("serve", address, "--json") as process:
        while not (line := commands.stdout.read_text()).endswith("}\n"):
            assert process.poll() is None, commands.stderr.read_text()
        records = json.dumps({"dataframe_records": [{"text": text} for text in texts]})
        request = urllib.request.Request(
            f"{json.loads(line)['url']}/invocations",
            records.encode(),
            {"Content-Type": "application/json"},
        )
        reply = json.load(urllib.request.urlopen(request, timeout=60))
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    return [row["label"] for row in reply["predictions"]]


def test_one_command_leads_from_the_table_to_a_champion(
    commands: Commands, done: dict[str, Any]
) -> None:
    assert [stage["stage"] for stage in done["stages"]] == STAGES
    assert {stage["state"] for stage in done["stages"]} == {"FINISHED"}
    stages = by_name(done)
    with (commands.folder / "table.csv").open(newline="") as file:
        given = {(row["text"], row["label"]) for row in csv.DictReader(file)}
    parts = {
        path.stem: pq.read_table(path).to_pylist()
        for path in Path(stages["prepare"]["output"]).glob("*.parquet")
    }
    assert stages["prepare"]["metrics"] == {name: len(rows) for name, rows in parts.items()}
    tested = {row["text"] for row in parts["test"]}
    assert tested and not tested & {row["text"] for row in parts["texts"]}
    labelled = {(row["text"], row["label"]) for row in [*parts["labelled"], *parts["test"]]}
    assert labelled == {row for row in given if row[1]}
    assert {row["text"] for row in parts["unlabelled"]} == (
        {text for text, _ in given} - {text for text, _ in labelled}
    )
    artifacts = commands.mlflow().list_artifacts(stages["prepare"]["run_id"])
    assert "data_report.json" in [artifact.path for artifact in artifacts]
    assert "is below 1.1" in stages["tuned"]["condition"]
    (version,) = commands.json("models", "news")["versions"]
    assert version["aliases"] == ["champion"]
    assert version["run_id"] == stages["deploy"]["run_id"]
    assert version["metrics"]["accuracy"] == stages["deploy"]["metrics"]["test/accuracy"]
    assert version["metrics"]["accuracy"] == stages["tuned"]["metrics"]["test/accuracy"]


def test_the_champion_is_served_and_answers_as_the_fine_tuned_model(
    commands: Commands, done: dict[str, Any]
) -> None:
    texts = ["the match was won in extra time", "shares fell as the bank cut its forecast"]
    write_rows(commands.folder / "two.csv", ("text",), [(text,) for text in texts])
    commands.json("predict", by_name(done)["tuned"]["output"], "two.csv", "-o", "two-out.csv")
    with (commands.folder / "two-out.csv").open(newline="") as file:
        labels = [row["label"] for row in csv.DictReader(file)]
    assert served(commands, "models:/news@champion", texts) == labels


def test_the_least_sure_texts_are_there_to_be_labelled(
    commands: Commands, done: dict[str, Any]
) -> None:
    with (commands.folder / "news-ask.csv").open(newline="") as file:
        asked = list(csv.DictReader(file))
    assert len(asked) == 20
    assert list(asked[0]) == ["text", "label", "predicted", "confidence"]
    sureness = [float(row["confidence"]) for row in asked]
    assert sureness == sorted(sureness)
    assert {row["label"] for row in asked} == {""}
    assert by_name(done)["label"]["metrics"]["low_confidence"] >= 20


def test_a_second_run_makes_nothing_anew(commands: Commands, done: dict[str, Any]) -> None:
    again = commands.json("run", write_framework(commands))
    assert all(stage["reused"] for stage in again["stages"])
    # Its runs only say where things come from.
    for run in children(commands, again):
        assert run.data.tags["gpt2cls.reused_from"] == by_name(done)[run.info.run_name]["run_id"]
    assert len(commands.json("models", "news")["versions"]) == 1


def test_a_probe_that_is_good_enough_is_deployed_itself(
    commands: Commands, done: dict[str, Any]
) -> None:
    skipped = commands.json("run", write_framework(commands, below=0.0))
    stages = by_name(skipped)
    assert stages["tuned"]["state"] == "SKIPPED"
    assert "is not below 0; probe stands for it" in stages["tuned"]["reason"]
    assert stages["tuned"]["output"] == stages["probe"]["output"]
    assert [stages[name]["reused"] for name in STAGES[:4]] == [True] * 4
    deployed = stages["deploy"]["metrics"]
    assert deployed["version"] == 2
    assert deployed["test/accuracy"] == stages["probe"]["metrics"]["test/accuracy"]
    assert "tuned" not in {run.info.run_name for run in children(commands, skipped)}
    assert "SKIPPED" in commands.run("show", skipped["job_id"]).stdout


def test_a_deploy_job_of_its_own_finds_the_version_that_is_there(
    commands: Commands, done: dict[str, Any]
) -> None:
    test = str(Path(by_name(done)["prepare"]["output"]) / "test.parquet")
    job = {"kind": "deploy", "name": "alone", "model": by_name(done)["tuned"]["output"],
           "data": {"test": test}, "register": {"model": "news"}}  # fmt: skip
    path = commands.folder / "alone.yaml"
    path.write_text(json.dumps(job))
    before = commands.json("models", "news")
    document = commands.json("run", str(path))
    assert document["model"]["version"] == 1
    assert document["served"]["largest_difference"] < 1e-4
    assert commands.json("models", "news") == before
    ended = commands.run("run", str(path), "-s", "register.gate.min=1.0", "--json")
    assert ended.returncode == 1
    assert "not deployed" in json.loads(ended.stdout)["error"]["message"]
    assert commands.json("models", "news") == before


def test_a_version_that_was_taken_away_is_made_again(
    commands: Commands, done: dict[str, Any]
) -> None:
    client = commands.mlflow()
    client.delete_registered_model("news")
    again = by_name(commands.json("run", write_framework(commands)))
    assert {name: stage["reused"] for name, stage in again.items()} == {
        name: name != "deploy" for name in STAGES
    }
    (version,) = commands.json("models", "news")["versions"]
    assert version["aliases"] == ["champion"]


def test_a_kill_in_the_third_stage_costs_neither_of_the_first_two(commands: Commands) -> None:
    lively = {"epochs": 30, "freeze": "none", "checkpoint_every": "5 steps"}
    job = write_framework(commands, "killed", **lively)
    other = "stages.language.job.train.seed=1"  # else both are there already
    with commands.started("run", job, "-s", other, "--json") as process:
        job_dir = wait_for_stage(commands, "killed", "probe", 8, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    shown = commands.json("show", job_dir.name)
    assert [stage["state"] for stage in shown["stages"]] == [
        "FINISHED", "FINISHED", "KILLED", "PENDING", "PENDING", "PENDING",
    ]  # fmt: skip
    language = events(commands, shown, "language")
    before, at_kill = language.read_bytes(), last_step(events(commands, shown, "probe"))
    resumed = commands.json("resume", job_dir.name)
    assert {stage["state"] for stage in resumed["stages"]} == {"FINISHED"}
    assert language.read_bytes() == before
    starts = [event["step"] for line in events(commands, shown, "probe").open()
              if (event := json.loads(line))["kind"] == "start"]  # fmt: skip
    assert starts[0] == 0 < starts[1] <= at_kill
    assert sorted(run.info.run_name for run in children(commands, resumed)) == sorted(STAGES)
    assert [v["aliases"] for v in commands.json("models", "killed")["versions"]] == [["champion"]]
