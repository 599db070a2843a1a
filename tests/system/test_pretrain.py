"""Language models from the command line: trained, killed, registered, built upon."""

import csv
import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Commands, last_step, write_job
from safetensors.torch import load_file

pytestmark = pytest.mark.system
WORDS = {"sport": "goal match team cup", "money": "bank share price fund"}
METRICS = {"loss", "perplexity", "bits_per_byte"}


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    folder = tmp_path_factory.mktemp("pretrain")
    commands = Commands(folder / "home", folder)
    (folder / "texts").mkdir()
    rows = [(f"the {word} of day {i}", label) for i in range(30) for label, words in WORDS.items()
            for word in words.split()]  # fmt: skip
    for i, (text, _) in enumerate(rows):
        (folder / "texts" / f"{i:03}.txt").write_text(f"{text} and {text}")
    with (folder / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    yield commands
    commands.end()
    assert not commands.processes(), "`cluster down` left processes"


def pretrain_job(commands: Commands, name: str, **changes: Any) -> str:
    settings = {
        "kind": "pretrain",
        "data": {"train": "texts", "max_length": 16},
        "model": {"backbone": "gpt2-tiny", "tokenizer": {"train": 300}, "dropout": 0.1},
        "train": {"epochs": 4, "batch_size": 8, "lr": 3.0e-3, "precision": "fp32"},
    }
    job = settings | {"name": name}
    for key, values in changes.items():
        job[key] = {**job.get(key, {}), **values}  # type: ignore[dict-item]
    path = commands.folder / f"{name}.yaml"
    path.write_text(json.dumps(job, indent=1))
    return str(path)


@pytest.fixture(scope="module")
def done(commands: Commands) -> dict[str, Any]:
    return dict(
        commands.json("run", pretrain_job(commands, "first", register={"model": "language"}))
    )


def test_a_language_model_is_one_run_with_its_curves_and_a_version(
    commands: Commands, done: dict[str, Any]
) -> None:
    assert set(done["validation"]) == METRICS
    assert done["validation"]["loss"] < 3.0  # log(300) = 5.7 is guessing
    assert done["model"] == {"name": "language", "version": 1, "alias": "champion"}
    client = commands.mlflow()
    run = client.get_run(done["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["train.objective"] == "causal"
    folder = Path(done["folder"])
    events = [json.loads(line) for line in (folder.parent / "events.jsonl").open()]
    for name in ("train/loss", *(f"eval/{metric}" for metric in METRICS)):
        told = [(m.step, m.value) for m in client.get_metric_history(done["run_id"], name)]
        wanted = [(e["step"], e["metrics"][name]) for e in events if name in e.get("metrics", {})]
        assert sorted(told) == wanted
    shown = commands.run("show", done["job_id"]).stdout
    assert "perplexity" in shown


def test_a_classifier_is_built_on_the_registered_version(
    commands: Commands, done: dict[str, Any]
) -> None:
    job = write_job(
        commands.folder / "on-it.yaml",
        name="on-it",
        data={"train": "rows.csv", "test": 0.2, "max_length": 16},
        model={"backbone": "models:/language@champion", "pooling": "mean"},
        train={"epochs": 2, "lr": 1.0e-1, "precision": "fp32", "freeze": "head_only"},
    )
    document = commands.json("run", str(job))
    folder = commands.home / "jobs" / document["job_id"]
    # What the alias meant is written down, and the frozen weights are those of the version.
    resolved = json.loads((folder / "resolved.json").read_text())
    assert resolved["model"]["backbone"] == "models:/language/1"
    language, classifier = Path(done["folder"]), folder / "model"
    ours = load_file(classifier / "backbone" / "model.safetensors")
    theirs = load_file(language / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    tokenizer = "tokenizer.json"
    assert (classifier / tokenizer).read_bytes() == (language / tokenizer).read_bytes()


def test_the_trials_of_a_sweep_build_on_registered_versions_and_on_one_tuned_on_their_texts(
    commands: Commands, done: dict[str, Any]
) -> None:
    job = {
        "kind": "sweep",
        "name": "on-versions",
        "data": {"train": "rows.csv", "test": 0.2, "max_length": 16, "labelled": 16},
        "model": {"backbone": "models:/language@champion", "pooling": "mean"},
        "train": {"epochs": 2, "lr": 1e-2, "lm_epochs": 2, "lm_lr": 1e-3, "precision": "fp32"},
        "space": {"train.freeze": {"choice": ["none", "head_only"]}},
        "search": {"searcher": "grid", "scheduler": "none"},
    }
    path = commands.folder / "on-versions.yaml"
    path.write_text(json.dumps(job))
    ended = commands.json("run", str(path))
    run = commands.mlflow().get_run(ended["run_id"])
    assert run.data.params["model.backbone"] == "models:/language/1"
    # It goes on from a version that knows such texts: from random weights two epochs leave 4.
    assert run.data.metrics["lm/loss"] < done["validation"]["loss"] + 0.2
    tuned = [*(commands.home / "cache" / "languages").iterdir()]
    assert len(tuned) == 1
    again = commands.json("run", str(path), "-s", "train.lm_epochs=0")
    assert "lm/loss" not in commands.mlflow().get_run(again["run_id"]).data.metrics
    # With other labels, but the same texts.
    alone = job | {"kind": "finetune", "name": "on-versions-alone"}
    alone["data"] = {**job["data"], "labelled": 20}  # type: ignore[dict-item]
    del alone["space"], alone["search"]
    path.write_text(json.dumps(alone))
    single = commands.run("run", str(path))
    assert "was fine-tuned on these texts before: used again" in single.stderr
    assert len([*(commands.home / "cache" / "languages").iterdir()]) == 1


def test_a_kill_while_the_language_model_is_tuned_changes_nothing(
    commands: Commands, done: dict[str, Any]
) -> None:
    job = write_job(
        commands.folder / "tuned.yaml",
        name="tuned",
        data={"train": "rows.csv", "test": 0.2, "max_length": 16},
        model={"backbone": "models:/language/1", "pooling": "mean"},
        train={"epochs": 1, "lr": 1.0e-3, "precision": "fp32", "batch_size": 8, "lm_epochs": 60,
               "checkpoint_every": "20 steps"},
    )  # fmt: skip
    tuned = commands.home / "cache" / "languages"
    before = {*tuned.glob("*")}

    def step_60() -> Path | None:
        events = commands.home.glob("jobs/tuned-*/language/events.jsonl")
        return next((path for path in events if last_step(path) >= 60), None)

    with commands.started("run", str(job)) as process:
        folder = wait_for(step_60).parent.parent
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert {*tuned.glob("*")} == before
    commands.json("resume", folder.name)
    assert "from the checkpoint of step" in (folder / "job.log").read_text()
    (made,) = {*tuned.glob("*")} - before
    resumed = (made / "model.safetensors").read_bytes()
    shutil.rmtree(made)
    commands.json("run", str(job))
    assert (made / "model.safetensors").read_bytes() == resumed


def wait_for(found: Callable[[], Path | None]) -> Path:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (path := found()) is not None:
            return path
        time.sleep(0.02)
    raise AssertionError("it did not come so far")


def test_the_folder_is_a_backbone_too_and_learning_goes_on_from_it(
    commands: Commands, done: dict[str, Any]
) -> None:
    model = {"backbone": done["folder"], "tokenizer": None}
    train = {"max_steps": 2, "lr": 1.0e-5}
    more = commands.json("run", pretrain_job(commands, "more", model=model, train=train))
    assert more["validation"]["loss"] == pytest.approx(done["validation"]["loss"], abs=0.05)


def test_a_job_killed_twice_ends_with_the_weights_of_an_undisturbed_one(
    commands: Commands,
) -> None:
    train = {"epochs": 8, "checkpoint_every": "10 steps", "eval_every": "50 steps"}
    job = pretrain_job(commands, "long", train=train)
    undisturbed = commands.json("run", job)
    with commands.started("run", job) as process:
        folder = commands.wait_for_step(25, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with commands.started("resume", folder.name) as process:
        commands.wait_for_step(45, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    num_steps = last_step(Path(undisturbed["folder"]).parent / "events.jsonl")
    assert 45 <= last_step(folder / "events.jsonl") < num_steps
    resumed = commands.json("resume", folder.name)
    assert resumed["validation"] == undisturbed["validation"]
    files = [Path(d["folder"]) / "model.safetensors" for d in (resumed, undisturbed)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_it_is_refused_where_a_classifier_is_needed(
    commands: Commands, done: dict[str, Any]
) -> None:
    words = ("predict", "models:/language@champion", "rows.csv", "-o", "out.csv")
    ended = commands.run(*words)
    assert ended.returncode == 2
    assert "is a language model, which knows no labels" in ended.stderr
    assert not (commands.folder / "out.csv").exists()


def test_a_forward_and_a_backward_classifier_are_one_registered_model(
    commands: Commands, done: dict[str, Any]
) -> None:
    backward = {"train": {"objective": "backward"}, "register": {"model": "backward"}}
    commands.json("run", pretrain_job(commands, "backward", **backward))
    models = []
    for backbone in ("language", "backward"):
        job = write_job(
            commands.folder / f"on-{backbone}.yaml",
            name=f"on-{backbone}",
            data={"train": "rows.csv", "test": 0.2, "max_length": 16},
            model={"backbone": f"models:/{backbone}@champion"},
            train={"epochs": 3, "lr": 1.0e-2, "precision": "fp32"},
            register={"model": f"on-{backbone}"},
        )
        model = commands.json("run", str(job))["model"]
        models.append(f"models:/{model['name']}/{model['version']}")
    settings = {"kind": "ensemble", "name": "both", "models": models,
                "data": {"test": "rows.csv"}, "register": {"model": "both"}}  # fmt: skip
    path = commands.folder / "both.yaml"
    path.write_text(json.dumps(settings))
    with commands.started("run", str(path)) as process:
        folder = wait_for(
            lambda: next(commands.home.glob("jobs/both-*/resolved.json"), None)
        ).parent
        process.send_signal(signal.SIGKILL)
        process.wait()
    document = commands.json("resume", folder.name)
    assert set(document["members"]) == {*models}
    assert document["model"] == {"name": "both", "version": 1, "alias": "champion"}
    assert commands.mlflow().get_run(document["run_id"]).info.status == "FINISHED"
    answers = {}
    for model in (*models, "models:/both@champion"):
        commands.json("predict", model, "rows.csv", "-o", "out.csv")
        with (commands.folder / "out.csv").open() as file:
            answers[model] = [float(row["p_sport"]) for row in csv.DictReader(file)]
    *of_each, of_both = answers.values()
    means = [sum(pair) / 2 for pair in zip(*of_each, strict=True)]
    assert of_both == pytest.approx(means, abs=1e-6)
    other = settings | {"models": [models[0], "models:/language/1"]}
    path.write_text(json.dumps(other))
    refused = commands.run("run", str(path))
    assert refused.returncode == 2
    assert "is a language model, which knows no labels" in refused.stderr
