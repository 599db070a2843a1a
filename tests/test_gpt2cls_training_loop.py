"""The loop in one process: what it does with a step, an overflow, a stop and a lack of memory."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from tiny_training import (
    Log,
    assert_same_weights,
    tiny_config,
    tiny_model,
    tiny_rows,
    tiny_state,
    tiny_work,
)

from gpt2cls.config import EarlyStopping
from gpt2cls.errors import NonFiniteLoss
from gpt2cls.training.freezing import apply_freeze, set_training_mode
from gpt2cls.training.loop import fit, optimizer_step, seed_of_step
from gpt2cls.training.memory import TokenBudget, halve_until_it_fits
from gpt2cls.training.precision import LossScale
from gpt2cls.training.ranks import Ranks
from gpt2cls.training.state import (
    load_model_tensors,
    load_optimizer_tensors,
    model_tensors,
    optimizer_tensors,
    position,
    set_position,
)

ONE = Ranks()


def snapshot(state):
    return copy.deepcopy((model_tensors(state.model), optimizer_tensors(state), position(state)))


def restore(config, saved, model):
    state = tiny_state(config, model)
    weights, moments, values = copy.deepcopy(saved)
    load_model_tensors(state.model, weights)
    load_optimizer_tensors(state, moments)
    set_position(state, values)
    return state


def test_training_lowers_the_loss_and_reports_every_step_once():
    config, log = tiny_config(epochs=6, lr=3e-3), Log()
    assert fit(tiny_state(config), tiny_work(config, log), config, ONE) == "finished"
    assert log.of("step") == list(range(1, 25))  # 30 rows in batches of 8: 4 steps per epoch
    assert log.of("eval") == log.saved == [4, 8, 12, 16, 20, 24]
    assert log.losses()[-1] < 0.7 * log.losses()[0]


def test_two_runs_with_one_seed_end_bit_identical():
    config = tiny_config(epochs=2)
    states = [tiny_state(config, tiny_model(dropout=0.3)) for _ in range(2)]
    for state in states:
        fit(state, tiny_work(config, Log()), config, ONE)
    assert_same_weights(states[0].model, states[1].model)


@pytest.mark.parametrize("freeze", ["none", "gradual", "chain_thaw", "top:1", "head_only"])
def test_a_resumed_run_ends_with_the_same_weights_as_an_unbroken_one(freeze):
    config = tiny_config(epochs=3, freeze=freeze, checkpoint_every="5 steps")
    saved = {}
    unbroken = tiny_state(config, tiny_model(dropout=0.2))
    work = tiny_work(config, Log(), save=lambda state: saved.update({state.step: snapshot(state)}))
    fit(unbroken, work, config, ONE)
    for step in (4, 5, 10):
        log = Log()
        resumed = restore(config, saved[step], tiny_model(dropout=0.2))
        fit(resumed, tiny_work(config, log), config, ONE)
        assert_same_weights(resumed.model, unbroken.model)
        assert log.of("step") == list(range(step + 1, 13))


def test_one_step_is_adamw_on_the_clipped_gradient_of_the_mean_loss():
    config = tiny_config(clip=0.01, weight_decay=0.0, class_weights={"a": 3.0})
    state, rows = tiny_state(config), tiny_rows()
    plain = copy.deepcopy(state.model)
    work = tiny_work(config, Log(), rows=rows)
    state.optimizer.param_groups[0]["lr"] = config.lr
    result = optimizer_step(state, work, config, ONE)

    batch = work.data_of_step(0, 1 << 20).batches[0]
    weights = torch.tensor([3.0, 1.0, 1.0])
    logits = plain(batch.tokens_BT, batch.lengths_B, batch.cut_share_B)
    loss = F.cross_entropy(logits, batch.labels, weight=weights)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.01)
    torch.optim.AdamW(plain.parameters(), lr=config.lr, weight_decay=0.0).step()
    assert result.loss == pytest.approx(loss.item(), abs=1e-6)
    for name, expected in plain.named_parameters():
        # Adam divides by the root of the squared gradient: rounding is magnified near zero.
        torch.testing.assert_close(
            dict(state.model.named_parameters())[name], expected, atol=2e-5, rtol=0
        )


def test_micro_batches_give_the_loss_and_gradient_of_the_whole_batch():
    config = tiny_config(batch_size=30, epochs=1, clip=None)
    losses = []
    for budget in (1 << 20, 40):
        log = Log()
        fit(tiny_state(config), tiny_work(config, log, budget=budget), config, ONE)
        losses.append(log.losses())
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_when_memory_runs_out_the_step_is_made_in_smaller_parts():
    config = tiny_config(batch_size=30, epochs=1)
    sizes = []

    class Small(type(tiny_model())):
        def features(self, tokens_BT, lengths_B):
            sizes.append(tokens_BT.numel())
            if tokens_BT.numel() > 100:
                raise torch.OutOfMemoryError("a small device")
            return super().features(tokens_BT, lengths_B)

    model = tiny_model()
    small = Small(model.backbone, model.pooling, model.head)
    log, reference = Log(), Log()
    work = tiny_work(config, log, budget=480)
    fit(tiny_state(config, small), work, config, ONE)
    fit(tiny_state(config), tiny_work(config, reference), config, ONE)
    assert work.budget.tokens == 60
    assert max(sizes) > 100
    assert log.losses() == pytest.approx(reference.losses(), abs=1e-6)


def test_memory_that_never_suffices_is_an_error():
    def attempt(tokens):
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError, match="full"):
        halve_until_it_fits(TokenBudget(1000), attempt)


def test_a_non_finite_loss_stops_before_the_weights_are_touched():
    config = tiny_config()
    state = tiny_state(config)
    with torch.no_grad():
        state.model.head.linear.bias[0] = math.nan
    before = copy.deepcopy(state.model)
    with pytest.raises(NonFiniteLoss, match="at step 1") as caught:
        fit(state, tiny_work(config, Log()), config, ONE)
    assert caught.value.step == 1
    for name, tensor in before.named_parameters():
        torch.testing.assert_close(
            tensor, dict(state.model.named_parameters())[name], rtol=0, atol=0, equal_nan=True
        )
    assert not state.optimizer.state


def test_an_fp16_overflow_skips_the_step_halves_the_scale_and_is_counted():
    config, log = tiny_config(precision="fp16", epochs=1, batch_size=4, max_steps=3), Log()
    rows = tiny_rows(12)
    state = tiny_state(config)
    state.loss_scale = LossScale(scale=2.0**40)  # no gradient times this fits into fp16
    before = copy.deepcopy(state.model)
    work = tiny_work(config, log, rows=rows)
    apply_freeze(state.model, {name for name, _ in state.model.named_parameters()})
    set_training_mode(state.model)
    result = optimizer_step(state, work, config, ONE)
    assert result.was_skipped
    assert state.loss_scale.scale == 2.0**39
    assert state.skipped_steps == 1
    assert not state.optimizer.state  # Adam's moments do not know of it
    assert_same_weights(state.model, before)
    state.loss_scale.scale = 2.0**10
    assert not optimizer_step(state, work, config, ONE).was_skipped
    assert state.optimizer.state


def test_skipped_steps_advance_the_schedule_and_are_reported():
    config, log = tiny_config(precision="fp16", max_steps=2, batch_size=4), Log()
    state = tiny_state(config)
    state.loss_scale = LossScale(scale=2.0**40)
    fit(state, tiny_work(config, log, rows=tiny_rows(8)), config, ONE)
    assert log.of("skipped") == log.of("step") == [1, 2]
    lrs = [m["train/lr"] for kind, _, m in log.events if kind == "step"]
    assert lrs[1] < lrs[0]
    assert log.events[-3][2]["train/skipped_steps"] == 2


def test_a_loss_that_stays_non_finite_in_fp16_ends_the_run():
    config = tiny_config(precision="fp16", batch_size=2)
    state = tiny_state(config)
    with torch.no_grad():
        state.model.head.linear.bias[0] = math.nan
    state.loss_scale.skips_in_a_row = 48
    with pytest.raises(NonFiniteLoss, match="fp16"):
        fit(state, tiny_work(config, Log(), rows=tiny_rows(6)), config, ONE)
    assert state.skipped_steps == 2


def test_early_stopping_waits_for_its_patience():
    config = tiny_config(epochs=9, early_stopping=EarlyStopping(metric="accuracy", patience=2))
    scores = iter([0.5, 0.6, 0.6, math.nan, 0.9])
    log = Log()
    state = tiny_state(config)
    work = tiny_work(config, log, evaluate=lambda model: {"accuracy": next(scores)})
    assert fit(state, work, config, ONE) == "early_stopped"
    assert log.of("eval") == [4, 8, 12, 16]
    assert state.best.step == 8


def test_a_stop_request_saves_and_the_resumed_run_makes_the_evaluation_that_was_due():
    config, log, saved = tiny_config(epochs=2), Log(), []
    polls = iter([False, False, False, True])
    state = tiny_state(config)
    work = tiny_work(
        config, log, save=lambda s: saved.append(snapshot(s)), should_stop=lambda: next(polls)
    )
    assert fit(state, work, config, ONE) == "stopped"
    assert log.saved == [4] and not log.of("eval")
    resumed = restore(config, saved[0], tiny_model())
    assert fit(resumed, tiny_work(config, log), config, ONE) == "finished"
    assert log.of("eval") == [4, 8]


def test_a_stop_request_in_the_last_step_comes_too_late():
    config, log = tiny_config(max_steps=1), Log()
    assert fit(tiny_state(config), tiny_work(config, log, should_stop=lambda: True), config, ONE)
    assert log.of("eval") == log.saved == [1]


def test_an_evaluation_that_is_the_best_so_far_is_saved_at_once():
    config = tiny_config(epochs=3, eval_every="2 steps", checkpoint_every="3 epochs")
    scores = iter([0.5, 0.4, 0.7, 0.6, 0.6, 0.6])
    log = Log()
    work = tiny_work(config, log, evaluate=lambda model: {"accuracy": next(scores)})
    fit(tiny_state(config), work, config, ONE)
    assert log.saved == [2, 6, 12]


def test_seeds_differ_between_steps_ranks_and_jobs():
    seeds = {seed_of_step(s, n, r) for s in range(3) for n in range(50) for r in range(4)}
    assert len(seeds) == 600


def test_frozen_blocks_have_no_dropout_no_gradient_and_no_optimizer_state():
    config = tiny_config(freeze="top:1", epochs=1)
    state = tiny_state(config, tiny_model(dropout=0.5))
    fit(state, tiny_work(config, Log()), config, ONE)
    set_training_mode(state.model)
    below, above = state.model.backbone.h
    assert not below.training and above.training
    assert not state.model.backbone.training
    learned = {id(p) for p in state.optimizer.state}
    assert not learned & {id(p) for p in below.parameters()}
    assert {id(p) for p in above.parameters()} <= learned
