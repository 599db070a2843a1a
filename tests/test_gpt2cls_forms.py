"""The forms of input, each through the real files, batches, network and loop of a job."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from test_gpt2cls_training_ranks import on_ranks
from tiny_forms import FORMS, LENGTH, config_of, rows_of, tiny_job

from gpt2cls.data.check import check
from gpt2cls.data.encode import open_tokens
from gpt2cls.data.keys import row_keys
from gpt2cls.data.prepare import prepare
from gpt2cls.model.folder import ModelInfo, save_classifier
from gpt2cls.predict import Predictor
from gpt2cls.training.auxiliary import joint_loss
from gpt2cls.training.checkpoint import read_whole
from gpt2cls.training.classification import open_classification
from gpt2cls.training.compute import Compute
from gpt2cls.training.learn_labels import new_model
from gpt2cls.training.memory import TokenBudget
from gpt2cls.training.objectives import logits
from gpt2cls.training.ranks import Ranks
from gpt2cls.training.session import load_best, run_rank

every_form = pytest.mark.parametrize("form", FORMS)


def opened(prepared, payload):
    compute = Compute(Ranks(), "fp32", TokenBudget(1 << 20))
    model = new_model(payload, prepared.task, compute.ranks).eval()
    return model, open_classification(payload, prepared.task, compute)


def losses(payload):
    events = [json.loads(line) for line in (payload.job_dir / "events.jsonl").open()]
    return [e["metrics"]["train/loss"] for e in events if e["kind"] == "step"]


@every_form
def test_a_run_stopped_in_the_middle_and_resumed_equals_an_unbroken_one(form, tmp_path):
    _, _, unbroken = tiny_job(tmp_path, form, "unbroken")
    run_rank(unbroken)
    _, _, broken = tiny_job(tmp_path, form, "broken")
    polls = iter([False] * 9 + [True])
    assert run_rank(broken, should_stop=lambda: next(polls)) == "stopped"
    assert run_rank(broken) == "finished"
    assert losses(broken) == losses(unbroken)
    ends = [read_whole(payload.job_dir / "best") for payload in (broken, unbroken)]
    one, other = (end.tensors("model") for end in ends)
    assert all(torch.equal(one[name], other[name]) for name in one)


def as_rank(ranks, payload):
    run_rank(payload, ranks.rank, ranks.world)
    return losses(payload)


@pytest.mark.system
@every_form
def test_two_ranks_learn_what_one_learns(form, tmp_path):
    train = {"batch_size": 7, "eval_every": "100 steps"}
    _, _, alone = tiny_job(tmp_path, form, "alone", **train)
    run_rank(alone)
    _, _, shared = tiny_job(tmp_path, form, "shared", **train)
    shared = shared.model_copy(update={"model": shared.model.model_copy(update={"dropout": 0.0})})
    alone = alone.model_copy(
        update={"model": shared.model, "job_dir": tmp_path / "without_dropout"}
    )
    run_rank(alone)
    (found, others) = on_ranks(2, tmp_path, as_rank, shared)
    assert found == others
    assert found == pytest.approx(losses(alone), abs=1e-3)


@every_form
def test_a_row_has_the_same_logits_alone_in_company_and_by_a_small_budget(form, tmp_path):
    prepared, _, payload = tiny_job(tmp_path, form)
    model, data = opened(prepared, payload)
    rows = np.arange(24)
    with torch.no_grad():
        together = logits(model, data.validation.batch(rows))
        alone = torch.cat([logits(model, data.validation.batch(rows[i : i + 1])) for i in rows])
        parts = [logits(model, batch) for batch in data.validation.batches(rows, 3 * LENGTH)]
    assert len(parts) > 3
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(together, torch.cat(parts), atol=1e-5, rtol=0)


@every_form
def test_a_saved_model_predicts_what_the_trained_one_does(form, tmp_path):
    prepared, tokenizer, payload = tiny_job(tmp_path, form)
    run_rank(payload)
    model, data = opened(prepared, payload)
    load_best(payload.job_dir, model)
    info = ModelInfo(
        task=prepared.task,
        model=payload.model,
        text=("first", "second"),
        max_length=LENGTH,
        vocab_size=tokenizer.vocab_size,
        pad_id=tokenizer.pad_id,
    )
    save_classifier(model, tokenizer, info, tmp_path / "model")
    predictor = Predictor.load(tmp_path / "model", device="cpu")
    assert predictor.info.task == prepared.task
    split = prepared.validation
    found = predictor.probabilities(split.texts.to_pylist(), split.pairs.to_pylist())
    with torch.no_grad():
        wanted = model.probabilities(logits(model, data.validation.batch(np.arange(len(split)))))
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)
    assert np.ptp(found, axis=0).max() > 0.01  # the rows do differ


@every_form
def test_the_data_report_counts_the_tokens_of_every_sequence(form, tmp_path):
    prepared, tokenizer, payload = tiny_job(tmp_path, form)
    counted = check(prepared, encode=tokenizer, max_length=LENGTH).tokens
    lengths = {
        name: open_tokens(getattr(payload, f"{name}_tokens")).full_lengths
        for name in ("train", "validation")
    }
    cached = check(prepared, full_lengths=lengths, max_length=LENGTH).tokens
    assert {name: counted[name] for name in cached} == cached


def test_a_pair_without_an_order_is_the_sum_of_both_of_its_orders(tmp_path):
    prepared, tokenizer, payload = tiny_job(tmp_path, "both orders")
    model, data = opened(prepared, payload)
    batch = data.validation.batch(np.arange(24))
    split = prepared.validation
    firsts, seconds = split.texts.to_pylist(), split.pairs.to_pylist()
    with torch.no_grad():
        found = model.features(batch.tokens_BT, batch.lengths_B)
        for row in range(24):
            expected = torch.zeros(64)
            for pair in ((firsts[row], seconds[row]), (seconds[row], firsts[row])):
                (ids,), _ = tokenizer.encode([pair[0]], [pair[1]], LENGTH)
                expected += model.features(torch.tensor(ids)[None], torch.tensor([len(ids)]))[0]
            torch.testing.assert_close(found[row], expected, atol=1e-4, rtol=0)


def test_a_pair_without_an_order_is_its_own_reverse(tmp_path):
    prepared, tokenizer, payload = tiny_job(tmp_path, "both orders")
    model, _ = opened(prepared, payload)
    info = ModelInfo(
        task=prepared.task,
        model=payload.model,
        text=("first", "second"),
        max_length=LENGTH,
        vocab_size=tokenizer.vocab_size,
        pad_id=tokenizer.pad_id,
    )
    predictor = Predictor.of(model, tokenizer, info, torch.device("cpu"))
    split = prepared.test
    firsts, seconds = split.texts.to_pylist(), split.pairs.to_pylist()
    forward = predictor.probabilities(firsts, seconds)
    np.testing.assert_allclose(forward, predictor.probabilities(seconds, firsts), atol=1e-6)
    assert np.ptp(forward, axis=0).max() > 1e-4


def test_a_pair_and_its_reverse_are_duplicates_where_order_says_nothing(tmp_path):
    config = config_of(tmp_path, "both orders")
    lines = [json.dumps(row) for row in rows_of("both orders", 60, 0)]
    turned = json.loads(lines[0])
    turned["first"], turned["second"] = turned["second"] + " x", turned["first"]
    there = turned | {"first": turned["second"], "second": turned["first"]}
    (tmp_path / "train.jsonl").write_text(
        "\n".join([*lines, json.dumps(turned), json.dumps(there)])
    )
    kinds = {}
    for pair in ("both_orders", "ordered"):
        prepared = prepare(config.model_copy(update={"pair": pair}), base_dir=tmp_path, seed=0)
        report = check(prepared, max_length=LENGTH)
        kinds[pair] = {p.kind: p.count for p in report.problems}.get("duplicates", 0)
    assert kinds["both_orders"] == kinds["ordered"] + 1


def test_the_key_of_an_ordered_pair_is_not_that_of_its_reverse():
    one, other = (pa.chunked_array([[text]], pa.large_string()) for text in ("a", "b"))
    assert row_keys(one, other) != row_keys(other, one)
    assert row_keys(one, other, is_ordered=False) == row_keys(other, one, is_ordered=False)


def test_pooled_vectors_of_both_orders_are_kept_for_a_frozen_backbone(tmp_path):
    _, _, payload = tiny_job(tmp_path, "both orders", freeze="head_only")
    run_rank(payload)
    notes = [json.loads(line) for line in (payload.job_dir / "events.jsonl").open()]
    assert any("computing its features" in str(note) for note in notes)
    kept = read_whole(payload.job_dir / "best")
    assert {name.split(".")[0] for name in kept.tensors("model")} == {"head"}


@every_form
def test_the_loss_of_labels_and_texts_is_the_sum_over_rows_however_they_are_batched(form, tmp_path):
    prepared, _, payload = tiny_job(tmp_path, form)
    model, data = opened(prepared, payload)
    rows, loss_sum = np.arange(24), joint_loss(model, data.objective.loss_of_features, 0.5)
    with torch.no_grad():
        of_labels = float(data.objective.loss_sum(model, data.validation.batch(rows)))
        together = float(loss_sum(model, data.validation.batch(rows)))
        parts = [float(loss_sum(model, b)) for b in data.validation.batches(rows, 3 * LENGTH)]
    assert together == pytest.approx(sum(parts), abs=1e-3)
    # An untrained model guesses each token: ln(vocabulary), of which a half counts.
    assert together - of_labels == pytest.approx(24 * 0.5 * np.log(payload.vocab_size), rel=0.05)
