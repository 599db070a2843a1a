"""The loss of the next token, made in chunks, against plain PyTorch and against transformers."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gpt2cls.config import ModelConfig
from gpt2cls.model import language
from gpt2cls.model.language import build_language_model, next_token_loss

V, D, N = 97, 16, 50


def given(dtype=torch.float32):
    draw = torch.Generator().manual_seed(1)
    hidden = torch.randn(N, D, generator=draw, dtype=dtype).requires_grad_()
    table = torch.randn(V, D, generator=draw, dtype=dtype).requires_grad_()
    targets = torch.randint(0, V, (N,), generator=draw)
    targets[[3, 49]] = -100
    return hidden, table, targets


def plain(hidden, table, targets):
    return F.cross_entropy((hidden @ table.t()).float(), targets, reduction="sum")


def with_gradients(loss_of, *, precision=None):
    hidden, table, targets = given()
    with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
        loss = loss_of(hidden, table, targets) / 7
    loss.backward()
    return loss.detach(), hidden.grad, table.grad


@pytest.fixture
def in_chunks(monkeypatch):
    monkeypatch.setattr(language, "FEWEST_TOKENS", 1)
    monkeypatch.setattr(language, "LOGITS_ON_CPU", 17 * V)


def test_in_fp32_loss_and_gradients_are_those_of_pytorch(in_chunks):
    for ours, theirs in zip(with_gradients(next_token_loss), with_gradients(plain), strict=True):
        # Sums are taken in another order: relative 1e-5 of the largest.
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_the_gradient_is_that_of_finite_differences(in_chunks):
    hidden, table, targets = given(torch.float64)
    next_token_loss(hidden, table, targets).backward()
    for place in (hidden, table):
        way = torch.randn(place.shape, generator=torch.Generator().manual_seed(4)).double()
        with torch.no_grad():
            losses = []
            for step in (1e-5, -1e-5):
                place += step * way
                losses.append(next_token_loss(hidden, table, targets))
                place -= step * way
        slope = (losses[0] - losses[1]) / 2e-5
        torch.testing.assert_close(slope, (place.grad * way).sum(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_under_autocast_it_rounds_as_pytorch_does_and_keeps_fp32_gradients(in_chunks, precision):
    exact = with_gradients(plain)
    ours = with_gradients(next_token_loss, precision=precision)
    theirs = with_gradients(plain, precision=precision)
    assert [t.dtype for t in ours] == [torch.float32] * 3
    assert not torch.equal(ours[1], exact[1])  # it did round
    for mine, other, true in zip(ours, theirs, exact, strict=True):
        # No further from the truth than twice what autocast itself costs.
        assert (mine - true).norm() <= 2 * (other - true).norm() + 1e-6 * true.norm()


def test_weights_of_one_change_nothing_not_even_under_autocast(in_chunks):
    def weighted(hidden, table, targets):
        return next_token_loss(hidden, table, targets, torch.ones(N))

    ours = with_gradients(weighted, precision=torch.bfloat16)
    for mine, plain_one in zip(
        ours, with_gradients(next_token_loss, precision=torch.bfloat16), strict=True
    ):
        torch.testing.assert_close(mine, plain_one, rtol=1e-6, atol=0)


def test_where_it_is_sure_the_gradient_is_no_further_from_the_truth_than_autocasts(in_chunks):
    def of(loss_of, dtype=torch.float32, precision=None):
        hidden, table, targets = given(dtype)
        with torch.no_grad():
            hidden[:] = 3 * table[targets.clamp(min=0)]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision is not None):
            loss_of(hidden, table, targets).backward()
        return hidden.grad, table.grad

    exact = of(plain, torch.float64)
    ours = of(next_token_loss, precision="bf16")
    theirs = of(plain, precision="bf16")
    for mine, other, true in zip(ours, theirs, exact, strict=True):
        assert (mine - true).norm() <= 1.2 * (other - true).norm()


class LogitsMade(TorchDispatchMode):
    """Notes the rows of every tensor [rows, V] that an operation gives."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.ndim == 2 and made.shape[1] == V:
            self.rows.append(len(made))
        return made


def test_no_more_logits_exist_than_those_of_a_chunk(in_chunks):
    inputs = given()
    with LogitsMade() as logits:
        next_token_loss(*inputs)
    assert max(logits.rows) == 17


def tiny():
    config = ModelConfig(backbone="gpt2-tiny", dropout=0.0)
    sizes = {"vocab_size": V, "pad_id": 0, "max_length": 12, "base_dir": None}
    return build_language_model(config, seed=3, **sizes)


def tokens():
    tokens_BT = torch.randint(0, V, (3, 13), generator=torch.Generator().manual_seed(2))
    return tokens_BT[:, :-1], torch.full((3,), 12), tokens_BT[:, 1:]


def test_the_embedding_learns_as_input_and_as_output():
    model = tiny()
    tokens_BT, lengths_B, targets_BT = tokens()
    model.loss_sum(tokens_BT, lengths_B, targets_BT).backward()
    grad = model.backbone.wte.weight.grad.clone()
    model.zero_grad()
    logits = model.backbone(tokens_BT, lengths_B) @ model.backbone.wte.weight.t()
    F.cross_entropy(logits.flatten(0, 1), targets_BT.flatten(), reduction="sum").backward()
    theirs = model.backbone.wte.weight.grad
    assert (grad - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_the_losses_of_rows_add_up_to_the_loss():
    model = tiny()
    losses_B = model.losses(*tokens())
    assert losses_B.shape == (3,) and not losses_B.requires_grad
    assert float(losses_B.sum()) == pytest.approx(model.loss_sum(*tokens()).item(), rel=1e-6)


def test_a_new_model_begins_by_guessing():
    # Radford et al. 2019: weights of 0.02 make all tokens about equally likely.
    mean = float(tiny().losses(*tokens()).sum()) / 36
    assert mean == pytest.approx(torch.tensor(float(V)).log().item(), abs=0.1)
