"""From the hidden states of a text's tokens to one vector; padding never takes part.

Letters in tensor names: B rows, T tokens, D features, H heads, K features of a head,
F features of the pooled vector.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2cls.errors import ModelError

Kind = Literal["last", "mean", "max", "concat", "attention"]


class Pooling(nn.Module):
    """One of the ways to pool; only `attention` has weights."""

    def __init__(self, kind: Kind, *, width: int, heads: int) -> None:
        super().__init__()
        self.kind = kind
        self.width = {"concat": 3 * width, "attention": 2 * width}.get(kind, width)
        self.attention = SequenceAttention(width, heads) if kind == "attention" else None

    def forward(self, hidden_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        """The pooled vectors [B, F] in float32."""
        mask_BT = token_mask(lengths_B, hidden_BTD.shape[1])
        last_BD = last_token(hidden_BTD, lengths_B)
        if self.kind == "last":
            return last_BD
        if self.kind == "mean":
            return mean_tokens(hidden_BTD, mask_BT)
        if self.kind == "max":
            return max_tokens(hidden_BTD, mask_BT)
        if self.attention is not None:
            return torch.cat([last_BD, self.attention(hidden_BTD, last_BD, mask_BT)], dim=1)
        # Howard and Ruder 2018, section 3.3: [last, max over time, mean over time].
        return torch.cat(
            [last_BD, max_tokens(hidden_BTD, mask_BT), mean_tokens(hidden_BTD, mask_BT)], dim=1
        )


def token_mask(lengths_B: Tensor, num_tokens: int) -> Tensor:
    """True [B, T] where a row has a real token."""
    return torch.arange(num_tokens, device=lengths_B.device) < lengths_B[:, None]


def last_token(hidden_BTD: Tensor, lengths_B: Tensor) -> Tensor:
    rows_B = torch.arange(len(lengths_B), device=hidden_BTD.device)
    return hidden_BTD[rows_B, lengths_B - 1].float()


def mean_tokens(hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    # Filled, not multiplied: padding may hold an infinity, and 0 * inf is NaN.
    sum_BD = hidden_BTD.masked_fill(~mask_BT[:, :, None], 0.0).float().sum(dim=1)
    return sum_BD / mask_BT.sum(dim=1, keepdim=True)


def max_tokens(hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    return hidden_BTD.masked_fill(~mask_BT[:, :, None], -torch.inf).amax(dim=1).float()


def check_heads(width: int, heads: int) -> None:
    """Refuse a number of heads that does not divide the width.

    Raises:
        ModelError: names the numbers that do.
    """
    if width % heads:
        allowed = [n for n in range(1, min(width, 256) + 1) if width % n == 0]
        raise ModelError(
            f"model.heads = {heads}: the backbone is {width} wide, which {heads} does not "
            f"divide; allowed: {', '.join(map(str, allowed))}"
        )


class SequenceAttention(nn.Module):
    """Multi-head attention from the last token over the whole sequence; heads concatenated.

    One query per text keeps its cost linear in the length of the text.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        for layer in (self.query, self.key_value):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, hidden_BTD: Tensor, last_BD: Tensor, mask_BT: Tensor) -> Tensor:
        B, T, D = hidden_BTD.shape
        K = D // self.heads
        hidden_BTD = hidden_BTD.masked_fill(~mask_BT[:, :, None], 0.0)
        q_BH1K = self.query(last_BD).view(B, 1, self.heads, K).transpose(1, 2)
        k_BHTK, v_BHTK = (
            part.view(B, T, self.heads, K).transpose(1, 2)
            for part in self.key_value(hidden_BTD).split(D, dim=2)
        )
        read_BH1K = F.scaled_dot_product_attention(
            q_BH1K, k_BHTK, v_BHTK, attn_mask=mask_BT[:, None, None, :]
        )
        return read_BH1K.transpose(1, 2).reshape(B, D).float()
