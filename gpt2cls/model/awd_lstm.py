"""The AWD-LSTM of Merity et al. 2017: an LSTM in which dropout is nearly everywhere.

The recurrence is PyTorch's own (oneDNN on a processor, cuDNN on a GPU). Its state begins at zero
in every row, and padding is on the right: no real token ever sees padding.

Source: Merity, Keskar and Socher 2017, "Regularizing and Optimizing LSTM Language Models",
    sections 3 and 4; the sizes and rates in Howard and Ruder 2018, "Universal Language Model
    Fine-tuning for Text Classification", section 4.1.

Letters in tensor names: B rows, T tokens, V tokens of the vocabulary, D features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gpt2cls.model.kernels import dropout, keep_mask

REFERENCE_DROPOUT = 0.4
"""The `model.dropout` at which all rates are the published ones."""
MOST_WEIGHTS_DROPPED = 0.9
"""Of hidden-to-hidden weights, however high `model.dropout` is."""
EMBEDDING_BOUND = 0.5
"""A new embedding is drawn evenly between this and its negative. Merity et al. have 0.1, and SGD at
a rate of 30; with AdamW words are then so much alike that 300 steps learn frequencies alone."""


@dataclass(frozen=True)
class AwdLstmConfig:
    """The shape of an AWD-LSTM."""

    vocab_size: int
    width: int
    """Of the embedding, and so of what leaves the last layer."""
    hidden: int
    """Of the layers below the last one."""
    layers: int

    def sizes(self) -> list[tuple[int, int]]:
        """What goes into each layer and what leaves it."""
        inner = [self.hidden] * (self.layers - 1)
        return list(zip([self.width, *inner], [*inner, self.width], strict=True))


@dataclass(frozen=True)
class Rates:
    """The shares that are dropped, each for its own place."""

    words: float
    """Whole words of the embedding."""
    into: float
    """Features that enter the lowest layer."""
    between: float
    """Features that go from a layer to the next."""
    weights: float
    """Hidden-to-hidden weights."""
    out: float
    """Features that leave the last layer."""

    @classmethod
    def of(cls, dropout: float) -> "Rates":
        """The published rates times `dropout` / 0.4."""
        scale = dropout / REFERENCE_DROPOUT
        return cls(
            words=0.05 * scale,
            into=0.4 * scale,
            between=0.3 * scale,
            weights=min(0.5 * scale, MOST_WEIGHTS_DROPPED),
            out=0.4 * scale,
        )


class Layer(nn.Module):
    """One LSTM layer; each of its two dropouts of features takes the same features at all times."""

    def __init__(self, num_in: int, num_out: int, *, into: float, weights: float, out: float):
        super().__init__()
        self.num_out = num_out
        self.drop_in, self.drop_weights, self.drop_out = into, weights, out
        # The four gates stand below one another, and have two biases, as PyTorch's kernels want.
        self.weight_ih = nn.Parameter(torch.empty(4 * num_out, num_in))
        self.weight_hh = nn.Parameter(torch.empty(4 * num_out, num_out))
        self.bias_ih = nn.Parameter(torch.empty(4 * num_out))
        self.bias_hh = nn.Parameter(torch.empty(4 * num_out))

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = locked_dropout(x_BTD, self.drop_in if self.training else 0.0)
        weight_hh = dropout(self.weight_hh, self.drop_weights if self.training else 0.0)
        weights = [self.weight_ih, weight_hh, self.bias_ih, self.bias_hh]
        return locked_dropout(lstm(x_BTD, weights), self.drop_out if self.training else 0.0)


def locked_dropout(x_BTD: Tensor, drop: float) -> Tensor:
    """Drop features, in each row the same ones at all its tokens.

    Source: Gal and Ghahramani 2016, "A Theoretically Grounded Application of Dropout in
        Recurrent Neural Networks".
    """
    return x_BTD * keep_mask(x_BTD[:, :1], drop) if drop else x_BTD


def lstm(x_BTD: Tensor, weights: list[Tensor]) -> Tensor:
    """What leaves an LSTM layer whose state begins at zero.

    On a processor it computes in fp32 or bf16: what oneDNN has no kernel for would take twenty
    times as long in PyTorch's own, or fail.
    """
    if x_BTD.device.type == "cpu" and torch.is_autocast_enabled("cpu") and not _is_fast_in_half():
        with torch.autocast("cpu", enabled=False):
            return _lstm(x_BTD.float(), weights)
    return _lstm(x_BTD, weights)


def _lstm(x_BTD: Tensor, weights: list[Tensor]) -> Tensor:
    state_1BD = x_BTD.new_zeros(1, len(x_BTD), weights[1].shape[1])
    # cuDNN takes gradients only in training mode, also through a layer that is frozen itself.
    is_training = torch.is_grad_enabled()
    states = (state_1BD, state_1BD)
    return torch.lstm(x_BTD, states, weights, True, 1, 0.0, is_training, False, True)[0]


def _is_fast_in_half() -> bool:
    if torch.get_autocast_dtype("cpu") != torch.bfloat16:
        return False
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(has_onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class AwdLstm(nn.Module):
    """Tokens to hidden states; its weights are not set until `init_awd_lstm` or a file does."""

    def __init__(self, config: AwdLstmConfig, *, dropout: float) -> None:
        super().__init__()
        self.config, self.rates = config, Rates.of(dropout)
        table = torch.empty(config.vocab_size, config.width)
        # Given its weight, the embedding draws none.
        self.wte = nn.Embedding(config.vocab_size, config.width, _weight=table)
        self.h = nn.ModuleList(self._layers())

    def _layers(self) -> list[Layer]:
        rates, last = self.rates, self.config.layers - 1
        return [
            Layer(
                *sizes,
                into=rates.into if i == 0 else rates.between,
                weights=rates.weights,
                out=rates.out if i == last else 0.0,
            )
            for i, sizes in enumerate(self.config.sizes())
        ]

    @property
    def width(self) -> int:
        return self.config.width

    def width_below(self, block: int) -> int:
        """Features of the hidden states that enter layer `block`."""
        return self.config.sizes()[block][0]

    @property
    def blocks(self) -> list[list[nn.Module]]:
        """The groups of layers from the bottom to the top; the embedding is the first."""
        return [[self.wte], *([layer] for layer in self.h)]

    def forward(self, tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Hidden states [B, T, D] of the last layer; those of padding mean nothing."""
        return self.from_block(self._embedded(tokens_BT), lengths_B, 0)

    def up_to_block(self, tokens_BT: Tensor, lengths_B: Tensor, first: int) -> Tensor:
        """The hidden states [B, T, D] that enter layer `first` (0 is the lowest)."""
        del lengths_B  # padding is on the right, and no token sees what is right of it
        x_BTD = self._embedded(tokens_BT)
        for layer in self.h[:first]:
            x_BTD = layer(x_BTD)
        return x_BTD

    def from_block(self, x_BTD: Tensor, lengths_B: Tensor, first: int) -> Tensor:
        """What `forward` gives, from the hidden states that enter layer `first`."""
        del lengths_B
        for layer in self.h[first:]:
            x_BTD = layer(x_BTD)
        return x_BTD

    def _embedded(self, tokens_BT: Tensor) -> Tensor:
        x_BTD: Tensor = self.wte(tokens_BT)
        # Frozen with the embedding: the dropout of whole words is its own.
        drop = self.rates.words if self.wte.training else 0.0
        if not drop:
            return x_BTD
        mask_V1 = keep_mask(x_BTD.new_empty(self.config.vocab_size, 1), drop)
        return x_BTD * mask_V1[tokens_BT]


def awd_lstm_shapes(config: AwdLstmConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, known before any of them takes memory."""
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (config.vocab_size, config.width)}
    for i, (num_in, num_out) in enumerate(config.sizes()):
        shapes[f"h.{i}.weight_ih"] = (4 * num_out, num_in)
        shapes[f"h.{i}.weight_hh"] = (4 * num_out, num_out)
        shapes[f"h.{i}.bias_ih"] = shapes[f"h.{i}.bias_hh"] = (4 * num_out,)
    return shapes


def init_awd_lstm(model: AwdLstm) -> None:
    """Draw new weights from torch's global generator.

    Source: Merity et al. 2017, section 4, but for the embedding: evenly within 1 / sqrt(features
        that leave the layer) for the layers.
    """
    nn.init.uniform_(model.wte.weight, -EMBEDDING_BOUND, EMBEDDING_BOUND)
    for layer in model.h:
        assert isinstance(layer, Layer)
        bound = layer.num_out**-0.5
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, -bound, bound)
