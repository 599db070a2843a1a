"""The CPU's own forms of costly operations against the plain ones of PyTorch."""

import math

import pytest
import torch
import torch.nn.functional as F

from gpt2cls.model import kernels
from gpt2cls.model.kernels import add_dropped, causal_attention, dropout, gelu_tanh, keep_mask

HEADS, WIDTH = 4, 32


def plain_attention(qkv_BT3D, mask_of_blocks=None):
    """Softmax of the masked scores, written out; `mask_of_blocks` multiplies the weights."""
    B, T, _ = qkv_BT3D.shape
    q, k, v = qkv_BT3D.view(B, T, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(2, 3) * 0.3
    scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
    weights = scores.softmax(dim=3)
    if mask_of_blocks is not None:
        weights = weights * mask_of_blocks
    return (weights @ v).transpose(1, 2).reshape(B, T, -1)


def gradient(function, *inputs):
    torch.manual_seed(9)
    out = function(*inputs)
    fixed = torch.arange(out.numel()).view(out.shape).cos().to(out.dtype)  # whatever was drawn
    grads = torch.autograd.grad(out, inputs, fixed)
    return out.detach(), grads


@pytest.mark.parametrize("num_tokens", [1, 7, 128, 129, 300], ids="{} tokens".format)
def test_attention_is_that_of_the_formula(num_tokens):
    torch.manual_seed(0)
    qkv = torch.randn(3, num_tokens, 3 * WIDTH, dtype=torch.float64, requires_grad=True)
    found, (slope,) = gradient(lambda x: causal_attention(x, HEADS, 0.3, 0.0), qkv)
    wanted, (wanted_slope,) = gradient(plain_attention, qkv)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(slope, wanted_slope)
    with torch.no_grad():  # the form without a gradient
        torch.testing.assert_close(causal_attention(qkv, HEADS, 0.3, 0.0), wanted)


def test_attention_drops_weights_and_its_gradient_knows(monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK", 64)
    masks = []

    def remembered(like, drop):
        masks.append(keep_mask(like, drop))
        return masks[-1]

    monkeypatch.setattr(kernels, "keep_mask", remembered)
    torch.manual_seed(0)
    qkv = torch.randn(2, 100, 3 * WIDTH, dtype=torch.float64, requires_grad=True)
    found, (slope,) = gradient(lambda x: causal_attention(x, HEADS, 0.3, 0.25), qkv)
    whole = torch.zeros(2 * HEADS, 100, 100, dtype=torch.float64)
    whole[:, :64, :64], whole[:, 64:, :] = masks
    wanted, (wanted_slope,) = gradient(
        lambda x: plain_attention(x, whole.view(2, HEADS, 100, 100)), qkv
    )
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(slope, wanted_slope)


def test_gelu_and_its_gradient_are_those_of_pytorch():
    x = torch.linspace(-12, 12, 4001, requires_grad=True)
    found, (slope,) = gradient(gelu_tanh, x)
    wanted, (wanted_slope,) = gradient(lambda x: F.gelu(x, approximate="tanh"), x)
    torch.testing.assert_close(found, wanted, atol=2e-7, rtol=2e-6)
    torch.testing.assert_close(slope, wanted_slope, atol=2e-6, rtol=2e-6)
    assert gelu_tanh(torch.tensor([-1e4, 1e4, math.inf])).tolist() == [0, 1e4, math.inf]


@pytest.mark.parametrize("drop", [1e-4, 0.1, 0.5, 0.9])
def test_a_mask_drops_the_share_it_should_and_keeps_the_mean(drop):
    torch.manual_seed(0)
    mask = keep_mask(torch.empty(1_000_003), drop)
    dropped = float((mask == 0).double().mean())
    deviation = math.sqrt(drop * (1 - drop) / mask.numel())
    assert abs(dropped - drop) < 5 * deviation + 2**-17
    assert len(mask.unique()) == 2
    assert abs(float(mask.double().mean()) - 1) < 5 * deviation / (1 - drop)
    # No part of a random word is unlike the others, and neighbours know nothing of each other.
    shares = (mask[: 4 * 250_000].view(-1, 4) == 0).double().mean(dim=0)
    assert (shares - drop).abs().max() < 10 * deviation + 2**-17
    both = float(((mask[1:] == 0) & (mask[:-1] == 0)).double().mean())
    assert abs(both - drop**2) < 5 * deviation + 2**-17


def test_dropout_follows_the_generator_and_its_gradient_the_mask():
    x, y = (torch.randn(40, 50, requires_grad=True) for _ in range(2))

    def seeded(function):
        def run(*inputs):
            torch.manual_seed(3)
            return function(*inputs)

        return run

    out, (slope,) = gradient(seeded(lambda y: dropout(y, 0.3)), y)
    again, (of_x, of_y) = gradient(seeded(lambda x, y: add_dropped(x, y, 0.3)), x, y)
    torch.testing.assert_close(again, x + out)
    assert torch.equal(of_y, slope)
    assert ((out == 0) == (slope == 0)).all()
    assert of_x.ne(0).all()
    assert dropout(x, 0.0) is x
