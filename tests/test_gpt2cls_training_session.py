"""One rank from its payload to its end, with the real files of a job."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from gpt2cls.config import EarlyStopping, ModelConfig, TrainConfig
from gpt2cls.data.bpe import train_bpe
from gpt2cls.data.encode import encode_split
from gpt2cls.data.tasks import Split, Task
from gpt2cls.errors import CheckpointError, RequestError
from gpt2cls.training.checkpoint import read_whole
from gpt2cls.training.payload import RankPayload
from gpt2cls.training.session import load_best, run_rank

WORDS = {"cold": "ice snow frost winter", "warm": "sun summer heat beach", "wet": "rain sea lake"}
TASK = Task("single_label", tuple(WORDS), False)


def weather(num_rows: int, seed: int) -> Split:
    draw = np.random.default_rng(seed)
    labels = np.arange(num_rows) % 3
    texts = [
        " ".join(draw.choice(list(WORDS.values())[c].split(), draw.integers(1, 9))) for c in labels
    ]
    return Split(pa.chunked_array([pa.array(texts, pa.large_string())]), None, labels)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The part of a payload that says where the tokens and labels are."""
    folder = tmp_path_factory.mktemp("data")
    splits = {"train": weather(50, 1), "validation": weather(20, 2)}
    tokenizer = train_bpe([splits["train"].texts], 280)
    fields = {"vocab_size": tokenizer.vocab_size, "pad_id": tokenizer.pad_id, "max_length": 16}
    for name, split in splits.items():
        fields[f"{name}_tokens"] = encode_split(split, tokenizer, max_length=16, cache_dir=folder)
        fields[f"{name}_labels"] = folder / f"{name}.npy"
        np.save(folder / f"{name}.npy", split.labels)
    return fields


def payload_of(data, job_dir: Path, *, model=None, task=TASK, more=None, **train) -> RankPayload:
    train = {"epochs": 3, "batch_size": 8, "lr": 3e-3, "precision": "fp32", **train}
    return RankPayload(
        model=ModelConfig(**{"backbone": "gpt2-tiny", **(model or {})}),
        train=TrainConfig(**train),
        task=task.to_json(),
        job_dir=job_dir,
        base_dir=job_dir,
        **{"threads": 1, "device": "cpu", **data, **(more or {})},
    )


def events_of(job_dir: Path, kind: str | None = None) -> list[dict]:
    lines = (job_dir / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    return [event for event in events if kind in (None, event["kind"])]


def steps_of(job_dir: Path, kind: str) -> list[int]:
    return [event["step"] for event in events_of(job_dir, kind)]


def best_bytes(job_dir: Path) -> bytes:
    return (job_dir / "best" / "model.safetensors").read_bytes()


def test_a_run_leaves_events_checkpoints_and_the_best_weights(data, tmp_path):
    assert run_rank(payload_of(data, tmp_path, epochs=6)) == "finished"
    start, *_ = events = events_of(tmp_path)
    assert (start["kind"], start["num_steps"], start["steps_per_epoch"]) == ("start", 42, 7)
    assert (start["precision"], start["resumed_from"]) == ("fp32", None)
    assert steps_of(tmp_path, "step") == list(range(1, 43))
    assert steps_of(tmp_path, "eval") == steps_of(tmp_path, "checkpoint") == list(range(7, 43, 7))
    assert events[-1]["kind"] == "stop" and events[-1]["reason"] == "finished"
    times = [event["time_ms"] for event in events]
    assert times == sorted(times)
    assert set(events_of(tmp_path, "step")[0]["metrics"]) == {
        *("train/loss", "train/lr", "train/tokens_per_second"),
    }
    accuracies = {e["step"]: e["metrics"]["eval/accuracy"] for e in events_of(tmp_path, "eval")}
    best = read_whole(tmp_path / "best").state
    assert best["metrics"]["accuracy"] == accuracies[best["step"]] > 0.9


def test_the_best_weights_load_into_a_new_model_and_not_into_another_shape(data, tmp_path):
    from gpt2cls.model.classifier import build_classifier

    payload = payload_of(data, tmp_path, epochs=1)
    run_rank(payload)
    sizes = {"vocab_size": payload.vocab_size, "pad_id": 0, "seed": 99, "base_dir": tmp_path}
    model = build_classifier(payload.model, TASK, max_length=16, **sizes)
    assert load_best(tmp_path, model)["step"] == 7
    saved = read_whole(tmp_path / "best").tensors("model")
    assert all(torch.equal(p, saved[name]) for name, p in model.named_parameters())
    other = build_classifier(payload.model, TASK, max_length=8, **sizes)
    with pytest.raises(CheckpointError, match="written for another one"):
        load_best(tmp_path, other)


def test_jobs_that_began_in_an_older_version_go_on():
    # A new field joins the fingerprint only where it is used: this one is of the first versions.
    tokens, labels = (
        {f"{split}_{what}": Path(f"/{what}/{split}") for split in ("train", "validation")}
        for what in ("tokens", "labels")
    )
    sizes = {"vocab_size": 300, "pad_id": 0, "max_length": 16}
    payload = RankPayload(
        **{"model": ModelConfig(), "train": TrainConfig(), "task": TASK.to_json()},
        **{"job_dir": Path("/job"), "base_dir": Path("/job"), **tokens, **labels, **sizes},
    )
    assert payload.fingerprint == "5c8b13a41d519839"


@pytest.mark.parametrize("hidden", [0, 5])
def test_a_run_stopped_in_the_middle_and_resumed_equals_an_unbroken_one(data, tmp_path, hidden):
    model = {"dropout": 0.3, "hidden": hidden}
    run_rank(payload_of(data, tmp_path / "unbroken", model=model))
    broken = payload_of(data, tmp_path / "broken", model=model)
    polls = iter([False] * 9 + [True])
    assert run_rank(broken, should_stop=lambda: next(polls)) == "stopped"
    assert steps_of(tmp_path / "broken", "checkpoint") == [7, 10]
    assert json.loads((tmp_path / "broken/best/state.json").read_text())["step"] == 7
    assert run_rank(broken) == "finished"
    assert best_bytes(tmp_path / "broken") == best_bytes(tmp_path / "unbroken")
    for kind in ("step", "eval"):
        metrics = [
            [{k: v for k, v in e["metrics"].items() if "tokens" not in k} for e in events]
            for events in (events_of(tmp_path / job, kind) for job in ("broken", "unbroken"))
        ]
        assert metrics[0] == metrics[1]
    assert [e["resumed_from"] for e in events_of(tmp_path / "broken", "start")] == [None, 10]


def test_what_was_made_after_the_checkpoint_is_made_again_but_not_told_twice(data, tmp_path):
    payload = payload_of(data, tmp_path)
    run_rank(payload)
    unbroken = best_bytes(tmp_path)
    # As after a kill at step 17: the checkpoint of step 21 was never written, a line is torn.
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000021")
    lines = (tmp_path / "events.jsonl").read_text().splitlines(keepends=True)
    step_17 = next(i for i, line in enumerate(lines) if json.loads(line)["step"] == 18)
    (tmp_path / "events.jsonl").write_text("".join(lines[:step_17]) + lines[step_17][:20])
    assert run_rank(payload) == "finished"
    assert steps_of(tmp_path, "step") == list(range(1, 22))
    assert steps_of(tmp_path, "eval") == steps_of(tmp_path, "checkpoint") == [7, 14, 21]
    assert best_bytes(tmp_path) == unbroken
    notes = [event["text"] for event in events_of(tmp_path, "note")]
    assert [words for words in notes if "made again" in words] == [
        "steps 15 to 17 came after the checkpoint and are made again, without being reported twice"
    ]


def test_a_file_named_stop_ends_the_run_with_a_checkpoint(data, tmp_path):
    (tmp_path / "stop").touch()
    assert run_rank(payload_of(data, tmp_path)) == "stopped"
    assert steps_of(tmp_path, "checkpoint") == [1]
    assert events_of(tmp_path)[-1]["reason"] == "stopped"


def test_a_finished_run_that_is_started_again_only_gives_its_result(data, tmp_path):
    payload = payload_of(data, tmp_path)
    run_rank(payload)
    before = best_bytes(tmp_path)
    shutil.rmtree(tmp_path / "best")
    assert run_rank(payload) == "finished"
    assert best_bytes(tmp_path) == before
    assert len(steps_of(tmp_path, "step")) == 21


def test_a_damaged_checkpoint_is_passed_over_and_told(data, tmp_path):
    payload = payload_of(data, tmp_path)
    run_rank(payload)
    unbroken = best_bytes(tmp_path)
    weights = tmp_path / "checkpoints" / "step-00000021" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    assert run_rank(payload) == "finished"
    assert "checkpoint of step 21 is damaged" in events_of(tmp_path, "note")[-1]["text"]
    assert best_bytes(tmp_path) == unbroken


def test_best_weights_that_are_lost_are_told_and_sought_anew(data, tmp_path):
    early = EarlyStopping(metric="log_loss", patience=1)
    payload = payload_of(data, tmp_path, epochs=30, lr=0.2, warmup=0.99, early_stopping=early)
    run_rank(payload)
    best = read_whole(tmp_path / "best").state["step"]
    (tmp_path / "checkpoints" / f"step-{best:08d}" / "model.safetensors").unlink()
    assert run_rank(payload) == "early_stopped"
    assert f"(step {best}) are lost" in events_of(tmp_path, "note")[-1]["text"]


def test_a_checkpoint_of_another_job_is_refused(data, tmp_path):
    run_rank(payload_of(data, tmp_path, epochs=1))
    with pytest.raises(CheckpointError, match="other settings or data"):
        run_rank(payload_of(data, tmp_path, epochs=1, lr=0.5))


def test_early_stopping_gives_the_best_weights_back(data, tmp_path):
    early = EarlyStopping(metric="log_loss", patience=1)
    # A rate that grows until it ruins what was learned.
    payload = payload_of(
        data, tmp_path, epochs=30, lr=0.2, warmup=0.99, early_stopping=early, clip=None
    )
    assert run_rank(payload) == "early_stopped"
    losses = {e["step"]: e["metrics"]["eval/log_loss"] for e in events_of(tmp_path, "eval")}
    best = min(losses, key=losses.get)
    assert best < max(losses)
    assert read_whole(tmp_path / "best").state["step"] == best


def test_head_only_reads_the_texts_once_and_keeps_only_the_head_in_checkpoints(data, tmp_path):
    model = {"pooling": "mean"}
    run_rank(payload_of(data, tmp_path, freeze="head_only", model=model, lr=0.2, epochs=10))
    assert len(list((tmp_path / "features").iterdir())) == 2
    checkpoint = read_whole(tmp_path / "checkpoints" / "step-00000070")
    assert set(checkpoint.tensors("model")) == {"head.linear.weight", "head.linear.bias"}
    best = read_whole(tmp_path / "best")
    assert set(best.tensors("model")) == {"head.linear.weight", "head.linear.bias"}
    assert best.state["metrics"]["accuracy"] > 0.9


def test_features_are_shared_through_a_cache_and_rebuilt_when_cut_short(data, tmp_path):
    more = {"cache_dir": tmp_path / "cache"}
    settings = {"freeze": "last_layer", "more": more, "model": {"pooling": "attention"}}
    run_rank(payload_of(data, tmp_path / "one", **settings))
    folders = sorted((tmp_path / "cache" / "features").iterdir())
    made = [(folder / "features.npy").stat().st_mtime_ns for folder in folders]
    run_rank(payload_of(data, tmp_path / "two", lr=1e-2, **settings))
    assert made == [(folder / "features.npy").stat().st_mtime_ns for folder in folders]
    torn = folders[0] / "features.npy"
    torn.write_bytes(torn.read_bytes()[:-100])
    run_rank(payload_of(data, tmp_path / "three", **settings))
    assert best_bytes(tmp_path / "three") == best_bytes(tmp_path / "one")


def test_attention_pooling_learns_with_head_only(data, tmp_path):
    model = {"pooling": "attention", "heads": 2}
    run_rank(payload_of(data, tmp_path, freeze="head_only", model=model, epochs=1))
    assert len(list((tmp_path / "features").iterdir())) == 2
    learned = read_whole(tmp_path / "checkpoints" / "step-00000007").tensors("model")
    assert {name.split(".")[0] for name in learned} == {"pooling", "head"}


def test_several_labels_per_row_are_learned(data, tmp_path):
    fields = dict(data)
    for name in ("train", "validation"):
        fields[f"{name}_labels"] = tmp_path / f"{name}.npy"
        labels = np.load(data[f"{name}_labels"])
        wet_or_cold = np.stack([labels == 0, labels == 1, labels != 1], axis=1)
        np.save(tmp_path / f"{name}.npy", wet_or_cold)
    task = Task("multi_label", TASK.labels, False)
    payload = payload_of(fields, tmp_path, task=task, epochs=6, class_weights="balanced")
    assert run_rank(payload) == "finished"
    assert events_of(tmp_path, "eval")[-1]["metrics"]["eval/exact_match"] > 0.8


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"early_stopping": EarlyStopping(metric="acuracy")}, "'acuracy'.*accuracy"),
        ({"class_weights": {"dry": 2.0}}, "'dry': no such label.*'cold'"),
        ({"lm_epochs": 2}, "train.lm_epochs = 2: a payload of its own"),
    ],
    ids=["unknown metric", "unknown label", "another payload's"],
)
def test_settings_that_do_not_fit_the_data_are_refused_at_once(data, tmp_path, settings, words):
    with pytest.raises(RequestError, match=words):
        run_rank(payload_of(data, tmp_path, **settings))


def test_a_warmup_longer_than_the_run_is_told(data, tmp_path):
    run_rank(payload_of(data, tmp_path, warmup=10_000, epochs=1))
    assert "scaled to 1 step" in events_of(tmp_path, "note")[0]["text"]
    assert events_of(tmp_path, "step")[0]["metrics"]["train/lr"] == pytest.approx(3e-3)


def test_a_payload_survives_json(data, tmp_path):
    payload = payload_of(data, tmp_path, class_weights={"wet": 2.0})
    assert RankPayload.model_validate(payload.model_dump(mode="json")) == payload
