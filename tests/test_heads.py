"""Many heads trained together, against each of them trained alone."""

import numpy as np
import pytest
import torch
from test_gpt2cls_training_session import TASK, events_of, payload_of, weather

from gpt2cls.config import EarlyStopping, ModelConfig
from gpt2cls.data.bpe import train_bpe
from gpt2cls.data.encode import encode_split
from gpt2cls.data.tasks import Task
from gpt2cls.errors import CheckpointError, NonFiniteLoss, RequestError
from gpt2cls.model.backbone import build_backbone, save_backbone
from gpt2cls.model.classifier import build_classifier
from gpt2cls.training.checkpoint import read_whole
from gpt2cls.training.grouping import differences
from gpt2cls.training.heads import run_heads
from gpt2cls.training.session import load_best, run_rank

CLOSE = 1e-5
"""What the project promises: sums over a batch may be added up in another order."""

MEMBERS = {
    "plain": {"lr": 0.01},
    "fast": {"lr": 0.1, "weight_decay": 0.5, "schedule": "cosine", "seed": 3},
    "dropped": {"lr": 0.03, "dropout": 0.45, "label_smoothing": 0.1, "clip": None, "seed": 3},
    "clipped": {"lr": 0.05, "clip": 0.01, "schedule": "constant", "warmup": 3, "dropout": 0.0},
    "weighted": {"lr": 0.02, "class_weights": "balanced", "temperature": 2.0, "seed": 11},
    "cut": {"lr": 0.02, "truncation_smoothing": 3.0, "prob_floor": 0.01, "schedule": "noam"},
    "learned": {"lr": 0.05, "truncation_smoothing": "learned", "eval_every": "3 steps"},
    "hasty": {"lr": 0.02, "betas": [0.7, 0.99], "seed": 5},
    "short": {"lr": 0.02, "epochs": 2, "schedule": "slanted_triangular", "seed": 7},
    "shorter": {"lr": 0.02, "max_steps": 10, "class_weights": {"wet": 3.0}, "freeze": "head_only"},
}
OF_MODEL = ("dropout", "temperature", "truncation_smoothing", "prob_floor")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The part of a payload that says where tokens and labels are; some texts are cut off."""
    folder = tmp_path_factory.mktemp("data")
    splits = {"train": weather(50, 1), "validation": weather(20, 2)}
    tokenizer = train_bpe([splits["train"].texts], 280)
    fields = {"vocab_size": tokenizer.vocab_size, "pad_id": tokenizer.pad_id, "max_length": 12}
    for name, split in splits.items():
        fields[f"{name}_tokens"] = encode_split(split, tokenizer, max_length=12, cache_dir=folder)
        fields[f"{name}_labels"] = folder / f"{name}.npy"
        np.save(folder / f"{name}.npy", split.labels)
    return fields


@pytest.fixture(scope="module")
def backbone(data, tmp_path_factory):
    """Weights on disk, so that the pooled vectors do not depend on the seed."""
    folder = tmp_path_factory.mktemp("backbone")
    sizes = {"vocab_size": data["vocab_size"], "pad_id": data["pad_id"], "max_length": 12}
    torch.manual_seed(0)
    model = ModelConfig(backbone="gpt2-tiny")
    save_backbone(build_backbone(model, **sizes, base_dir=folder), folder)
    return str(folder)


@pytest.fixture
def member(data, backbone, tmp_path):
    """A payload with settings of its own, in a folder of its own."""

    def make(folder: str, *, task=TASK, data=data, model=None, **settings):
        own = {name: settings.pop(name) for name in OF_MODEL if name in settings}
        payload = payload_of(
            data,
            tmp_path / folder,
            task=task,
            model={"backbone": backbone, "pooling": "mean", **own, **(model or {})},
            more={"cache_dir": tmp_path / "cache"},
            **{"freeze": "last_layer", "epochs": 4, **settings},
        )
        return payload.model_copy(update={"base_dir": tmp_path})

    return make


def alone_and_together(member, members, **shared):
    """Payloads of the same settings: those that trained alone, and those that trained together."""
    alone = [member(f"alone/{name}", **shared, **members[name]) for name in members]
    together = [member(f"together/{name}", **shared, **members[name]) for name in members]
    ends = [run_rank(payload) for payload in alone]
    assert [outcome.reason for outcome in run_heads(together)] == ends
    return zip(alone, together, strict=True)


def assert_same_result(one, other):
    ours, theirs = (read_whole(payload.job_dir / "best") for payload in (one, other))
    assert ours.state["step"] == theirs.state["step"]
    for name, tensor in ours.tensors("model").items():
        torch.testing.assert_close(tensor, theirs.tensors("model")[name], rtol=CLOSE, atol=CLOSE)
    for kind in ("step", "eval"):
        mine, yours = (events_of(payload.job_dir, kind) for payload in (one, other))
        assert [event["step"] for event in mine] == [event["step"] for event in yours]
        for a, b in zip(mine, yours, strict=True):
            assert set(a["metrics"]) == set(b["metrics"])
            for name in set(a["metrics"]) - {"train/tokens_per_second"}:
                assert a["metrics"][name] == pytest.approx(b["metrics"][name], CLOSE, CLOSE), name


def test_each_of_many_heads_ends_as_it_would_have_alone(member):
    for alone, together in alone_and_together(member, MEMBERS):
        assert_same_result(alone, together)


def test_heads_for_several_labels_per_row_end_as_alone(member, data, tmp_path):
    fields = dict(data)
    for name in ("train", "validation"):
        labels = np.load(data[f"{name}_labels"])
        fields[f"{name}_labels"] = tmp_path / f"{name}.npy"
        np.save(tmp_path / f"{name}.npy", np.stack([labels == 0, labels == 1, labels != 1], axis=1))
    task = Task("multi_label", TASK.labels, False)
    for alone, together in alone_and_together(member, MEMBERS, data=fields, task=task):
        assert_same_result(alone, together)


def test_a_head_that_stops_early_leaves_and_the_others_go_on(member):
    early = EarlyStopping(metric="log_loss", patience=1)
    members = {
        # A rate that grows until it ruins what was learned.
        "early": {"lr": 2.0, "warmup": 0.99, "early_stopping": early, "clip": None},
        "to the end": {"lr": 0.02},
        "patient": {"lr": 0.02, "early_stopping": EarlyStopping(patience=90)},
        "dropped": {"lr": 0.02, "seed": 4},
    }
    pairs = list(alone_and_together(member, members, epochs=30))
    reasons = [events_of(together.job_dir, "stop")[0]["reason"] for _, together in pairs]
    assert reasons == ["early_stopped", "finished", "finished", "finished"]
    for alone, together in pairs:
        assert_same_result(alone, together)


def test_a_head_that_diverges_fails_alone_and_as_it_would_have_by_itself(member):
    diverging = {"lr": 100.0, "schedule": "constant", "clip": None, "temperature": 1e-36}
    members = [
        member("one", lr=0.02),
        member("diverging", **diverging, weight_decay=10.0),
        member("three", lr=0.03, seed=2),
        member("four", lr=0.04, dropout=0.5),
    ]
    one, failed, *others = run_heads(members)
    assert (failed.reason, type(failed.error)) == ("failed", NonFiniteLoss)
    assert not (failed.job_dir / "best").exists()
    with pytest.raises(NonFiniteLoss) as error:
        run_rank(member("alone", **diverging, weight_decay=10.0))
    assert str(error.value) == str(failed.error)
    settings_of = ({"lr": 0.02}, {"lr": 0.03, "seed": 2}, {"lr": 0.04, "dropout": 0.5})
    for outcome, settings in zip([one, *others], settings_of, strict=True):
        assert outcome.reason == "finished"
        alone = member(f"alone-{outcome.job_dir.name}", **settings)
        run_rank(alone)
        assert_same_result(alone, next(m for m in members if m.job_dir == outcome.job_dir))


def test_the_best_weights_load_as_those_of_a_single_run(member):
    payload = member("one", lr=0.05)
    run_heads([payload, member("two", lr=0.01)])
    model = build_classifier(
        payload.model,
        TASK,
        vocab_size=payload.vocab_size,
        pad_id=payload.pad_id,
        max_length=payload.max_length,
        seed=payload.train.seed,
        base_dir=payload.base_dir,
    )
    state = load_best(payload.job_dir, model)
    eval_events = {e["step"]: e["metrics"] for e in events_of(payload.job_dir, "eval")}
    assert state["metrics"]["macro_f1"] == eval_events[state["step"]]["eval/macro_f1"]
    with pytest.raises(CheckpointError):
        load_best(payload.job_dir / "nowhere", model)


def test_untrained_pooling_weights_and_backbones_are_shared_where_the_seed_is(member):
    drawn = {"backbone": "gpt2-tiny", "pooling": "attention", "heads": 2}
    members = {"one": {"lr": 0.02}, "two": {"lr": 0.05, "dropout": 0.5}}
    for alone, together in alone_and_together(member, members, model=drawn):
        assert_same_result(alone, together)


def test_a_group_that_was_killed_starts_again_and_tells_nothing_twice(member):
    polls = iter([False] * 9 + [True])
    members = [member("one", lr=0.02), member("two", lr=0.05)]
    assert {o.reason for o in run_heads(members, should_stop=lambda: next(polls))} == {"stopped"}
    scores = {e["step"]: e["metrics"] for e in events_of(members[0].job_dir, "eval")}
    best = read_whole(members[0].job_dir / "best").state
    highest = max(metrics["eval/macro_f1"] for metrics in scores.values())
    assert scores[best["step"]]["eval/macro_f1"] == highest
    assert {o.reason for o in run_heads(members)} == {"finished"}
    steps = [event["step"] for event in events_of(members[0].job_dir, "step")]
    assert steps == list(range(1, 29))
    run_rank(alone := member("alone", lr=0.02))
    assert_same_result(alone, members[0])


def test_a_file_named_stop_ends_one_head_only(member):
    members = [member("one", lr=0.02), member("two", lr=0.05)]
    members[0].job_dir.mkdir()
    (members[0].job_dir / "stop").touch()
    assert [o.reason for o in run_heads(members)] == ["stopped", "finished"]


def test_features_are_computed_once_for_all(member, tmp_path):
    run_heads([member(name, lr=0.02) for name in ("one", "two", "three", "four")])
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 4}, r"two: train.batch_size = 4: must be 8 as in one"),
        ({"freeze": "none"}, r"two: train.freeze = none: must be head_only or last_layer"),
        ({"precision": "fp16"}, r"two: train.precision = fp16"),
        ({"model": {"pooling": "last"}}, r"two: model.pooling = 'last': must be 'mean'"),
        (
            {"model": {"pooling": "attention"}, "freeze": "head_only"},
            r"two: model.pooling = attention: it learns too",
        ),
        ({"class_weights": {"dry": 2.0}}, r"two: .*'dry': no such label"),
        ({"early_stopping": EarlyStopping(metric="acuracy")}, r"two: .*'acuracy'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)
def test_heads_that_cannot_be_together_are_refused_with_the_field(member, settings, words):
    with pytest.raises(RequestError, match=words):
        run_heads([member("one"), member("two", **settings)])
    assert not (member("one").job_dir / "events.jsonl").exists()


def test_the_seed_must_be_the_same_where_the_features_depend_on_it(member):
    drawn = {"model": {"backbone": "gpt2-tiny"}}
    (words,) = differences(member("one", **drawn), member("two", seed=9, **drawn))
    assert "train.seed = 9" in words and "untrained weights" in words
    assert differences(member("one"), member("two", seed=9)) == []


def test_one_folder_cannot_be_that_of_two_jobs(member):
    with pytest.raises(RequestError, match="the folder of two jobs"):
        run_heads([member("one"), member("one", lr=0.5)])


def test_who_may_be_together_is_known_without_torch():
    import subprocess
    import sys

    code = "import sys, gpt2cls.training.grouping; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
