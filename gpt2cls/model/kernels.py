"""The operations that a processor spends its time on beside the matrix products.

On the CPU each has a form of its own, made of a few passes over memory; elsewhere PyTorch's own
form is used. Both give the same numbers up to rounding, except that they draw other dropout
masks from the same generator.

Letters in tensor names: B rows, T tokens, D features, H heads, K features of a head, N = B * H.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 128
"""Queries that attention handles at once: what lies to the right of a block is never computed."""
DROP_LEVELS = 2**16
_CUBIC = 0.044715
_TWICE_ROOT = 2 * math.sqrt(2 / math.pi)


def keep_mask(like: Tensor, drop: float) -> Tensor:
    """1 / (1 - drop) where an element is kept and 0 where not, in the type and shape of `like`.

    16 random bits of the device's global generator decide an element, so `drop` is rounded to a
    multiple of 2 ** -16, and the scale with it. PyTorch's own mask takes 53 bits and eight times
    as long.
    """
    return kept(like, drop).mul_(kept_scale(drop))


def kept(like: Tensor, drop: float) -> Tensor:
    """As `keep_mask`, but 1 where an element is kept: exact in every type, as the scale is not."""
    words = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device)
    mask = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    bits = bits_of(draw_words(words), like.shape)
    return torch.ge(bits, drop_level(drop) - DROP_LEVELS // 2, out=mask)


def kept_scale(drop: float) -> float:
    """What is kept is multiplied by this, so that the expected sum stays."""
    return DROP_LEVELS / (DROP_LEVELS - drop_level(drop))


def drop_level(drop: float) -> int:
    """How many of the `DROP_LEVELS` values of 16 bits drop an element."""
    return min(round(drop * DROP_LEVELS), DROP_LEVELS - 1)


def draw_words(words: Tensor) -> Tensor:
    """Fill an int64 tensor with random bits, from the global generator of its device."""
    return words.random_(-(2**63), None)


def bits_of(words: Tensor, shape: torch.Size) -> Tensor:
    """The last axis of words as int16 of this shape."""
    bits = words.view(torch.int16)[..., : shape.numel()]
    return bits.view(*words.shape[:-1], *shape)


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, drop: float) -> Tensor:
        mask = keep_mask(x, drop)
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return grad * mask, None


class _AddDropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, drop: float) -> Tensor:
        mask, ctx.scale = kept(y, drop), kept_scale(drop)
        ctx.save_for_backward(mask)
        if x.dtype == y.dtype:
            return torch.addcmul(x, y, mask, value=ctx.scale)
        # With three types in one operation PyTorch would copy two of the operands.
        return torch.add(x, y * mask, alpha=ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (mask,) = ctx.saved_tensors
        return grad, (grad.to(mask.dtype) * mask).mul_(ctx.scale), None


def dropout(x: Tensor, drop: float) -> Tensor:
    """`x` with a share of its elements set to zero and the others scaled up."""
    if drop == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, drop)
    return _Dropped.apply(x, drop)  # type: ignore[no-any-return, no-untyped-call]


def add_dropped(x: Tensor, y: Tensor, drop: float) -> Tensor:
    """`x + dropout(y, drop)`."""
    if drop == 0:
        return x + y
    if x.device.type != "cpu":
        return x + F.dropout(y, drop)
    return _AddDropped.apply(x, y, drop)  # type: ignore[no-any-return, no-untyped-call]


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gate = (x * x).mul_(_CUBIC * _TWICE_ROOT).add_(_TWICE_ROOT).mul_(x).sigmoid_()
        ctx.save_for_backward(x, gate)
        return x * gate

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, gate = ctx.saved_tensors
        # gate + x gate (1 - gate) u', with u' = a + 3 a c x^2
        slope = (x * x).mul_(3 * _CUBIC * _TWICE_ROOT).add_(_TWICE_ROOT).mul_(x)
        slope = torch.ops.aten.sigmoid_backward(slope, gate)  # slope * gate * (1 - gate)
        return slope.add_(gate).mul_(grad)  # type: ignore[no-any-return]


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh form of GELU, as x * sigmoid(2 u): 1 + tanh(u) = 2 sigmoid(2 u).

    Source: Hendrycks and Gimpel 2016, "Gaussian Error Linear Units", section 2.
    """
    if x.device.type == "cpu" and x.dtype == torch.bfloat16:
        # The exact form differs by 5e-4 at most, less than bf16 can show, and takes a third.
        return F.gelu(x)
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return F.gelu(x, approximate="tanh")
    return _Gelu.apply(x)  # type: ignore[no-any-return, no-untyped-call]


class _CausalAttention(torch.autograd.Function):
    """Attention in blocks of queries; each sees the keys up to its own end."""

    @staticmethod
    def forward(ctx: Any, qkv_BT3D: Tensor, heads: int, scale: float, drop: float) -> Tensor:
        q_NTK, k_NTK, v_NTK = qkv = _by_head(qkv_BT3D, 3, heads)
        mixed_NTK = torch.empty_like(v_NTK)
        weights = []
        for start, end in _blocks(q_NTK.shape[1]):
            scores = torch.baddbmm(
                _future(start, end, q_NTK),
                q_NTK[:, start:end],
                k_NTK[:, :end].transpose(1, 2),
                alpha=scale,
            )
            probs = scores.softmax(dim=2)
            dropped = probs if drop == 0 else probs * keep_mask(probs, drop)
            torch.bmm(dropped, v_NTK[:, :end], out=mixed_NTK[:, start:end])
            weights += [probs, dropped]
        ctx.save_for_backward(qkv, *weights)
        ctx.heads, ctx.scale = heads, scale
        return _by_token(mixed_NTK[None], heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor, None, None, None]:
        qkv, *weights = ctx.saved_tensors
        (grad_NTK,) = _by_head(grad_BTD, 1, ctx.heads)
        q_NTK, k_NTK, v_NTK = qkv
        grads = torch.zeros_like(qkv)
        dq_NTK, dk_NTK, dv_NTK = grads
        blocks = zip(_blocks(q_NTK.shape[1]), weights[::2], weights[1::2], strict=True)
        for (start, end), probs, dropped in blocks:
            out = grad_NTK[:, start:end]
            dv_NTK[:, :end].baddbmm_(dropped.transpose(1, 2), out)
            # With P the weights, M the mask and g the gradient of P * M:
            # dS = P * (g M - sum(g M P)), and P M is `dropped`.
            slope = torch.bmm(out, v_NTK[:, :end].transpose(1, 2)).mul_(dropped)
            slope.addcmul_(probs, slope.sum(dim=2, keepdim=True), value=-1)
            dq_NTK[:, start:end].baddbmm_(slope, k_NTK[:, :end], alpha=ctx.scale)
            dk_NTK[:, :end].baddbmm_(slope.transpose(1, 2), q_NTK[:, start:end], alpha=ctx.scale)
        return _by_token(grads, ctx.heads), None, None, None


def causal_attention(qkv_BT3D: Tensor, heads: int, scale: float, drop: float) -> Tensor:
    """Each token's mix [B, T, D] of the values at and left of it, from queries, keys and values."""
    if qkv_BT3D.device.type == "cpu" and (torch.is_grad_enabled() or drop):
        return _CausalAttention.apply(qkv_BT3D, heads, scale, drop)  # type: ignore[no-any-return, no-untyped-call]
    B, T, _ = qkv_BT3D.shape
    q_BHTK, k_BHTK, v_BHTK = qkv_BT3D.view(B, T, 3, heads, -1).permute(2, 0, 3, 1, 4)
    mixed_BHTK = F.scaled_dot_product_attention(
        q_BHTK, k_BHTK, v_BHTK, dropout_p=drop, is_causal=True, scale=scale
    )
    return mixed_BHTK.transpose(1, 2).reshape(B, T, -1)


def _by_head(x: Tensor, parts: int, heads: int) -> Tensor:
    """[B, T, parts * D] as [parts, N, T, K], each head's tokens side by side."""
    B, T, _ = x.shape
    return x.view(B, T, parts, heads, -1).permute(2, 0, 3, 1, 4).reshape(parts, B * heads, T, -1)


def _by_token(x: Tensor, heads: int) -> Tensor:
    """The reverse of `_by_head`."""
    parts, N, T, _ = x.shape
    B = N // heads
    return x.view(parts, B, heads, T, -1).permute(1, 3, 0, 2, 4).reshape(B, T, -1)


def _blocks(num_tokens: int) -> list[tuple[int, int]]:
    return [(i, min(i + BLOCK, num_tokens)) for i in range(0, num_tokens, BLOCK)]


def _future(start: int, end: int, like: Tensor) -> Tensor:
    """Minus infinity [end - start, end] where a key stands to the right of its query."""
    return torch.full((end - start, end), -torch.inf, dtype=like.dtype).triu_(start + 1)
