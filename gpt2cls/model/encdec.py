"""An encoder that reads the whole text, and a decoder with a query for each label.

The encoder's layers see the tokens on both sides. The decoder holds one learned query per label:
the queries see each other, in no order and so without a causal mask, and read what the encoder
made of the text. What becomes of a label's query yields that label's logit.

Layers are post-norm, as in Vaswani et al. 2017, "Attention Is All You Need", sections 3.1 to 3.3:
norm(x + dropout(sublayer(x))), attention scaled by the root of a key's width, and initial weights
as in its code (Glorot and Bengio 2010). The activation is GPT-2's.

Letters in tensor names: B rows, T tokens, C labels, Q queries, S what they read, D features,
H heads, K features of a head.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2cls.model.kernels import add_dropped, gelu_tanh
from gpt2cls.model.pooling import check_heads, token_mask

NUM_LAYERS = 3
"""Of the encoder, and of the decoder."""
INNER = 4
"""The width within a feed-forward part over that of a token."""


class EncoderDecoder(nn.Module):
    """In the place of a pooling: from token embeddings to one vector per label, side by side."""

    kind: Literal["encdec"] = "encdec"

    def __init__(self, num_labels: int, *, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        check_heads(width, heads)
        self.width = num_labels * width
        self.encoder = nn.ModuleList(_Layer(width, heads, dropout) for _ in range(NUM_LAYERS))
        self.decoder = nn.ModuleList(
            _Layer(width, heads, dropout, reads_text=True) for _ in range(NUM_LAYERS)
        )
        self.query_CD = nn.Parameter(torch.empty(num_labels, width))
        nn.init.normal_(self.query_CD, std=0.02)  # as GPT-2's embeddings

    def forward(self, hidden_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        """The vectors of all labels [B, C * D] in float32."""
        mask_B11T = token_mask(lengths_B, hidden_BTD.shape[1])[:, None, None, :]
        text_BTD = self.encoded(hidden_BTD, lengths_B)
        x_BCD = self.query_CD.expand(len(hidden_BTD), -1, -1)
        for layer in self.decoder:
            x_BCD = layer(x_BCD, None, text_BTD, mask_B11T)
        return x_BCD.float().flatten(1)

    def encoded(self, hidden_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        """What the encoder makes of the tokens [B, T, D]; that of padding means nothing."""
        mask_BT = token_mask(lengths_B, hidden_BTD.shape[1])
        # Filled, not just masked: padding may hold an infinity, and 0 * inf is NaN.
        x_BTD = hidden_BTD.masked_fill(~mask_BT[:, :, None], 0.0)
        for layer in self.encoder:
            x_BTD = layer(x_BTD, mask_BT[:, None, None, :])
        return x_BTD


class _Layer(nn.Module):
    """Attention among its own, then (in the decoder) over the text, then a feed-forward part."""

    def __init__(self, width: int, heads: int, dropout: float, *, reads_text: bool = False) -> None:
        super().__init__()
        self.dropout = dropout
        self.own = _Attention(width, heads)
        self.own_norm = nn.LayerNorm(width)
        self.text = _Attention(width, heads) if reads_text else None
        self.text_norm = nn.LayerNorm(width) if reads_text else None
        self.up, self.down = _linear(width, INNER * width), _linear(INNER * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        x_BQD: Tensor,
        mask_B11Q: Tensor | None,
        text_BTD: Tensor | None = None,
        mask_B11T: Tensor | None = None,
    ) -> Tensor:
        x_BQD = self.own_norm(self._plus(x_BQD, self.own(x_BQD, x_BQD, mask_B11Q)))
        if self.text is not None and self.text_norm is not None:
            x_BQD = self.text_norm(self._plus(x_BQD, self.text(x_BQD, text_BTD, mask_B11T)))
        return self.norm(self._plus(x_BQD, self.down(gelu_tanh(self.up(x_BQD)))))  # type: ignore[no-any-return]

    def _plus(self, x_BQD: Tensor, y_BQD: Tensor) -> Tensor:
        return add_dropped(x_BQD, y_BQD, self.dropout if self.training else 0.0)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.out = _linear(width, width), _linear(width, width)
        self.key_value = _linear(width, 2 * width)
        # Glorot's bound is that of each of the two matrices, not of both as one.
        for matrix in self.key_value.weight.chunk(2):
            nn.init.xavier_uniform_(matrix)

    def forward(self, x_BQD: Tensor, read_BSD: Tensor, mask_B11S: Tensor | None) -> Tensor:
        q_BHQK = self._by_head(self.query(x_BQD))
        k_BHSK, v_BHSK = map(self._by_head, self.key_value(read_BSD).chunk(2, dim=2))
        mixed_BHQK = F.scaled_dot_product_attention(q_BHQK, k_BHSK, v_BHSK, attn_mask=mask_B11S)
        return self.out(mixed_BHQK.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _by_head(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


def _linear(num_in: int, num_out: int) -> nn.Linear:
    layer = nn.Linear(num_in, num_out)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
