"""The whole network: backbone, pooling, head.

Letters in tensor names: B rows, S sequences of a row, N sequences of all rows, T tokens,
D features of a token, F features of the pooled vector, C classes.
"""

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gpt2cls.config import ModelConfig
from gpt2cls.data.tasks import Task
from gpt2cls.errors import ModelError
from gpt2cls.model.backbone import Backbone, build_backbone
from gpt2cls.model.choice_head import ChoiceHead
from gpt2cls.model.encdec import EncoderDecoder
from gpt2cls.model.gpt2 import GPT2Backbone, embeddings_alone
from gpt2cls.model.head import Head, build_head
from gpt2cls.model.packed import PackedGPT2
from gpt2cls.model.pooling import Pooling
from gpt2cls.model.value_head import ValueHead

_HEAD = 0x68656164
"""Keeps the head from being drawn with the very numbers that a new backbone begins with."""


class Classifier(nn.Module):
    """Tokens to logits."""

    def __init__(
        self, backbone: Backbone, pooling: Pooling | EncoderDecoder, head: Head | ValueHead
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling = pooling
        self.head = head

    def features(self, tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Pooled vectors [B, F], before dropout: what can be kept while the backbone is frozen.

        Tokens [B, S, T] with lengths [B, S] are rows of several sequences, see `of_rows`.
        """
        if tokens_BT.dim() == 3:
            is_there_BS = lengths_B > 0
            of_each_NF = self.features(tokens_BT[is_there_BS], lengths_B[is_there_BS])
            return self.of_rows(of_each_NF, is_there_BS)
        if self.pooling.kind == "last" and isinstance(self.backbone, GPT2Backbone | PackedGPT2):
            return self.backbone.last_hidden(tokens_BT, lengths_B).float()
        return self.pooling(self.backbone(tokens_BT, lengths_B), lengths_B)  # type: ignore[no-any-return]

    def of_rows(self, of_each_NF: Tensor, is_there_BS: Tensor) -> Tensor:
        """What the head reads of rows of several sequences.

        That is the sum of their vectors, or [B, S, F] for a head that chooses among them.

        Source: Radford et al. 2018, section 3.3 (similarity: both representations, added).
        """
        features_BSF = of_each_NF.new_zeros(*is_there_BS.shape, of_each_NF.shape[1])
        features_BSF[is_there_BS] = of_each_NF
        return features_BSF if isinstance(self.head, ChoiceHead) else features_BSF.sum(dim=1)

    def hidden_below(self, tokens_BT: Tensor, lengths_B: Tensor, block: int | None) -> Tensor:
        """The hidden states [B, T, D] that enter `block`; None: that leave the backbone.

        Of rows of several sequences they are [N, T, D], one sequence after another.
        """
        if tokens_BT.dim() == 3:
            is_there_BS = lengths_B > 0
            tokens_BT, lengths_B = tokens_BT[is_there_BS], lengths_B[is_there_BS]
        if block is None:
            return self.backbone(tokens_BT, lengths_B)  # type: ignore[no-any-return]
        return self.backbone.up_to_block(tokens_BT, lengths_B, block)

    def features_above(self, hidden_BTD: Tensor, lengths_B: Tensor, block: int | None) -> Tensor:
        """What `features` gives, from what `hidden_below` gave; rounded when that was kept."""
        if lengths_B.dim() == 2:
            is_there_BS = lengths_B > 0
            of_each_NF = self.features_above(hidden_BTD, lengths_B[is_there_BS], block)
            return self.of_rows(of_each_NF, is_there_BS)
        hidden_BTD = hidden_BTD.float()  # as the residual stream is, whatever it was kept in
        if block is not None:
            if self.pooling.kind == "last" and isinstance(self.backbone, GPT2Backbone):
                return self.backbone.last_from_block(hidden_BTD, lengths_B, block).float()
            hidden_BTD = self.backbone.from_block(hidden_BTD, lengths_B, block)
        return self.pooling(hidden_BTD, lengths_B)  # type: ignore[no-any-return]

    def head_logits(self, features_BF: Tensor, cut_share_B: Tensor) -> Tensor:
        """Logits [B, C] in float32, already divided by the temperature; or standardised values."""
        return self.head(features_BF, cut_share_B)  # type: ignore[no-any-return]

    def forward(self, tokens_BT: Tensor, lengths_B: Tensor, cut_share_B: Tensor) -> Tensor:
        return self.head_logits(self.features(tokens_BT, lengths_B), cut_share_B)

    def probabilities(self, logits_BC: Tensor) -> Tensor:
        """Probabilities [B, C]; of regression the values [B, 1], which stand in their place."""
        return self.head.probabilities(logits_BC)


def build_classifier(
    config: ModelConfig,
    task: Task,
    *,
    vocab_size: int,
    pad_id: int,
    max_length: int,
    seed: int,
    base_dir: Path,
    label_counts_C: NDArray[Any] | None = None,
    num_new: int = 0,
) -> Classifier:
    """A new classifier; the same seed gives the same weights, and the caller's draws stay.

    `label_counts_C` are the training rows of each label, which an adaptive head sorts them by;
    without them a file has to say. `num_new` is what `build_backbone` takes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = build_backbone(
            config,
            vocab_size=vocab_size,
            pad_id=pad_id,
            max_length=max_length,
            base_dir=base_dir,
            num_new=num_new,
        )
        if config.head == "encdec":
            backbone = _embeddings_of(backbone, config)
        return with_new_head(backbone, config, task, seed, label_counts_C)


def _embeddings_of(backbone: Backbone, config: ModelConfig) -> GPT2Backbone:
    """What an encoder of our own takes from a backbone: no layer, tokens and positions."""
    if not isinstance(backbone, GPT2Backbone):
        raise ModelError(
            f"model.backbone = {config.backbone!r}: model.head = encdec takes the token and "
            "position embeddings of a GPT-2; name one, or set model.head to linear"
        )
    return embeddings_alone(backbone)


def with_new_head(
    backbone: Backbone,
    config: ModelConfig,
    task: Task,
    seed: int = 0,
    label_counts_C: NDArray[Any] | None = None,
) -> Classifier:
    """The backbone with pooling and head drawn from `seed` alone; moves torch's generator.

    What the backbone drew before does not matter, so that many heads can be made for one.
    """
    torch.default_generator.manual_seed(seed ^ _HEAD)
    pooling = _new_pooling(backbone, config, task)
    if task.kind == "regression":
        return Classifier(backbone, pooling, ValueHead(config, task, pooling.width))
    if task.kind == "multiple_choice":
        return Classifier(backbone, pooling, ChoiceHead(config, task, pooling.width))
    head = build_head(config, task, pooling.width, label_counts_C)
    return Classifier(backbone, pooling, head)


def _new_pooling(backbone: Backbone, config: ModelConfig, task: Task) -> Pooling | EncoderDecoder:
    if config.head != "encdec":
        return Pooling(config.pooling, width=backbone.width, heads=config.heads)
    return EncoderDecoder(
        len(task.labels), width=backbone.width, heads=config.heads, dropout=config.dropout
    )
