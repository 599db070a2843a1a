"""What frozen layers make of the texts, kept on disk: the same as what is computed anew."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from test_gpt2cls_training_ranks import on_ranks
from tiny_training import tiny_model, tiny_rows

from gpt2cls.data.batches import HiddenRows, SequenceRows
from gpt2cls.data.tasks import Task
from gpt2cls.model.auto import AutoBackbone
from gpt2cls.training import shelf
from gpt2cls.training.compute import Compute
from gpt2cls.training.features import kept_features
from gpt2cls.training.freezing import (
    apply_freeze,
    frozen_depth,
    set_training_mode,
    trainable_names,
)
from gpt2cls.training.memory import TokenBudget
from gpt2cls.training.objectives import Objective
from gpt2cls.training.ranks import Ranks

POOLINGS = ("last", "mean", "max", "concat", "attention")
SUM_OF_LOSSES = Objective(is_multi_label=False)


def compute_of(precision="fp32", ranks=None, budget=1 << 20):
    return Compute(ranks or Ranks(), precision, TokenBudget(budget))


def keep(model, rows, folder, depth, compute=None, told=None, job="job-1"):
    tell = (told if told is not None else []).append
    compute = compute or compute_of()
    return kept_features(model, rows, folder, compute, job=job, tell=tell, depth=depth)


def learn_once(model, source, rows, *, dropout_seed=1):
    """The loss of one training step, and the gradients of all that learns."""
    set_training_mode(model)
    model.zero_grad()
    torch.manual_seed(dropout_seed)
    loss = sum(SUM_OF_LOSSES.loss_sum(model, batch) for batch in source.batches(rows, 300))
    loss.backward()
    return loss.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def frozen_model(how, epoch, **settings):
    model = tiny_model(**{"backbone": "gpt2-mini", "dropout": 0.3, **settings})
    names = trainable_names(model, how, epoch)
    apply_freeze(model, names)
    return model, frozen_depth(model, names)


DEPTHS = {
    ("last_layer", 0, "attention"): "pooled",
    ("head_only", 0, "mean"): "pooled",
    ("head_only", 0, "attention"): "final",
    ("top:1", 0, "last"): 3,
    ("top:2", 0, "last"): 2,
    ("top:4", 0, "last"): None,
    ("none", 0, "last"): None,
    ("gradual", 0, "last"): "pooled",
    ("gradual", 0, "attention"): "final",
    ("gradual", 1, "attention"): 3,
    ("gradual", 2, "last"): 2,
    ("gradual", 3, "last"): None,
    ("chain_thaw", 0, "last"): "pooled",
    ("chain_thaw", 1, "last"): None,
    ("chain_thaw", 2, "last"): 2,
    ("chain_thaw", 3, "last"): 3,
    ("chain_thaw", 4, "last"): None,
}


@pytest.mark.parametrize(("how", "expected"), DEPTHS.items(), ids=str)
def test_nothing_changes_up_to(how, expected):
    freeze, epoch, pooling = how
    assert frozen_model(freeze, epoch, pooling=pooling)[1] == expected


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(
    ("freeze", "epoch"), [("head_only", 0), ("top:1", 0), ("gradual", 2), ("chain_thaw", 2)]
)
def test_a_step_from_what_was_kept_equals_one_from_tokens(tmp_path, pooling, freeze, epoch):
    model, depth = frozen_model(freeze, epoch, pooling=pooling)
    rows, chosen = tiny_rows(24), np.array([3, 17, 8, 22, 5, 0])
    loss, gradients = learn_once(model, rows, chosen)
    kept = keep(model, rows, tmp_path, depth)
    assert kept is not rows
    loss_of_kept, gradients_of_kept = learn_once(model, kept, chosen)
    # Kept in fp32: batches of another shape round the last bit otherwise, and no more.
    assert loss_of_kept == pytest.approx(loss, rel=1e-5)
    assert gradients_of_kept.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_of_kept[name], gradient, atol=2e-5, rtol=1e-4)


def test_half_precision_keeps_two_bytes_a_number_and_rounds_no_more_than_a_product_does(tmp_path):
    model, depth = frozen_model("top:1", 0, dropout=0.0)
    rows, chosen = tiny_rows(24), np.arange(24)
    with torch.autocast("cpu", torch.bfloat16):
        loss, gradients = learn_once(model, rows, chosen)
    kept = keep(model, rows, tmp_path, depth, compute_of("bf16"))
    assert kept.hidden.dtype == np.int16 and kept.hidden.shape[1] == 256
    with torch.autocast("cpu", torch.bfloat16):
        loss_of_kept, gradients_of_kept = learn_once(model, kept, chosen)
    assert loss_of_kept == pytest.approx(loss, rel=2e-3)  # bf16 has a precision of 2^-8 = 4e-3
    name = "backbone.h.3.mlp.c_fc.weight"
    difference = (gradients_of_kept[name] - gradients[name]).norm() / gradients[name].norm()
    assert difference < 0.02


def test_a_text_without_tokens_is_one_of_padding(tmp_path):
    model, depth = frozen_model("top:1", 0)
    rows = tiny_rows(6)
    rows.data.lengths[2] = 0
    rows.data.offsets[3:] -= rows.data.offsets[3] - rows.data.offsets[2]
    loss, _ = learn_once(model, rows, np.arange(6))
    loss_of_kept, _ = learn_once(model, keep(model, rows, tmp_path, depth), np.arange(6))
    assert loss_of_kept == pytest.approx(loss, rel=1e-5)


def test_keeping_leaves_modes_and_random_numbers_as_they_were(tmp_path):
    model, depth = frozen_model("top:1", 0)
    set_training_mode(model)
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    keep(model, tiny_rows(9), tmp_path, depth)
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(state, torch.get_rng_state())


def test_values_are_computed_once_and_in_a_folder_that_is_whole(tmp_path):
    model, rows, told = tiny_model(pooling="concat", dropout=0.4), tiny_rows(40), []
    kept = keep(model, rows, tmp_path, "pooled", compute_of(budget=64), told)
    batch = rows.batch(np.arange(40))
    with torch.no_grad():
        expected = model.eval().features(batch.tokens_BT, batch.lengths_B)
    torch.testing.assert_close(torch.tensor(kept.features), expected, atol=1e-5, rtol=1e-5)
    keep(model, rows, tmp_path, "pooled", told=told, job="job-2")
    assert told == ["the backbone is frozen: computing its features of 40 texts, once (0.0 MB)"]
    assert [path.name[0] for path in tmp_path.iterdir()] != ["."]


def damaged(folder, how):
    (file,) = folder.glob("*/features.npy")
    if how == "torn":
        file.write_bytes(file.read_bytes()[:-100])
    elif how == "missing":
        file.unlink()
    else:
        values = np.load(file)
        np.save(file, {"other values": values[::-1], "zeros": 0 * values}[how])


@pytest.mark.parametrize("how", ["torn", "missing", "other values", "zeros"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_damaged_file_is_made_anew(tmp_path, how, precision):
    model, rows, told = tiny_model(), tiny_rows(30), []
    compute = compute_of(precision)
    right = np.array(keep(model, rows, tmp_path, 1, compute).hidden)
    damaged(tmp_path, how)
    again = keep(model, rows, tmp_path, 1, compute, told)
    assert np.array_equal(again.hidden, right)
    is_seen = any("not those that the model computes" in words for words in told)
    assert is_seen == (how in ("other values", "zeros"))


def test_only_what_lies_below_decides_which_file_is_read(tmp_path):
    model, rows = tiny_model(), tiny_rows(12)
    keep(model, rows, tmp_path, 1)
    with torch.no_grad():
        model.backbone.h[1].ln_1.weight.mul_(2)  # above
    keep(model, rows, tmp_path, 1)
    assert len(list(tmp_path.iterdir())) == 1
    with torch.no_grad():
        model.backbone.h[0].ln_1.weight.mul_(2)
    keep(model, rows, tmp_path, 1)
    keep(model, tiny_rows(11), tmp_path, 1)
    keep(model, rows, tmp_path, "final")
    keep(model, rows, tmp_path, 1, compute_of("bf16"))
    assert len(list(tmp_path.iterdir())) == 5


def test_what_would_not_fit_is_computed_every_time_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr(shelf, "LIMIT_BYTES", 10_000)
    model, rows, told = tiny_model(), tiny_rows(30), []
    assert keep(model, rows, tmp_path, 1, told=told) is rows
    assert "no room for features" in told[0] and "in every step" in told[0]
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_found_before_anything_is_computed(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shelf.os, "posix_fallocate", full)
    rows, told = tiny_rows(30), []
    assert keep(tiny_model(), rows, tmp_path, 1, told=told) is rows
    assert "No space left" in told[0]
    assert list(tmp_path.iterdir()) == []


def test_what_was_not_read_for_longest_goes_first_and_stays_readable(tmp_path, monkeypatch):
    model, rows = tiny_model(), tiny_rows(30)
    keep(model, rows, tmp_path, 1)
    (older,) = tmp_path.iterdir()
    kept = keep(model, rows, tmp_path, "final")
    (newer,) = set(tmp_path.iterdir()) - {older}
    before = np.array(kept.hidden)
    keep(model, rows, tmp_path, 1)  # read again: now the other one is older
    monkeypatch.setattr(shelf, "LIMIT_BYTES", int(2.2 * before.nbytes))
    keep(model, rows, tmp_path, 1, compute_of("bf16"))
    assert older.exists() and not newer.exists() and len(list(tmp_path.iterdir())) == 2
    assert np.array_equal(kept.hidden, before)


def test_what_a_dead_job_left_half_written_is_removed_after_a_day(tmp_path):
    model, rows = tiny_model(), tiny_rows(9)
    for name, age_s in (("dead", 90_000), ("alive", 60)):
        folder = tmp_path / f".key.{name}.writing"
        folder.mkdir()
        os.utime(folder, (time.time() - age_s,) * 2)
    keep(model, rows, tmp_path, 1)
    assert [path.name for path in tmp_path.glob(".*")] == [".key.alive.writing"]


ROOM = {
    "all fits": (["a", "b"], 40, 100, []),
    "the oldest goes": (["a", "b"], 41, 100, ["a"]),
    "as many as need be": (["b", "a"], 90, 100, ["b", "a"]),
    "nothing is there": ([], 50, 100, []),
}


@pytest.mark.parametrize(("oldest_first", "new", "limit", "gone"), ROOM.values(), ids=ROOM)
def test_room_is_made(oldest_first, new, limit, gone):
    used_s = {Path(name): float(place) for place, name in enumerate(oldest_first)}
    sizes = {Path(name): 30 for name in oldest_first}
    assert shelf.doomed(used_s, sizes, new, limit) == [Path(name) for name in gone]


def sequence_rows(sizes):
    """Rows of one to three sequences each, of up to 16 tokens."""
    starts = np.concatenate([[0], np.cumsum(sizes)])
    texts = tiny_rows(int(starts[-1]))
    return SequenceRows(texts.data, starts, np.arange(len(sizes)) % 2, 0, 16, 1, max(sizes))


def choosing_model(**settings):
    return tiny_model(Task("multiple_choice", ("a", "b"), False), **settings)


MANY = {
    "pairs in both orders": (tiny_model, [2] * 12, "mean", "top:1"),
    "answers": (choosing_model, [2, 3, 2, 2, 3, 2, 2, 3, 2, 2, 2, 2], "last", "top:1"),
    "answers, all but the pooling": (choosing_model, [2] * 12, "attention", "head_only"),
}


@pytest.mark.parametrize(("make", "sizes", "pooling", "freeze"), MANY.values(), ids=MANY)
def test_rows_of_several_sequences_are_kept_too(tmp_path, make, sizes, pooling, freeze):
    model, rows = make(pooling=pooling), sequence_rows(sizes)
    assert_kept_rows_learn_alike(model, rows, freeze, tmp_path)


def assert_kept_rows_learn_alike(model, rows, freeze, folder):
    chosen, names = np.array([3, 1, 8, 11]), trainable_names(model, freeze, 0)
    apply_freeze(model, names)
    loss, gradients = learn_once(model, rows, chosen)
    kept = keep(model, rows, folder, frozen_depth(model, names))
    assert isinstance(kept, HiddenRows)
    loss_of_kept, gradients_of_kept = learn_once(model, kept, chosen)
    assert loss_of_kept == pytest.approx(loss, rel=1e-5)
    assert gradients_of_kept.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_of_kept[name], gradient, atol=2e-5, rtol=1e-4)


def llama(kind=transformers.LlamaModel):
    torch.manual_seed(2)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "vocab_size": 60}
    return AutoBackbone(kind(transformers.LlamaConfig(num_attention_heads=4, **shape)))


@pytest.mark.parametrize("freeze", ["top:1", "top:2"])
def test_a_backbone_of_transformers_is_cut_at_a_block(tmp_path, freeze):
    model, rows = tiny_model(pooling="mean"), tiny_rows(12)
    model.backbone = llama()
    assert_kept_rows_learn_alike(model, rows, freeze, tmp_path)


def test_what_decides_hidden_states_of_another_backbone_has_a_file_of_its_own(tmp_path):
    model, rows = tiny_model(pooling="mean"), tiny_rows(12)
    model.backbone = llama()
    keep(model, rows, tmp_path, 1)
    with torch.no_grad():
        model.backbone.model.layers[1].mlp.up_proj.weight.add_(1)  # above the cut
    model.backbone.model.config.attention_dropout = 0.3  # none, where nothing learns
    keep(model, rows, tmp_path, 1)
    assert len([*tmp_path.iterdir()]) == 1
    with torch.no_grad():
        model.backbone.model.embed_tokens.weight[59] += 1  # of a token that no text has
    keep(model, rows, tmp_path, 1)
    model.backbone.model.config.rms_norm_eps = 0.1  # shows in no tensor
    keep(model, rows, tmp_path, 1)
    assert len([*tmp_path.iterdir()]) == 3


def test_an_lstm_is_cut_between_layers_of_other_widths(tmp_path):
    model = tiny_model(backbone="awd-lstm-tiny", pooling="concat", dropout=0.0)
    assert model.backbone.width_below(1) != model.backbone.width
    assert_kept_rows_learn_alike(model, tiny_rows(12), "top:1", tmp_path)


class Bypassed(transformers.LlamaModel):
    """Its last output reads the embeddings once more, past all layers."""

    def forward(self, input_ids, **kwargs):
        output = super().forward(input_ids, **kwargs)
        output.last_hidden_state += self.embed_tokens(input_ids)
        return output


class Particular(transformers.LlamaModel):
    """Runs with its own layers or not at all."""

    def forward(self, input_ids, **kwargs):
        if "forward" in vars(self.layers[0]):
            raise TypeError("a layer gave what no layer gives")
        return super().forward(input_ids, **kwargs)


@pytest.mark.parametrize("kind", [Bypassed, Particular])
def test_a_backbone_that_cannot_be_cut_is_kept_whole_or_not_at_all(tmp_path, kind):
    model, rows, told = tiny_model(pooling="attention"), tiny_rows(12), []
    model.backbone = llama(kind)
    set_training_mode(model)
    assert keep(model, rows, tmp_path, 1, told=told) is rows
    assert "cannot be cut at a block" in told[0]
    assert model.head.training and model.backbone.training, "dropout is off"
    loss, _ = learn_once(model, rows, np.arange(12))
    kept = keep(model, rows, tmp_path, "final")
    apply_freeze(model, {n for n, _ in model.named_parameters() if not n.startswith("backbone")})
    assert learn_once(model, kept, np.arange(12))[0] == pytest.approx(loss, rel=1e-5)


def hidden_bytes(ranks, folder):
    kept = keep(tiny_model(), tiny_rows(31), folder, 1, compute_of(ranks=ranks))
    return np.array(kept.hidden).tobytes()


@pytest.mark.system
def test_two_ranks_keep_together_the_bits_that_one_keeps(tmp_path):
    answers = on_ranks(2, tmp_path, hidden_bytes, tmp_path / "two")
    assert answers == [hidden_bytes(Ranks(), tmp_path / "one")] * 2


def test_a_folder_of_several_files_goes_as_a_whole_unless_it_was_just_used(tmp_path):
    for age_s, name in enumerate(("new", "old", "used")):
        (tmp_path / name / "deep").mkdir(parents=True)
        for file in ("weights", "deep/words"):
            (tmp_path / name / file).write_bytes(bytes(20))
            os.utime(tmp_path / name / file, (time.time() - 100 * age_s - 100,) * 2)
        for folder in ("deep", "."):
            os.utime(tmp_path / name / folder, (time.time() - 100 * age_s - 100,) * 2)
    shelf.note_use(tmp_path / "used")
    shelf.make_room(tmp_path, 5, 100, spared_s=3600)  # of 120 bytes
    assert len(list(tmp_path.iterdir())) == 3
    shelf.make_room(tmp_path, 5, 100)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "used"]
