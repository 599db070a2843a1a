"""An encoder-decoder trained by one rank on real texts: learning, freezing, resuming, rates."""

from pathlib import Path

import numpy as np
import pytest
from test_gpt2cls_training_session import best_bytes, events_of, payload_of
from tiny_training import tiny_config, tiny_model

from gpt2cls.config import DataConfig
from gpt2cls.data.bpe import train_bpe
from gpt2cls.data.encode import encode_split
from gpt2cls.data.prepare import prepare
from gpt2cls.training.checkpoint import read_whole
from gpt2cls.training.freezing import ever_trainable, frozen_depth, trainable_names
from gpt2cls.training.optim import parameter_groups
from gpt2cls.training.session import run_rank

MODEL = {"head": "encdec", "temperature": 1.0, "dropout": 0.1}


@pytest.fixture(scope="module")
def news(tmp_path_factory):
    """BBC news, the first words of each text."""
    folder = tmp_path_factory.mktemp("news")
    prepared = prepare(DataConfig(train="bbc-news"), base_dir=Path(), seed=0)
    tokenizer = train_bpe([prepared.train.texts], 2000)
    fields = {"vocab_size": tokenizer.vocab_size, "pad_id": tokenizer.pad_id, "max_length": 48}
    for name in ("train", "validation"):
        split = prepared.splits[name]
        fields[f"{name}_tokens"] = encode_split(split, tokenizer, max_length=48, cache_dir=folder)
        fields[f"{name}_labels"] = folder / f"{name}.npy"
        np.save(folder / f"{name}.npy", split.labels)
    return fields, prepared.task


def payload(news, folder, **train):
    fields, task = news
    train = {"epochs": 2, "batch_size": 16, "lr": 1e-3, **train}
    return payload_of(fields, folder, model=MODEL, task=task, **train)


def test_it_learns_far_more_than_the_largest_class(news, tmp_path):
    assert run_rank(payload(news, tmp_path, epochs=3)) == "finished"
    accuracies = [e["metrics"]["eval/accuracy"] for e in events_of(tmp_path, "eval")]
    shares = np.bincount(np.load(news[0]["validation_labels"]))
    assert max(accuracies) > 2 * shares.max() / shares.sum()
    sizes = events_of(tmp_path, "start")[0]["parameters_of"]
    assert sizes["head"] == 5 * 64 + 5
    # an attention has 4 matrices and biases, a feed-forward part 2, a norm 2 vectors
    attention, forward, norm = 4 * (64 * 64 + 64), 2 * 64 * 256 + 256 + 64, 2 * 64
    assert sizes["pooling"] == 3 * (3 * attention + 2 * forward + 5 * norm) + 5 * 64


def test_a_run_that_was_stopped_ends_with_the_weights_of_an_unbroken_one(news, tmp_path):
    run_rank(payload(news, tmp_path / "unbroken", max_steps=8))
    polls = iter([False] * 3 + [True])
    broken = payload(news, tmp_path / "broken", max_steps=8)
    assert run_rank(broken, should_stop=lambda: next(polls)) == "stopped"
    assert run_rank(broken) == "finished"
    assert best_bytes(tmp_path / "broken") == best_bytes(tmp_path / "unbroken")


def test_with_head_only_the_embeddings_stay_and_nothing_is_kept_on_disk(news, tmp_path):
    assert run_rank(payload(news, tmp_path, freeze="head_only", max_steps=4)) == "finished"
    assert not (tmp_path / "features").exists()
    model = tiny_model(head="encdec")
    names = trainable_names(model, "head_only", 0)
    assert names == {n for n, _ in model.named_parameters() if not n.startswith("backbone.")}
    assert frozen_depth(model, names) is None


def test_gradual_thaws_the_embeddings_after_an_epoch_of_the_new_layers():
    model = tiny_model(head="encdec")
    assert trainable_names(model, "gradual", 0) == trainable_names(model, "head_only", 0)
    assert trainable_names(model, "gradual", 1) == {name for name, _ in model.named_parameters()}


def test_the_embeddings_learn_slower_than_the_new_layers_by_layer_decay():
    model = tiny_model(head="encdec")
    config = tiny_config(layer_decay=2.0)
    groups = parameter_groups(model, config, ever_trainable(model, "none", 1))
    share = {id(p): group["lr_share"] for group in groups for p in group["params"]}
    assert share[id(model.backbone.wte.weight)] == 0.5
    assert share[id(model.pooling.encoder[0].up.weight)] == share[id(model.head.linear.weight)] == 1
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_tokens_that_never_occur_take_no_part_and_come_back(news, tmp_path):
    fields, task = news
    wide = {**fields, "vocab_size": 4_000}  # half of the table is never looked up
    job = payload_of(wide, tmp_path, model=MODEL, task=task, batch_size=16, max_steps=2, lr=1e-3)
    run_rank(job)
    start = events_of(tmp_path, "start")[0]
    assert start["parameters_of"]["backbone"] == (4_000 + 48) * 64 + 2 * 64
    assert start["trained_parameters"] < start["parameters"]
    best = read_whole(tmp_path / "best").tensors("model")
    assert best["backbone.wte.weight"].shape == (4_000, 64)
