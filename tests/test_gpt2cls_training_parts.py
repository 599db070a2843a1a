"""Objectives, layer groups, freezing, the optimizer's groups, precision."""

import numpy as np
import pytest
import torch
from tiny_training import Log, tiny_config, tiny_model, tiny_state, tiny_work

from gpt2cls.errors import RequestError
from gpt2cls.training.freezing import (
    apply_freeze,
    ever_trainable,
    layer_groups,
    set_training_mode,
    trainable_names,
)
from gpt2cls.training.loop import fit
from gpt2cls.training.objectives import Objective, class_weights
from gpt2cls.training.optim import new_optimizer, set_lr
from gpt2cls.training.precision import LossScale, autocast, pick_for_cpu, pick_precision
from gpt2cls.training.ranks import Ranks
from gpt2cls.training.state import Best, is_better

CPU = torch.device("cpu")
LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, 0.3], [-3.0, 1.0, 1.5], [0.0, 4.0, -1.0]])
LABELS = np.array([0, 2, 1, 0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, (3.0, 1.0, 0.25)])
def test_the_single_label_loss_is_the_plain_formula(weights, smoothing):
    objective = Objective(False, weights, smoothing)
    total = objective.loss_of_logits(LOGITS, torch.from_numpy(LABELS))
    w_C = np.array(weights or (1.0, 1.0, 1.0))
    log_p_BC = np.log(np.exp(LOGITS.numpy()) / np.exp(LOGITS.numpy()).sum(1, keepdims=True))
    expected = 0.0
    for log_p_C, label in zip(log_p_BC, LABELS, strict=True):
        target_C = np.eye(3)[label] * (1 - smoothing) + smoothing / 3
        expected -= (w_C * target_C * log_p_C).sum()
    assert total.item() == pytest.approx(expected, rel=1e-5)
    assert objective.normaliser(LABELS) == pytest.approx(w_C[LABELS].sum())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, (3.0, 1.0, 0.25)])
def test_the_multi_label_loss_is_the_plain_formula(weights, smoothing):
    labels_BC = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]], bool)
    objective = Objective(True, weights, smoothing)
    total = objective.loss_of_logits(LOGITS, torch.from_numpy(labels_BC.astype(np.float32)))
    p_BC = 1 / (1 + np.exp(-LOGITS.numpy().astype(float)))
    t_BC = labels_BC * (1 - smoothing) + smoothing / 2
    w_C = np.array(weights or (1.0, 1.0, 1.0))
    losses_BC = -(w_C * t_BC * np.log(p_BC) + (1 - t_BC) * np.log(1 - p_BC))
    assert total.item() == pytest.approx(losses_BC.mean(axis=1).sum(), rel=1e-5)
    assert objective.normaliser(labels_BC) == 4


NAMES = ("a", "b", "c")
WEIGHTS = {
    "none": ("none", LABELS, None),
    "balanced, one class twice": ("balanced", LABELS, (4 / 6, 4 / 3, 4 / 3)),
    "balanced, a class without rows": ("balanced", np.array([0, 0, 1]), (0.5, 1.0, 1.0)),
    "a mapping": ({"c": 5.0}, LABELS, (1.0, 1.0, 5.0)),
    "balanced, several labels": (
        "balanced",
        np.array([[1, 1, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]], bool),
        (3.0, 1.0, 1.0),
    ),
}


@pytest.mark.parametrize(("setting", "labels", "expected"), WEIGHTS.values(), ids=WEIGHTS.keys())
def test_class_weights_are(setting, labels, expected):
    weights = class_weights(setting, labels, NAMES)
    assert weights == (expected and pytest.approx(expected))


def test_a_weight_for_an_unknown_label_is_refused():
    with pytest.raises(RequestError, match="'sprots': no such label; the training data have 'a'"):
        class_weights({"sprots": 2.0}, LABELS, NAMES)


def test_rows_that_all_weigh_nothing_give_no_loss_and_no_error():
    objective = Objective(False, (0.0, 1.0, 1.0))
    labels = np.array([0, 0])
    loss = objective.loss_of_logits(LOGITS[:2], torch.from_numpy(labels))
    assert loss.item() / objective.normaliser(labels) == 0


def parts(names):
    """What the names stand for, short."""
    return sorted(
        {
            ".".join(name.split(".")[1 : 3 if ".h." in name else 2])
            if name.startswith("backbone")
            else name.split(".")[0]
            for name in names
        }
    )


TINY_PARTS = ["h.0", "h.1", "head", "ln_f", "pooling", "wpe", "wte"]
FREEZING = {
    ("none", 0): TINY_PARTS,
    ("head_only", 9): ["head", "pooling"],
    ("last_layer", 9): ["head"],
    ("top:1", 0): ["h.1", "head", "ln_f", "pooling"],
    ("top:2", 0): ["h.0", "h.1", "head", "ln_f", "pooling"],
    ("top:99", 0): ["h.0", "h.1", "head", "ln_f", "pooling"],
    ("gradual", 0): ["head", "pooling"],
    ("gradual", 1): ["h.1", "head", "ln_f", "pooling"],
    ("gradual", 2): TINY_PARTS,
    ("gradual", 50): TINY_PARTS,
    ("chain_thaw", 0): ["head", "pooling"],
    ("chain_thaw", 1): ["h.0", "wpe", "wte"],
    ("chain_thaw", 2): ["h.1", "ln_f"],
    ("chain_thaw", 3): TINY_PARTS,
}


@pytest.mark.parametrize(("how", "expected"), FREEZING.items(), ids=str)
def test_what_learns_is(how, expected):
    model = tiny_model(pooling="attention")
    assert parts(trainable_names(model, *how)) == expected


def test_a_scheme_that_unfreezes_no_further_needs_no_lower_weights():
    assert parts(ever_trainable(tiny_model(), "gradual", 2)) == ["h.1", "head", "ln_f"]


def test_a_scheme_that_freezes_again_keeps_all_that_ever_learned():
    assert parts(ever_trainable(tiny_model(), "chain_thaw", 2)) == ["h.0", "head", "wpe", "wte"]


def test_twelve_blocks_are_four_groups_with_the_embeddings_in_the_lowest():
    groups = layer_groups(tiny_model(backbone="gpt2-mini"))
    assert len(groups) == 4
    owned = [p for group in groups for module in group for p in module.parameters()]
    assert len(owned) == len(list(tiny_model(backbone="gpt2-mini").parameters()))


def test_lower_groups_learn_slower_and_norms_and_biases_do_not_decay():
    config = tiny_config(layer_decay=2.6, weight_decay=0.1, lr=0.01, betas=(0.7, 0.99))
    model = tiny_model(backbone="gpt2-mini")
    optimizer = new_optimizer(model, config, ever_trainable(model, "none", 1), CPU)
    set_lr(optimizer, 0.01)
    names = {id(p): name for name, p in model.named_parameters()}
    settings = {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert settings["head.linear.weight"] == (pytest.approx(0.01), 0.1)
    assert settings["head.linear.bias"] == (pytest.approx(0.01), 0.0)
    assert settings["backbone.h.3.mlp.c_fc.weight"] == (pytest.approx(0.01 / 2.6), 0.1)
    assert settings["backbone.ln_f.weight"] == (pytest.approx(0.01 / 2.6), 0.0)
    assert settings["backbone.wte.weight"] == (pytest.approx(0.01 / 2.6**3), 0.1)
    assert len(settings) == len(names)
    assert {group["betas"] for group in optimizer.param_groups} == {(0.7, 0.99)}


@pytest.mark.parametrize("layer_decay", [1.0, 2.0])
def test_the_token_embedding_learns_at_its_own_rate_and_decays_as_it_would_without(layer_decay):
    model = tiny_model()
    table = model.backbone.wte.weight

    def settings_by_weight(**settings):
        config = tiny_config(lr=1e-3, weight_decay=0.1, layer_decay=layer_decay, **settings)
        optimizer = new_optimizer(model, config, ever_trainable(model, "none", 1), CPU)
        set_lr(optimizer, config.lr)
        return {
            id(p): (group["lr"], group["lr"] * group["weight_decay"])
            for group in optimizer.param_groups
            for p in group["params"]
        }

    without, own = settings_by_weight(), settings_by_weight(embedding_lr=0.02)
    assert own[id(table)] == pytest.approx((0.02, without[id(table)][1]))
    assert {key for key in own if own[key] != without[key]} == {id(table)}


def test_a_network_from_random_weights_learns_in_fewer_steps_when_its_words_learn_faster():
    def last_losses(**settings):
        config = tiny_config(lr=3e-4, epochs=2, **settings)
        log = Log()
        fit(tiny_state(config), tiny_work(config, log), config, Ranks())
        return log.losses()[-4:]

    # A text's class is its words; eight steps at 3e-4 leave them much as they were drawn.
    assert max(last_losses(embedding_lr=1e-2)) < 0.6 * min(last_losses())


def test_training_mode_spares_what_is_frozen():
    model = tiny_model(dropout=0.5, pooling="attention")
    apply_freeze(model, trainable_names(model, "head_only", 0))
    set_training_mode(model)
    assert model.head.training and model.pooling.training
    assert not any(module.training for module in model.backbone.modules())
    apply_freeze(model, trainable_names(model, "none", 0))
    set_training_mode(model)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("flags", "name", "why"),
    [
        ({"amx_bf16", "avx512_bf16"}, "bf16", "amx_bf16"),
        ({"avx512_bf16", "avx2"}, "bf16", "avx512_bf16"),
        ({"avx2"}, "fp32", "neither"),
        (set(), "fp32", "neither"),
    ],
)
def test_auto_on_a_cpu_depends_on_what_it_computes_fast(flags, name, why):
    picked, reason = pick_for_cpu(frozenset(flags))
    assert picked == name and why in reason


def test_a_precision_that_was_asked_for_is_used():
    assert pick_precision("fp16", CPU) == ("fp16", "as the job says")
    assert pick_precision("auto", CPU)[0] in ("fp32", "bf16")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_products_are_computed_in_the_precision(name, dtype):
    with autocast(name, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_the_loss_scale_halves_on_overflow_and_doubles_after_two_thousand_good_steps():
    scale = LossScale(scale=8.0)
    for _ in range(1999):
        scale.update(overflowed=False)
    assert scale.scale == 8
    scale.update(overflowed=False)
    assert scale.scale == 16
    scale.update(overflowed=True)
    assert (scale.scale, scale.good_steps, scale.is_hopeless) == (8, 0, False)
    for _ in range(4):
        scale.update(overflowed=True)
    assert scale.is_hopeless  # below 1
    many = LossScale(scale=2.0**100, skips_in_a_row=49)
    many.update(overflowed=True)
    assert many.is_hopeless


NAN = float("nan")
BEATS = {
    "anything beats nothing": ("accuracy", 0.0, NAN, None, True),
    "NaN does not beat nothing": ("accuracy", NAN, 0.1, None, False),
    "NaN beats nobody": ("loss", NAN, 0.1, (0.5, 1.0), False),
    "higher accuracy": ("accuracy", 0.6, 9.0, (0.5, 1.0), True),
    "lower accuracy": ("accuracy", 0.4, 0.1, (0.5, 1.0), False),
    "lower loss": ("loss", 0.4, NAN, (0.5, 1.0), True),
    "a tie, and a lower log loss": ("accuracy", 0.5, 0.9, (0.5, 1.0), True),
    "a tie in everything": ("accuracy", 0.5, 1.0, (0.5, 1.0), False),
}


@pytest.mark.parametrize(
    ("metric", "value", "log_loss", "best", "expected"), BEATS.values(), ids=BEATS.keys()
)
def test_the_best_evaluation_is(metric, value, log_loss, best, expected):
    known = Best(1, *best, {}) if best else None
    assert is_better(metric, value, log_loss, known) is expected
