"""An AWD-LSTM in training: as a language model, below a classifier, frozen in parts, resumed."""

import shutil

import pytest
import test_gpt2cls_training_language as language
import test_gpt2cls_training_session as labels
import torch
from test_gpt2cls_training_session import best_bytes, events_of, steps_of
from tiny_training import Log, tiny_config, tiny_model, tiny_state, tiny_work

from gpt2cls.config import ModelConfig
from gpt2cls.data.bpe import train_bpe
from gpt2cls.model.classifier import build_classifier
from gpt2cls.model.folder import ModelInfo, save_classifier
from gpt2cls.predict import Predictor
from gpt2cls.training.freezing import ever_trainable, layer_groups, trainable_names
from gpt2cls.training.loop import fit
from gpt2cls.training.ranks import Ranks
from gpt2cls.training.session import run_rank

texts = language.data
labelled = labels.data
LSTM = {"backbone": "awd-lstm-tiny"}


def of_texts(texts, job_dir, *, dropout=0.0, **train):
    payload = language.payload_of(texts, job_dir, **train)
    model = payload.model.model_copy(update={**LSTM, "dropout": dropout})
    return payload.model_copy(update={"model": model})


def of_labels(labelled, job_dir, *, model=None, **train):
    return labels.payload_of(labelled, job_dir, model={**LSTM, **(model or {})}, **train)


def last_metrics(job_dir):
    return events_of(job_dir, "eval")[-1]["metrics"]


@pytest.mark.parametrize("objective", ["causal", "backward"])
def test_what_can_be_predicted_is_learned_in_either_direction(texts, tmp_path, objective):
    settings = {"epochs": 6, "lr": 1e-2}
    run_rank(of_texts(texts, tmp_path, dropout=0.02, objective=objective, **settings))
    losses = [event["metrics"]["eval/loss"] for event in events_of(tmp_path, "eval")]
    # Who only counts tokens stays at 2.8; after the first word of a text all is certain.
    assert losses[-1] < 1.0 < losses[0]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_it_learns_in_half_precision_too(texts, tmp_path, precision):
    run_rank(of_texts(texts, tmp_path, precision=precision, epochs=6, lr=1e-2))
    assert last_metrics(tmp_path)["eval/loss"] < 1.0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_language_model_stopped_and_resumed_equals_an_unbroken_one(texts, tmp_path, precision):
    settings = {"dropout": 0.4, "precision": precision}
    run_rank(of_texts(texts, tmp_path / "unbroken", **settings))
    broken = of_texts(texts, tmp_path / "broken", **settings)
    polls = iter([False] * 9 + [True])
    assert run_rank(broken, should_stop=lambda: next(polls)) == "stopped"
    assert run_rank(broken) == "finished"
    assert [e["resumed_from"] for e in events_of(tmp_path / "broken", "start")] == [None, 10]
    assert best_bytes(tmp_path / "broken") == best_bytes(tmp_path / "unbroken")


def test_what_was_made_after_the_checkpoint_of_a_killed_run_is_made_again(texts, tmp_path):
    payload = of_texts(texts, tmp_path, dropout=0.4)
    run_rank(payload)
    unbroken, last = best_bytes(tmp_path), steps_of(tmp_path, "checkpoint")[-1]
    shutil.rmtree(tmp_path / "checkpoints" / f"step-{last:08d}")
    shutil.rmtree(tmp_path / "best")
    assert run_rank(payload) == "finished"
    assert best_bytes(tmp_path) == unbroken
    assert events_of(tmp_path, "start")[-1]["resumed_from"] < last


@pytest.mark.parametrize("pooling", ["last", "mean", "max", "concat", "attention"])
def test_a_classifier_learns_the_weather_with_every_pooling(labelled, tmp_path, pooling):
    model = {"pooling": pooling, "dropout": 0.1}
    run_rank(of_labels(labelled, tmp_path, model=model, epochs=8))
    # One text in three has each label.
    assert last_metrics(tmp_path)["eval/accuracy"] >= 0.9


def test_a_classifier_learns_its_texts_beside_its_labels(labelled, tmp_path):
    run_rank(of_labels(labelled, tmp_path, model={"pooling": "mean"}, epochs=8, lm_weight=0.5))
    assert last_metrics(tmp_path)["eval/accuracy"] >= 0.9


@pytest.mark.parametrize("freeze", ["gradual", "chain_thaw", "top:1", "head_only", "last_layer"])
def test_a_classifier_stopped_and_resumed_equals_an_unbroken_one(labelled, tmp_path, freeze):
    settings = {"freeze": freeze, "model": {"dropout": 0.4, "pooling": "concat"}, "epochs": 4}
    run_rank(of_labels(labelled, tmp_path / "unbroken", **settings))
    broken = of_labels(labelled, tmp_path / "broken", **settings)
    polls = iter([False] * 9 + [True])
    assert run_rank(broken, should_stop=lambda: next(polls)) == "stopped"
    assert run_rank(broken) == "finished"
    assert best_bytes(tmp_path / "broken") == best_bytes(tmp_path / "unbroken")


def test_a_saved_classifier_predicts_what_it_did_and_in_fp32(tmp_path):
    texts = labels.weather(9, 3).texts
    tokenizer = train_bpe([labels.weather(50, 1).texts], 280)
    sizes = {"vocab_size": tokenizer.vocab_size, "pad_id": tokenizer.pad_id, "max_length": 16}
    config = ModelConfig(**LSTM, pooling="concat")
    model = build_classifier(config, labels.TASK, **sizes, seed=1, base_dir=tmp_path).eval()
    info = ModelInfo(task=labels.TASK, model=config, **sizes)
    save_classifier(model, tokenizer, info, tmp_path / "model")
    predictor = Predictor.load(tmp_path / "model", device="cpu")
    together = predictor.probabilities(texts.to_pylist())
    ids, _ = tokenizer.encode(texts.to_pylist(), None, 16)
    for tokens, probs_C in zip(ids, together, strict=True):
        tokens_1T = torch.tensor(tokens.astype(int))[None]
        with torch.no_grad():
            logits_1C = model(tokens_1T, torch.tensor([tokens_1T.shape[1]]), torch.zeros(1))
        # Batches are padded, and sums are taken in another order.
        assert probs_C == pytest.approx(model.probabilities(logits_1C)[0].numpy(), abs=1e-5)


def parts(names):
    short = {name.removeprefix("backbone.").rpartition(".")[0] for name in names}
    return sorted({"head" if name.startswith("head") else name for name in short})


FREEZING = {
    ("none", 0): ["h.0", "h.1", "head", "wte"],
    ("head_only", 9): ["head"],
    ("last_layer", 9): ["head"],
    ("top:1", 0): ["h.1", "head"],
    ("gradual", 0): ["head"],
    ("gradual", 1): ["h.1", "head"],
    ("gradual", 2): ["h.0", "h.1", "head", "wte"],
    ("chain_thaw", 1): ["h.0", "wte"],
    ("chain_thaw", 2): ["h.1"],
}


@pytest.mark.parametrize(("how", "expected"), FREEZING.items(), ids=str)
def test_what_learns_is(how, expected):
    assert parts(trainable_names(tiny_model(**LSTM), *how)) == expected


def test_the_reference_shape_has_four_groups_with_the_embedding_in_the_lowest():
    model = tiny_model(backbone="awd-lstm")
    backbone = model.backbone
    assert layer_groups(model) == [
        [backbone.wte, backbone.h[0]],
        [backbone.h[1]],
        [backbone.h[2]],
        [model.pooling, model.head],
    ]


@pytest.mark.parametrize("freeze", ["top:1", "chain_thaw"])
def test_what_is_frozen_stays_and_has_no_dropout(freeze):
    config = tiny_config(freeze=freeze, epochs=2, lr=1e-2)
    model = tiny_model(**LSTM, dropout=0.4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fit(tiny_state(config, model), tiny_work(config, Log()), config, Ranks())
    moved = {n for n, tensor in model.state_dict().items() if not torch.equal(tensor, before[n])}
    assert moved == ever_trainable(model, freeze, 2)
    learned_last = trainable_names(model, freeze, 1)
    for block in model.backbone.blocks:
        names = {n for n, p in model.named_parameters() for q in block[0].parameters() if p is q}
        assert block[0].training == (names <= learned_last)
