"""A language model from its payload to its end, with the real files of a job."""

import math
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from test_gpt2cls_training_ranks import on_ranks
from test_gpt2cls_training_session import best_bytes, events_of, steps_of

from gpt2cls.config import ModelConfig, TrainConfig
from gpt2cls.data.bpe import train_bpe
from gpt2cls.data.token_stream import encode_stream, open_stream
from gpt2cls.errors import CheckpointError
from gpt2cls.training.checkpoint import read_whole
from gpt2cls.training.learn_language import language_metrics, new_language_model
from gpt2cls.training.payload import RankPayload
from gpt2cls.training.session import load_best, run_rank

LENGTH = 16
NAMES = ["eval/loss", "eval/perplexity", "eval/bits_per_byte"]


def counting(num_texts, seed):
    """Texts that count upwards from anywhere: what comes next can be known."""
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    starts = np.random.default_rng(seed).integers(0, 10, num_texts)
    texts = [" ".join(words[(s + i) % 10] for i in range(12)) for s in starts]
    return pa.chunked_array([pa.array(texts, pa.large_string())])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    train, validation = counting(60, 1), counting(15, 2)
    tokenizer = train_bpe([train], 290)
    fields = {"vocab_size": tokenizer.vocab_size, "pad_id": tokenizer.pad_id, "max_length": LENGTH}
    for backward in (False, True):
        for name, texts in (("train", train), ("validation", validation)):
            fields[f"{name}_{backward}"] = encode_stream(
                texts, tokenizer, backward=backward, cache_dir=folder
            )
    return fields


def payload_of(data, job_dir, *, objective="causal", dropout=0.0, more=None, **train):
    backward = objective == "backward"
    train = {"epochs": 3, "batch_size": 8, "lr": 3e-3, "precision": "fp32", **train}
    return RankPayload(
        objective=objective,
        model=ModelConfig(backbone="gpt2-tiny", dropout=dropout),
        train=TrainConfig(**train),
        job_dir=job_dir,
        base_dir=job_dir,
        train_tokens=data[f"train_{backward}"],
        validation_tokens=data[f"validation_{backward}"],
        select_metric="loss",
        threads=1,
        device="cpu",
        **{name: data[name] for name in ("vocab_size", "pad_id", "max_length")},
        **(more or {}),
    )


@pytest.mark.parametrize("objective", ["causal", "backward"])
def test_what_can_be_predicted_is_learned_in_either_direction(data, tmp_path, objective):
    assert run_rank(payload_of(data, tmp_path, objective=objective, epochs=8)) == "finished"
    # A new model guesses, and the loss of a step is that of a token.
    first = events_of(tmp_path, "step")[0]["metrics"]["train/loss"]
    assert first == pytest.approx(math.log(data["vocab_size"]), abs=0.2)
    evaluations = [event["metrics"] for event in events_of(tmp_path, "eval")]
    assert list(evaluations[0]) == NAMES
    # After the first word of a text all that follows is certain: far below log(290) = 5.7.
    assert evaluations[-1]["eval/loss"] < 1.0 < evaluations[0]["eval/loss"]
    best = read_whole(tmp_path / "best").state
    losses = {e["step"]: e["metrics"]["eval/loss"] for e in events_of(tmp_path, "eval")}
    assert best["step"] == min(losses, key=losses.get)
    assert best["metrics"]["loss"] == min(losses.values())


def test_the_evaluation_is_the_mean_over_every_held_out_token(data, tmp_path):
    payload = payload_of(data, tmp_path, epochs=1)
    run_rank(payload)
    model = new_language_model(payload).eval()
    load_best(tmp_path, model)
    stream = open_stream(payload.validation_tokens)
    total = 0.0
    for start in range(0, stream.num_targets, LENGTH):
        piece = torch.tensor(stream.tokens[start : start + LENGTH + 1].astype(np.int64))
        with torch.no_grad():
            hidden = model.backbone(piece[None, :-1], torch.tensor([len(piece) - 1]))[0]
            logits = hidden @ model.backbone.wte.weight.t()
        total += float(F.cross_entropy(logits, piece[1:], reduction="sum"))
    told = events_of(tmp_path, "eval")[-1]["metrics"]
    loss = total / stream.num_targets
    assert told["eval/loss"] == pytest.approx(loss, rel=1e-5)
    assert told["eval/perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert told["eval/bits_per_byte"] == pytest.approx(
        total / math.log(2) / stream.num_bytes, rel=1e-5
    )


def test_a_coin_costs_one_bit_per_byte_where_a_token_is_a_byte():
    metrics = language_metrics(1000 * math.log(2), num_targets=1000, num_bytes=1000)
    wanted = {"loss": math.log(2), "perplexity": 2, "bits_per_byte": 1}
    assert metrics == pytest.approx(wanted, rel=1e-12)
    assert language_metrics(1e9, 1, 1)["perplexity"] == math.inf


def test_a_run_stopped_in_the_middle_and_resumed_equals_an_unbroken_one(data, tmp_path):
    run_rank(payload_of(data, tmp_path / "unbroken", dropout=0.3))
    broken = payload_of(data, tmp_path / "broken", dropout=0.3)
    polls = iter([False] * 9 + [True])
    assert run_rank(broken, should_stop=lambda: next(polls)) == "stopped"
    assert steps_of(tmp_path / "broken", "checkpoint")[-1] == 10
    assert run_rank(broken) == "finished"
    assert best_bytes(tmp_path / "broken") == best_bytes(tmp_path / "unbroken")
    assert [e["resumed_from"] for e in events_of(tmp_path / "broken", "start")] == [None, 10]


def test_what_was_made_after_the_checkpoint_of_a_killed_run_is_made_again(data, tmp_path):
    payload = payload_of(data, tmp_path, dropout=0.3)
    run_rank(payload)
    unbroken, last = best_bytes(tmp_path), steps_of(tmp_path, "checkpoint")[-1]
    shutil.rmtree(tmp_path / "checkpoints" / f"step-{last:08d}")
    shutil.rmtree(tmp_path / "best")
    assert run_rank(payload) == "finished"
    assert best_bytes(tmp_path) == unbroken
    assert events_of(tmp_path, "start")[-1]["resumed_from"] < last


def test_the_checkpoint_of_the_other_direction_is_refused(data, tmp_path):
    run_rank(payload_of(data, tmp_path, epochs=1))
    other = payload_of(data, tmp_path, epochs=1)
    with pytest.raises(CheckpointError, match="other settings or data"):
        run_rank(other.model_copy(update={"objective": "backward"}))


def test_micro_batches_do_not_change_what_is_learned(data, tmp_path):
    losses = []
    for tokens in (LENGTH, 8 * LENGTH):
        job = tmp_path / str(tokens)
        run_rank(payload_of(data, job, epochs=1, more={"tokens_per_micro_batch": tokens}))
        losses.append([e["metrics"]["train/loss"] for e in events_of(job, "step")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_it_learns_in_half_precision_too(data, tmp_path, precision):
    assert run_rank(payload_of(data, tmp_path, epochs=8, precision=precision)) == "finished"
    assert events_of(tmp_path, "eval")[-1]["metrics"]["eval/loss"] < 1.0


def trained(ranks, data, folder):
    payload = payload_of(data, folder, epochs=1, batch_size=7)
    run_rank(payload, rank=ranks.rank, world=ranks.world)


@pytest.mark.system
def test_two_ranks_learn_and_measure_what_one_does(data, tmp_path):
    run_rank(payload_of(data, tmp_path / "alone", epochs=1, batch_size=7))
    on_ranks(2, tmp_path, trained, data, tmp_path / "two")
    alone, two = (
        [event["metrics"] for event in events_of(tmp_path / job, "step")]
        for job in ("alone", "two")
    )
    assert two[0]["train/loss"] == pytest.approx(alone[0]["train/loss"], abs=1e-5)
    assert two[-1]["train/loss"] == pytest.approx(alone[-1]["train/loss"], abs=1e-3)
    one, other = (
        events_of(tmp_path / job, "eval")[-1]["metrics"]["eval/loss"] for job in ("alone", "two")
    )
    assert other == pytest.approx(one, abs=1e-3)


def test_what_a_rank_is_told_survives_json(data, tmp_path):
    payload = payload_of(data, tmp_path, objective="backward")
    assert RankPayload.model_validate(payload.model_dump(mode="json")) == payload
