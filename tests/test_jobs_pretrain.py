"""Pretrain jobs before they run: what a file may say, and what is planned and asked for."""

import json
from pathlib import Path

import pytest
from refusing import refused

from cluster.home import from_environment
from gpt2cls.errors import RequestError
from jobs.asks import ask_of
from jobs.backbones import PINS_FILE, fetched, pinned
from jobs.cli import main
from jobs.gate import Standing, judge
from jobs.read import read_job
from jobs.spec import KINDS, PretrainJob, dump

HEAD = "kind: pretrain\nname: x\ndata: {train: texts}\n"


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "place").mkdir()
    monkeypatch.chdir(tmp_path / "place")
    monkeypatch.setenv("GPT2CLS_HOME", str(tmp_path / "home"))
    for name in ("GPT2CLS_DATA", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "place"


def write(text):
    Path("job.yaml").write_text(text)
    return Path("job.yaml")


BUILTIN = HEAD.replace("texts", "bbc-news")
TABLE = [
    ("a label", "data: {train: bbc-news, label: topic}", "data.label", "topic", "data has train"),
    ("a test split", "data: {train: bbc-news, test: 0.1}", "data.test", 0.1,
     "train, validation, text, max_length"),
    ("a pooling", "model: {pooling: mean}", "model.pooling", "mean", "model has backbone"),
    ("a head", "model: {head: linear}", "model.head", "linear", "model has backbone"),
    ("a frozen layer", "train: {freeze: top:1}", "train.freeze", "top:1", "none"),
    ("weights of classes", "train: {class_weights: balanced}", "train.class_weights", "balanced",
     "none"),
    ("smoothed labels", "train: {label_smoothing: 0.1}", "train.label_smoothing", 0.1, "at most 0"),
    ("the stage before", "train: {lm_epochs: 1}", "train.lm_epochs", 1, "0"),
    ("masked tokens", "train: {objective: masked}", "train.objective", "masked",
     "causal or backward: this version has no masked"),
    ("a joint objective", "train: {objective: joint}", "train.objective", "joint", "no joint"),
    ("an objective like none", "train: {objective: sideways}", "train.objective", "sideways",
     "causal, backward"),
    ("a metric of labels", "train: {early_stopping: {metric: accuracy}}",
     "train.early_stopping.metric", "accuracy", "loss"),
    ("workers without a block", "train: {batch_size: 1}\ncluster: {workers: 2}",
     "train.batch_size", 1, "has a block per step"),
    ("blocks of one token", "data: {train: bbc-news, max_length: 1}", "data.max_length", 1,
     "at least 2"),
    ("a registered model without a version", "model: {backbone: 'models:/x'}", "model.backbone",
     "models:/x", "models:/name@alias"),
    ("a gate of labels", "register: {model: x, gate: {metric: accuracy}}", "register.gate.metric",
     "accuracy", "beats"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "field", "value", "word"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_what_makes_no_sense_for_a_language_model_is_named(place, capfd, text, field, value, word):
    head = BUILTIN if "data:" not in text else "kind: pretrain\nname: x\n"
    (problem,) = refused(capfd, f"{head}{text}\n")["problems"]
    assert (problem["field"], problem["value"]) == (field, value)
    assert word in f"{problem['message']} {problem['allowed']}"
    assert problem["line"]


def test_texts_that_are_not_there_are_refused(place, capfd):
    (problem,) = refused(capfd, HEAD)["problems"]
    assert (problem["field"], problem["line"]) == ("data.train", 3)


def test_a_folder_of_text_files_is_accepted_and_the_resolved_job_is_a_legal_one(place, capfd):
    (place / "texts").mkdir()
    (place / "texts" / "a.txt").write_text("a text")
    Path("job.yaml").write_text(HEAD + "train: {objective: backward}\nregister: {model: lm}\n")
    assert main(["validate", "job.yaml", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["warnings"] == []
    assert document["plan"]["workers"] == 1
    job = PretrainJob.model_validate(document["job"])
    assert dump(job) == document["job"]
    assert (job.train.objective, job.train.as_train().lr) == ("backward", 1e-4)


def test_text_files_are_no_data_of_a_classifier(place, capfd):
    (place / "a.txt").write_text("a text")
    Path("job.yaml").write_text("kind: finetune\nname: x\ndata: {train: a.txt}\n")
    assert main(["run", "job.yaml", "--json"]) == 2
    assert "the ending says no known format" in capfd.readouterr().out


def test_it_asks_a_cluster_for_its_workers(place):
    Path("job.yaml").write_text(BUILTIN + "cluster: {workers: 2, cpus_per_worker: 3}\n")
    ask = ask_of(read_job(Path("job.yaml"), data_dir=None).job, cores=8)
    assert (ask.workers, ask.cpus_per_worker) == (2, 3)


@pytest.mark.parametrize(
    ("bits", "beats", "alias"),
    [(1.0, True, "champion"), (2.0, True, "challenger"), (2.0, False, "champion")],
    ids=["fewer bits win", "more bits do not", "the newest wins where nothing is to be beaten"],
)
def test_the_gate_wants_fewer_bits_per_byte(bits, beats, alias):
    former = Standing(1, {"bits_per_byte": 1.5}, "validation", "same")
    new = Standing(2, {"bits_per_byte": bits}, "validation", "same")
    verdict = judge(new, former, metric="bits_per_byte", minimum=None, beats_champion=beats)
    assert verdict.alias == alias


def test_masked_and_joint_are_not_offered_to_editors():
    schema = json.dumps(KINDS["pretrain"].model_json_schema())
    assert '"causal", "backward"' in schema
    assert "masked" not in schema


def test_what_an_alias_meant_is_remembered_by_the_job(place):
    given = {"kind": "pretrain", "name": "x", "data": {"train": "bbc-news"},
             "model": {"backbone": "models:/lm@champion", "tokenizer": "models:/lm/1"}}  # fmt: skip
    job = PretrainJob.model_validate(given)
    (place / PINS_FILE).write_text(json.dumps({"models:/lm@champion": "models:/lm/3"}))
    surroundings = from_environment()
    # There is no registry here: without the note it could not be known.
    found = pinned(job, surroundings, place)
    assert (found.model.backbone, found.model.tokenizer) == ("models:/lm/3", "models:/lm/1")
    with pytest.raises(RequestError, match="no model is registered"):
        pinned(job, surroundings)


def test_a_job_without_registered_models_stays_as_it_is(place):
    job = read_job(write(BUILTIN), data_dir=None).job
    assert pinned(job, from_environment()) is job
    assert fetched(job, from_environment(), place) is job


def test_a_list_of_sources_is_completed_and_each_that_is_missing_is_named(place):
    (place / "a.txt").write_text("words")
    data = "data: {train: [a.txt, '${GPT2CLS_DATA}/b.txt', c.txt], validation: [d.txt]}"
    file = write(HEAD.replace("data: {train: texts}", data))
    job = read_job(file, data_dir=place, needs_data=False)
    assert job.job.data.train == ("a.txt", f"{place}/b.txt", "c.txt")
    assert [problem.field for problem in job.missing] == [
        "data.train[1]",
        "data.train[2]",
        "data.validation[0]",
    ]
