"""A GPT-2 for prediction on a processor with bf16: its weights are cast and packed once.

Weights, hidden states and sums of the residual stream are bf16; products and norms add up in fp32
inside. Bias, GELU and the residual sum are done by the product itself, while its result is still
in the cache. Nothing here has a gradient.

Letters in tensor names: B rows, T tokens, D features, H heads, K features of a head, N heads of
all rows, M rows of a matrix product: all tokens of all rows, and a few that mean nothing.
"""

from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2cls.model.gpt2 import Affine, Block, GPT2Backbone
from gpt2cls.model.vocabulary import UsedRows

AGREES_WITHIN = 0.05
"""By how much a probability may differ from the one in fp32 (a value: in standard deviations).
Random tokens are harder than texts: where they differ by 0.02, texts differ by 0.014."""
WORTH_IT_FROM = 128
"""The width below which calls cost more than products, and nothing is gained."""
FEW_TOKENS = 128
"""Up to which a single row is read by PyTorch's attention in one call: beyond, three are faster."""
_FUSED = {
    # The exact form differs by 5e-4 at most, less than bf16 can show, and is faster.
    "gelu_new": ("gelu", "none"),
    "gelu_pytorch_tanh": ("gelu", "none"),
    "gelu": ("gelu", "none"),
    "relu": ("relu", ""),
}
_PLAIN = ("none", "")


def can_pack(backbone: nn.Module) -> TypeGuard[GPT2Backbone]:
    """True for a GPT-2 on the CPU that packing serves."""
    return (
        isinstance(backbone, GPT2Backbone)
        and len(backbone.h) > 0
        and backbone.width >= WORTH_IT_FROM
        and backbone.config.activation in _FUSED
        and backbone.wpe.weight.device.type == "cpu"
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
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

    def __call__(self, x_MD: Tensor, B: int, T: int, future_TT: Tensor) -> Tensor:
        heads, qkv_MD = self.heads, self.qkv(self.norm_1(x_MD))[: B * T]
        by_head = qkv_MD.view(B, T, 3, heads, -1).permute(2, 0, 3, 1, 4)
        q_NTK, k_NTK, v_NTK = by_head.reshape(3, B * heads, T, -1)
        # Half the time of PyTorch's attention.
        scores_NTT = torch.baddbmm(future_TT, q_NTK, k_NTK.mT, alpha=self.scale)
        mixed_NTK = torch.bmm(scores_NTT.softmax(dim=2), v_NTK)
        mixed_MD = torch.empty_like(x_MD)
        mixed_BTHK = mixed_MD[: B * T].view(B, T, heads, -1)
        mixed_BTHK.copy_(mixed_NTK.view(B, heads, T, -1).transpose(1, 2))
        return self.with_mlp(self.proj.plus(mixed_MD, x_MD))

    def of_one(self, x_TD: Tensor) -> Tensor:
        """The same of a single row: calls cost more here than what they compute."""
        by_head = self.qkv(self.norm_1(x_TD)).view(1, len(x_TD), 3, self.heads, -1)
        q_1HTK, k_1HTK, v_1HTK = by_head.permute(2, 0, 3, 1, 4).unbind()
        mixed_1HTK = F.scaled_dot_product_attention(
            q_1HTK, k_1HTK, v_1HTK, is_causal=True, scale=self.scale
        )
        mixed_TD = mixed_1HTK.transpose(1, 2).reshape(x_TD.shape)
        return self.with_mlp(self.proj.plus(mixed_TD, x_TD))

    def with_mlp(self, x_MD: Tensor) -> Tensor:
        return self.down.plus(self.up(self.norm_2(x_MD), self.activation), x_MD)


class _LastReader:
    """What a `Block` gives at each row's last token: [B or a few more, D].

    One query q reads a row, so no token's key or value is needed: q . (x W) = (W q) . x, and the
    mix of x W is (the mix of x) W. A key's bias is the same for all tokens, and softmax drops it.
    """

    def __init__(self, block: Block, packed: _Block) -> None:
        self.packed, width = packed, len(block.attn.c_attn.weight)
        query_DD, key_DD, value_DD = torch.split(block.attn.c_attn.weight.detach(), width, dim=1)
        query_D, _, value_D = torch.split(block.attn.c_attn.bias.detach(), width)
        self.query_DD, self.query_D = query_DD.t() * packed.scale, query_D * packed.scale
        self.key_HKD = key_DD.t().reshape(packed.heads, -1, width)
        self.value_HDK = value_DD.view(width, packed.heads, -1).transpose(0, 1).contiguous()
        self.value_H1K = value_D.view(packed.heads, 1, -1)

    def __call__(self, x_MD: Tensor, B: int, T: int, lengths_B: Tensor) -> Tensor:
        heads, x_BTD = self.packed.heads, x_MD[: B * T].view(B, T, -1)
        normed_BTD = self.packed.norm_1(x_BTD.float())
        at_B = lengths_B - 1
        rows_B = torch.arange(B)
        q_BD = F.linear(normed_BTD[rows_B, at_B], self.query_DD, self.query_D)
        asked_HBD = torch.bmm(q_BD.view(B, heads, -1).transpose(0, 1), self.key_HKD)
        scores_BHT = torch.bmm(asked_HBD.transpose(0, 1), normed_BTD.mT)
        unseen_B1T = (torch.arange(T) > at_B[:, None])[:, None]
        probs_BHT = scores_BHT.masked_fill_(unseen_B1T, -torch.inf).softmax(dim=2)
        read_HBD = torch.bmm(probs_BHT, normed_BTD).transpose(0, 1)
        mixed_HBK = torch.baddbmm(self.value_H1K, read_HBD, self.value_HDK)
        mixed_BD = mixed_HBK.transpose(0, 1).reshape(B, -1)
        more = (0, 0, 0, few_sizes(B) - B)
        mixed_ND, last_ND = F.pad(mixed_BD, more), F.pad(x_BTD[rows_B, at_B], more)
        return self.packed.with_mlp(self.packed.proj.plus(mixed_ND.to(x_MD.dtype), last_ND))

    def of_one(self, x_TD: Tensor) -> Tensor:
        """The same at the end of a single row: [1, D]."""
        heads, normed_TD = self.packed.heads, self.packed.norm_1(x_TD.float())
        q_1D = F.linear(normed_TD[-1:], self.query_DD, self.query_D)
        asked_H1D = torch.bmm(q_1D.view(heads, 1, -1), self.key_HKD)
        probs_HT = torch.mm(asked_H1D[:, 0], normed_TD.t()).softmax(dim=1)
        read_H1D = torch.mm(probs_HT, normed_TD)[:, None]
        mixed_1D = torch.baddbmm(self.value_H1K, read_H1D, self.value_HDK).view(1, -1)
        return self.packed.with_mlp(self.packed.proj.plus(mixed_1D.to(x_TD.dtype), x_TD[-1:]))


class PackedGPT2(nn.Module):
    """The hidden states of a `GPT2Backbone`, in bf16 within and float32 at the end."""

    def __init__(self, backbone: GPT2Backbone) -> None:
        super().__init__()
        self.config = backbone.config
        self.tokens = backbone.wte.weight.detach().to(torch.bfloat16)
        wte: nn.Module = backbone.wte
        self.place_of_token = wte.place if isinstance(wte, UsedRows) else None
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
        B, T = tokens_BT.shape
        x_MD = self._through(self._blocks, tokens_BT)
        return self._norm(x_MD[: B * T].float()).view(B, T, -1)

    def last_hidden(self, tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """The hidden state [B, D] of each row's last token."""
        B, T = tokens_BT.shape
        x_MD = self._through(self._blocks[:-1], tokens_BT)
        if B == 1:
            return self._norm(self._last.of_one(x_MD[: int(lengths_B[0])]).float())
        return self._norm(self._last(x_MD, B, T, lengths_B)[:B].float())

    def _through(self, blocks: list[_Block], tokens_BT: Tensor) -> Tensor:
        (B, T), x_MD = tokens_BT.shape, self._embedded(tokens_BT)
        if B == 1 and T <= FEW_TOKENS:
            x_MD[T:] = 0  # attention multiplies what it does not see by 0, and that must be finite
            for block in blocks:
                x_MD = block.of_one(x_MD)
            return x_MD
        future_TT = torch.full((T, T), -torch.inf, dtype=x_MD.dtype).triu_(1)
        for block in blocks:
            x_MD = block(x_MD, B, T, future_TT)
        return x_MD

    def _embedded(self, tokens_BT: Tensor) -> Tensor:
        B, T = tokens_BT.shape
        # What lies beyond the tokens is never read: a row of a product depends on its own alone.
        x_MD = torch.empty(few_sizes(B * T), self.width, dtype=torch.bfloat16)
        x_BTD = x_MD[: B * T].view(B, T, -1)
        if self.place_of_token is not None:
            tokens_BT = self.place_of_token[tokens_BT]
        torch.add(F.embedding(tokens_BT, self.tokens), self.places[:T], out=x_BTD)
        return x_MD


def few_sizes(size: int) -> int:
    """`size` rounded up to one of 16 sizes between two powers of 2.

    A product of a size that oneDNN has not seen takes a millisecond more.
    """
    step = 1 << max(size.bit_length() - 5, 3)
    return size if size <= step else -(-size // step) * step
