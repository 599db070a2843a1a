"""A GPT-2 for prediction on a processor with bf16: its weights are cast and packed once.

Weights, hidden states and sums of the residual stream are bf16; attention is fp32, and products
and norms add up in fp32 inside. Bias, GELU and the residual sum are done by the product itself,
while its result is still in the cache. Nothing here has a gradient.

Letters in tensor names: B rows, T tokens, D features, H heads, K features of a head, M rows of
a matrix product: all tokens of all rows, and a few that mean nothing.
"""

from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2cls.model.gpt2 import Affine, Block, GPT2Backbone

WORTH_IT_FROM = 128
"""The width below which calls cost more than products, and nothing is gained."""
_FUSED = {
    "gelu_new": ("gelu", "tanh"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
    "gelu": ("gelu", "none"),
    "relu": ("relu", ""),
}
_PLAIN = ("none", "")


def can_pack(backbone: nn.Module) -> TypeGuard[GPT2Backbone]:
    """True for a GPT-2 on the CPU that packing serves."""
    return (
        isinstance(backbone, GPT2Backbone)
        and backbone.width >= WORTH_IT_FROM
        and backbone.config.activation in _FUSED
        and backbone.wpe.weight.device.type == "cpu"
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    )


class _Packed:
    """x W + b of an `Affine`, in bf16."""

    def __init__(self, affine: Affine, columns: slice = slice(None)) -> None:
        weight = affine.weight.detach()[:, columns].t().to(torch.bfloat16).contiguous()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        self.bias = affine.bias.detach()[columns].to(torch.bfloat16)
        # Looked up once: for a single text, the calls take as long as the products.
        self._product = torch.ops.mkldnn._linear_pointwise.default
        self._product_plus = torch.ops.mkldnn._linear_pointwise.binary

    def __call__(self, x_MD: Tensor, then: tuple[str, str] = _PLAIN) -> Tensor:
        return self._product(x_MD, self.weight, self.bias, then[0], [], then[1])  # type: ignore[no-any-return]

    def plus(self, x_MD: Tensor, other_MD: Tensor) -> Tensor:
        """The product, plus `other_MD`."""
        return self._product_plus(x_MD, other_MD, self.weight, self.bias, "add")  # type: ignore[no-any-return]


class _Norm:
    def __init__(self, layer: nn.LayerNorm) -> None:
        self.shape, self.epsilon = list(layer.normalized_shape), layer.eps
        self.weight, self.bias = layer.weight.detach(), layer.bias.detach()

    def __call__(self, x_MD: Tensor) -> Tensor:
        return torch.layer_norm(x_MD, self.shape, self.weight, self.bias, self.epsilon)


class _Block:
    """What a `Block` computes, over [M, D]."""

    def __init__(self, block: Block, activation: str) -> None:
        self.heads, self.scale = block.attn.heads, block.attn.scale
        self.norm_1, self.norm_2 = _Norm(block.ln_1), _Norm(block.ln_2)
        self.qkv, self.proj = _Packed(block.attn.c_attn), _Packed(block.attn.c_proj)
        self.up, self.down = _Packed(block.mlp.c_fc), _Packed(block.mlp.c_proj)
        self.activation = _FUSED[activation]

    def __call__(self, x_MD: Tensor, B: int, T: int) -> Tensor:
        # PyTorch's attention is a third slower in bf16 than in fp32.
        qkv = self.qkv(self.norm_1(x_MD))[: B * T].float()
        q_BHTK, k_BHTK, v_BHTK = qkv.view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed_BHTK = F.scaled_dot_product_attention(
            q_BHTK, k_BHTK, v_BHTK, is_causal=True, scale=self.scale
        )
        mixed_MD = torch.zeros_like(x_MD) if len(x_MD) > B * T else torch.empty_like(x_MD)
        mixed_MD[: B * T].view(B, T, self.heads, -1).copy_(mixed_BHTK.transpose(1, 2))
        return self.with_mlp(self.proj.plus(mixed_MD, x_MD))

    def with_mlp(self, x_MD: Tensor) -> Tensor:
        return self.down.plus(self.up(self.norm_2(x_MD), self.activation), x_MD)


class _LastReader:
    """What a `Block` gives at each row's last token: [B or a few more, D]."""

    def __init__(self, block: Block, packed: _Block) -> None:
        self.packed = packed
        width = len(block.attn.c_attn.weight)
        self.query = _Packed(block.attn.c_attn, slice(width))
        self.keys_values = _Packed(block.attn.c_attn, slice(width, None))

    def __call__(self, x_MD: Tensor, B: int, T: int, lengths_B: Tensor) -> Tensor:
        heads, normed_MD = self.packed.heads, self.packed.norm_1(x_MD)
        at_N = F.pad(torch.arange(-1, B * T - 1, T) + lengths_B, (0, few_sizes(B) - B))
        q_BH1K = self.query(normed_MD[at_N])[:B].float().view(B, heads, 1, -1)
        keys_values = self.keys_values(normed_MD)[: B * T].float()
        k_BHTK, v_BHTK = keys_values.view(B, T, 2, heads, -1).permute(2, 0, 3, 1, 4)
        seen_B11T = (torch.arange(T) < lengths_B[:, None])[:, None, None]
        mixed_BH1K = F.scaled_dot_product_attention(
            q_BH1K, k_BHTK, v_BHTK, attn_mask=seen_B11T, scale=self.packed.scale
        )
        mixed_BD = mixed_BH1K.reshape(B, -1).to(x_MD.dtype)
        mixed_ND = F.pad(mixed_BD, (0, 0, 0, len(at_N) - B))
        return self.packed.with_mlp(self.packed.proj.plus(mixed_ND, x_MD[at_N]))


class PackedGPT2(nn.Module):
    """The hidden states of a `GPT2Backbone`, in bf16 within and float32 at the end."""

    def __init__(self, backbone: GPT2Backbone) -> None:
        super().__init__()
        self.config = backbone.config
        self.tokens = backbone.wte.weight.detach().to(torch.bfloat16)
        self.places = backbone.wpe.weight.detach().to(torch.bfloat16)
        activation = backbone.config.activation
        self._blocks = [_Block(block, activation) for block in backbone.h]  # type: ignore[arg-type]
        self._last = _LastReader(backbone.h[-1], self._blocks[-1])  # type: ignore[arg-type]
        self._norm = _Norm(backbone.ln_f)

    @property
    def width(self) -> int:
        return self.config.width

    def forward(self, tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Hidden states [B, T, D] after the last norm; those of padding mean nothing."""
        del lengths_B  # padding is on the right, and no token sees what is right of it
        (B, T), x_MD = tokens_BT.shape, self._embedded(tokens_BT)
        for block in self._blocks:
            x_MD = block(x_MD, B, T)
        return self._norm(x_MD[: B * T].float()).view(B, T, -1)

    def last_hidden(self, tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """The hidden state [B, D] of each row's last token."""
        (B, T), x_MD = tokens_BT.shape, self._embedded(tokens_BT)
        for block in self._blocks[:-1]:
            x_MD = block(x_MD, B, T)
        return self._norm(self._last(x_MD, B, T, lengths_B)[:B].float())

    def _embedded(self, tokens_BT: Tensor) -> Tensor:
        B, T = tokens_BT.shape
        x_MD = torch.zeros(few_sizes(B * T), self.width, dtype=torch.bfloat16)
        x_BTD = x_MD[: B * T].view(B, T, -1)
        torch.add(F.embedding(tokens_BT, self.tokens), self.places[:T], out=x_BTD)
        return x_MD


def few_sizes(size: int) -> int:
    """`size` rounded up to one of 16 sizes between two powers of 2.

    A product of a size that oneDNN has not seen takes a millisecond more.
    """
    step = 1 << max(size.bit_length() - 5, 3)
    return size if size <= step else -(-size // step) * step
