"""GPT-2 as Radford et al. 2019 describe it, with the parameter names of transformers.GPT2Model.

The hidden states are those of transformers. The names and the layout of every tensor are
kept too, so that a Hugging Face folder is read and written without a conversion.

Padding is on the right, and a causal model's token sees only what stands left of it: no
real token ever sees padding, and no attention mask is needed.

Letters in tensor names: B rows, T tokens, D features, H heads, K features of a head.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2cls.model.kernels import add_dropped, causal_attention, dropout, gelu_tanh

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
}


@dataclass(frozen=True)
class GPT2Config:
    """The shape of a GPT-2."""

    vocab_size: int
    positions: int
    width: int
    layers: int
    heads: int
    inner: int
    activation: str = "gelu_new"
    norm_epsilon: float = 1e-5
    scale_attention: bool = True
    scale_by_layer: bool = False
    raw: dict[str, Any] = field(default_factory=dict, compare=False)
    """The config.json it was read from, for writing it back."""


class Affine(nn.Module):
    """x W + b, with W stored [in, out] as GPT-2's files have it."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_in, num_out))
        self.bias = nn.Parameter(torch.empty(num_out))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.t(), self.bias)


class Attention(nn.Module):
    def __init__(self, config: GPT2Config, index: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, dropout
        self.scale = 1 / math.sqrt(config.width // config.heads) if config.scale_attention else 1.0
        if config.scale_by_layer:
            self.scale /= index + 1
        self.c_attn = Affine(config.width, 3 * config.width)
        self.c_proj = Affine(config.width, config.width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        mixed_BTD = causal_attention(self.c_attn(x_BTD), self.heads, self.scale, self._drop)
        return self.c_proj(mixed_BTD)  # type: ignore[no-any-return]

    @property
    def _drop(self) -> float:
        return self.dropout if self.training else 0.0

    def of_last(self, x_BTD: Tensor, last_B1D: Tensor, seen_BT: Tensor) -> Tensor:
        """What `forward` gives at each row's last token, which sees the tokens `seen_BT`."""
        D = x_BTD.shape[2]
        weight, bias = self.c_attn.weight, self.c_attn.bias
        q_B1D = F.linear(last_B1D, weight[:, :D].t(), bias[:D])
        k_BTD, v_BTD = F.linear(x_BTD, weight[:, D:].t(), bias[D:]).chunk(2, dim=2)
        q_BH1K, k_BHTK, v_BHTK = (
            part.view(len(x_BTD), -1, self.heads, D // self.heads).transpose(1, 2)
            for part in (q_B1D, k_BTD, v_BTD)
        )
        mixed_BH1K = F.scaled_dot_product_attention(
            q_BH1K,
            k_BHTK,
            v_BHTK,
            attn_mask=seen_BT[:, None, None, :],
            scale=self.scale,
            dropout_p=self._drop,
        )
        return self.c_proj(mixed_BH1K.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class MLP(nn.Module):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.c_fc = Affine(config.width, config.inner)
        self.c_proj = Affine(config.inner, config.width)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.c_proj(self.activation(self.c_fc(x_BTD)))  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, config: GPT2Config, index: int, dropout: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.attn = Attention(config, index, dropout)
        self.ln_2 = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.mlp = MLP(config)
        self.dropout = dropout

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self._with_mlp(self._add(x_BTD, self.attn(self.ln_1(x_BTD))))

    def of_last(self, x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        """What `forward` gives at each row's last token, [B, D], for a fraction of the work."""
        _, T, D = x_BTD.shape
        at_B11 = (lengths_B - 1)[:, None, None]
        seen_BT = torch.arange(T, device=lengths_B.device) < lengths_B[:, None]
        normed_BTD = self.ln_1(x_BTD)
        last_B1D = x_BTD.gather(1, at_B11.expand(-1, 1, D))
        normed_B1D = normed_BTD.gather(1, at_B11.expand(-1, 1, D))
        read_B1D = self.attn.of_last(normed_BTD, normed_B1D, seen_BT)
        return self._with_mlp(self._add(last_B1D, read_B1D)).squeeze(1)

    def _with_mlp(self, x_BTD: Tensor) -> Tensor:
        return self._add(x_BTD, self.mlp(self.ln_2(x_BTD)))

    def _add(self, x_BTD: Tensor, y_BTD: Tensor) -> Tensor:
        return add_dropped(x_BTD, y_BTD, self.dropout if self.training else 0.0)


class GPT2Backbone(nn.Module):
    """Tokens to hidden states; its weights are not set until `init_gpt2` or `load_gpt2` does."""

    def __init__(self, config: GPT2Config, *, dropout: float) -> None:
        super().__init__()
        self.config = config
        self.wte = _empty_embedding(config.vocab_size, config.width)
        self.wpe = _empty_embedding(config.positions, config.width)
        self.dropout = dropout
        self.h = nn.ModuleList(Block(config, i, dropout) for i in range(config.layers))
        self.ln_f = nn.LayerNorm(config.width, eps=config.norm_epsilon)

    @property
    def width(self) -> int:
        return self.config.width

    def width_below(self, block: int) -> int:
        """Features of the hidden states that enter `block`."""
        del block
        return self.width

    @property
    def blocks(self) -> list[list[nn.Module]]:
        """The groups of layers from the bottom to the top; the embeddings are the first."""
        if not self.h:
            return [[self.wte, self.wpe, self.ln_f]]
        return [[self.wte, self.wpe], *([block] for block in self.h[:-1]), [self.h[-1], self.ln_f]]

    def forward(self, tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Hidden states [B, T, D] after the last norm; those of padding mean nothing.

        A batch padded beyond the position table is cut to it, provided that no text is longer.
        """
        return self.from_block(self._embedded(tokens_BT, lengths_B), lengths_B, 0)

    def last_hidden(self, tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """The hidden state [B, D] of each row's last token.

        Nothing reads the other tokens above the last block's attention, so they are left out
        there: with four blocks a fifth of the work.
        """
        return self.last_from_block(self._embedded(tokens_BT, lengths_B), lengths_B, 0)

    def up_to_block(self, tokens_BT: Tensor, lengths_B: Tensor, first: int) -> Tensor:
        """The hidden states [B, T, D] that enter block `first` (0 is the lowest)."""
        x_BTD = self._embedded(tokens_BT, lengths_B)
        for block in self.h[:first]:
            x_BTD = block(x_BTD)
        return x_BTD

    def from_block(self, x_BTD: Tensor, lengths_B: Tensor, first: int) -> Tensor:
        """What `forward` gives, from the hidden states that enter block `first`."""
        del lengths_B  # padding is on the right, and no token sees what is right of it
        for block in self.h[first:]:
            x_BTD = block(x_BTD)
        return self.ln_f(x_BTD)  # type: ignore[no-any-return]

    def last_from_block(self, x_BTD: Tensor, lengths_B: Tensor, first: int) -> Tensor:
        """What `last_hidden` gives, from the hidden states that enter block `first`."""
        for block in self.h[first:-1]:
            x_BTD = block(x_BTD)
        top: Any = self.h[-1]
        return self.ln_f(top.of_last(x_BTD, lengths_B))  # type: ignore[no-any-return]

    def _embedded(self, tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
        T = tokens_BT.shape[1]
        if self.config.positions < T:
            if int(lengths_B.max()) > self.config.positions:
                raise ValueError(
                    f"a text of {int(lengths_B.max())} tokens; "
                    f"the backbone has {self.config.positions} positions"
                )
            T = self.config.positions
            tokens_BT = tokens_BT[:, :T]
        x_BTD = self.wte(tokens_BT) + self.wpe.weight[:T]
        return dropout(x_BTD, self.dropout if self.training else 0.0)


def embeddings_alone(backbone: GPT2Backbone) -> GPT2Backbone:
    """A GPT-2 without blocks: its tokens and positions, with a new norm above them."""
    embeddings = GPT2Backbone(replace(backbone.config, layers=0), dropout=backbone.dropout)
    embeddings.wte, embeddings.wpe = backbone.wte, backbone.wpe
    return embeddings


def _empty_embedding(num_rows: int, width: int) -> nn.Embedding:
    # Given its weight, the embedding draws none: `init_gpt2` or a file will.
    return nn.Embedding(num_rows, width, _weight=torch.empty(num_rows, width))


def tensor_shapes(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, known before any of them takes memory."""
    width, inner = config.width, config.inner
    of_a_block = {
        "ln_1.weight": (width,),
        "ln_1.bias": (width,),
        "attn.c_attn.weight": (width, 3 * width),
        "attn.c_attn.bias": (3 * width,),
        "attn.c_proj.weight": (width, width),
        "attn.c_proj.bias": (width,),
        "ln_2.weight": (width,),
        "ln_2.bias": (width,),
        "mlp.c_fc.weight": (width, inner),
        "mlp.c_fc.bias": (inner,),
        "mlp.c_proj.weight": (inner, width),
        "mlp.c_proj.bias": (width,),
    }
    return {
        "wte.weight": (config.vocab_size, width),
        "wpe.weight": (config.positions, width),
        **{f"h.{i}.{name}": s for i in range(config.layers) for name, s in of_a_block.items()},
        "ln_f.weight": (width,),
        "ln_f.bias": (width,),
    }


def init_gpt2(model: GPT2Backbone) -> None:
    """Draw new weights from torch's global generator.

    Source: Radford et al. 2019, section 2.3: the weights of the layers that end on the
        residual stream are scaled by 1/sqrt(number of such layers); 0.02 is from its code.
    """
    residual_std = 0.02 / math.sqrt(2 * max(model.config.layers, 1))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif ".ln_" in name or name.startswith("ln_"):
            nn.init.ones_(parameter)
        else:
            is_residual = name.endswith("c_proj.weight")
            nn.init.normal_(parameter, std=residual_std if is_residual else 0.02)
