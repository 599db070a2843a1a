"""Pipelines that learn the language of the texts first, from the command line."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Commands, last_step
from safetensors.torch import load_file
from test_pipeline import WORDS, by_name, events, wait_for_stage, write_rows

pytestmark = pytest.mark.system
LANGUAGE = {
    "kind": "pretrain",
    "data": {"train": "rows.csv", "max_length": 16},
    "model": {"backbone": "gpt2-tiny", "tokenizer": {"train": 300}, "dropout": 0.1},
    "train": {"epochs": 2, "batch_size": 16, "lr": 3.0e-3, "precision": "fp32"},
    "cluster": {"cpus_per_worker": 1},
}


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    folder = tmp_path_factory.mktemp("framework")
    commands = Commands(folder / "home", folder)
    rows = [(f"the {word} of day {i}", label) for i in range(30) for label, words in WORDS.items()
            for word in words.split()]  # fmt: skip
    write_rows(folder / "rows.csv", ("text", "label"), rows)
    yield commands
    commands.end()
    assert not commands.processes(), "`cluster down` left processes"


def write_pipeline(commands: Commands, name: str, lm: Any = None, probe: Any = None) -> str:
    """A language model, and a classifier of frozen weights on it; each with its changes."""
    classifier = {
        "kind": "finetune",
        "data": {"train": "rows.csv", "test": 0.2, "max_length": 16},
        "model": {"backbone": "${stages.lm.model}", "pooling": "mean"},
        "train": {"epochs": 2, "lr": 1.0e-1, "precision": "fp32", "freeze": "head_only"},
        "cluster": {"cpus_per_worker": 1},
    }
    stages = {
        "probe": {"needs": ["lm"], "job": changed(classifier, probe)},
        "lm": {"job": changed(LANGUAGE, lm)},
    }
    path = commands.folder / f"{name}.yaml"
    path.write_text(json.dumps({"kind": "pipeline", "name": name, "stages": stages}, indent=1))
    return str(path)


def changed(job: dict[str, Any], changes: Any) -> dict[str, Any]:
    blocks = {key: {**job.get(key, {}), **values} for key, values in (changes or {}).items()}
    return job | blocks


def test_a_classifier_is_built_on_the_language_model_of_another_stage(commands: Commands) -> None:
    job = write_pipeline(commands, "two")
    done = by_name(commands.json("run", job))
    assert [stage["state"] for stage in done.values()] == ["FINISHED", "FINISHED"]
    assert set(done["lm"]["metrics"]) == {
        "validation/loss", "validation/perplexity", "validation/bits_per_byte",
    }  # fmt: skip
    weights = "model.safetensors"
    theirs = load_file(Path(done["lm"]["output"]) / weights)
    ours = load_file(Path(done["probe"]["output"]) / "backbone" / weights)
    assert all(ours[name].equal(theirs[name]) for name in ours)
    again = by_name(commands.json("run", job))
    assert [stage["reused"] for stage in again.values()] == [True, True]
    # Other texts are another language model, and so another classifier.
    (commands.folder / "more.csv").write_bytes((commands.folder / "rows.csv").read_bytes())
    with (commands.folder / "more.csv").open("a") as file:
        file.write("one more text,sport\n")
    more = by_name(commands.json("run", job, "-s", "stages.lm.job.data.train=more.csv"))
    assert [stage["reused"] for stage in more.values()] == [False, False]


def test_a_killed_language_model_goes_on_from_its_checkpoint(commands: Commands) -> None:
    train = {"epochs": 12, "checkpoint_every": "5 steps"}
    job = write_pipeline(commands, "killed", lm={"train": train})
    with commands.started("run", job, "--json") as process:
        job_dir = wait_for_stage(commands, "killed", "lm", 8, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    path = job_dir / "stages" / "lm" / "events.jsonl"
    at_kill = last_step(path)
    resumed = commands.json("resume", job_dir.name)
    assert [stage["state"] for stage in resumed["stages"]] == ["FINISHED", "FINISHED"]
    assert 0 < start_steps(path)[1] <= at_kill
    run = by_name(resumed)["lm"]["run_id"]
    steps = [point.step for point in commands.mlflow().get_metric_history(run, "train/loss")]
    assert steps == [*range(1, last_step(path) + 1)]


def start_steps(path: Path) -> list[int]:
    """The step at which each attempt at a stage began."""
    lines = [json.loads(line) for line in path.open()]
    return [line["step"] for line in lines if line["kind"] == "start"]


def test_an_alias_is_the_version_that_it_meant_when_the_stage_was_begun(
    commands: Commands,
) -> None:
    register = {"register": {"model": "language"}}
    on_alias = {"model": {"backbone": "models:/language@champion"},
                "train": {"epochs": 60, "checkpoint_every": "5 steps"}}  # fmt: skip
    job = write_pipeline(commands, "alias", lm=register, probe=on_alias)
    with commands.started("run", job, "--json") as process:
        job_dir = wait_for_stage(commands, "alias", "probe", 8, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    alone = commands.folder / "alone.yaml"
    alone.write_text(json.dumps(changed(LANGUAGE, register) | {"name": "alone"}))
    assert commands.json("run", str(alone))["model"]["version"] == 2
    resumed = commands.json("resume", job_dir.name)
    resolved = json.loads((job_dir / "stages" / "probe" / "resolved.json").read_text())
    assert resolved["model"]["backbone"] == "models:/language/1"
    assert start_steps(events(commands, resumed, "probe"))[1] > 0
    # A new pipeline takes the version that the alias means now.
    again = commands.json("run", job, "-s", "stages.probe.job.train.epochs=1")
    assert by_name(again)["lm"]["reused"]
    probe = commands.home / "jobs" / again["job_id"] / "stages" / "probe"
    assert json.loads((probe / "resolved.json").read_text())["model"]["backbone"].endswith("/2")
