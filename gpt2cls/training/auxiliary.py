"""Language modelling beside classification: the loss of the labels plus a part of the texts'.

Letters in tensor names: B rows, T tokens, N tokens of all rows.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gpt2cls.data.batches import Batch
from gpt2cls.errors import ModelError
from gpt2cls.model.classifier import Classifier
from gpt2cls.model.gpt2 import GPT2Backbone
from gpt2cls.model.language import next_token_loss
from gpt2cls.model.pooling import token_mask

LabelLoss = Callable[[Tensor, Tensor], Tensor]
"""Of logits [B, C] and labels, summed over the rows."""


def joint_loss(model: Classifier, of_labels: LabelLoss, weight: float) -> Callable[..., Tensor]:
    """A loss of a model and a batch, summed over its rows: L2 + weight * L1.

    L1 of a text is its mean over the tokens that have one before them, so a long text counts as
    much as a short one, and the sum does not depend on how rows are spread over ranks.

    Source: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training",
        equation 5; they leave open how tokens are averaged.

    Raises:
        ModelError: the backbone is no GPT-2, so its output embedding is not known.
    """
    if not isinstance(model.backbone, GPT2Backbone):
        raise ModelError(
            f"train.lm_weight = {weight:g}: only a GPT-2 learns texts beside labels; set it to 0"
        )

    def loss_sum(model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, Classifier)
        tokens_BT, lengths_B = batch.tokens_BT, batch.lengths_B
        hidden_BTD = model.backbone(tokens_BT, lengths_B)
        features_BF = model.pooling(hidden_BTD, lengths_B)
        logits_BC = model.head_logits(features_BF, batch.cut_share_B)
        texts = _text_loss(model, hidden_BTD, tokens_BT, lengths_B)
        return of_labels(logits_BC, batch.labels) + weight * texts

    return loss_sum


def _text_loss(
    model: Classifier, hidden_BTD: Tensor, tokens_BT: Tensor, lengths_B: Tensor
) -> Tensor:
    """The mean cross-entropy of each text's tokens from the second on, summed over the texts."""
    T = hidden_BTD.shape[1]
    has_next_BT = token_mask(lengths_B - 1, T)
    targets_BT = torch.full_like(tokens_BT[:, :T], -1)
    targets_BT[:, :-1] = tokens_BT[:, 1:T]
    targets_BT = targets_BT.masked_fill(~has_next_BT, -1)
    weights_BT = has_next_BT / (lengths_B - 1).clamp(min=1)[:, None]
    table_VD: Any = model.backbone.wte.weight  # type: ignore[union-attr]
    return next_token_loss(
        hidden_BTD.flatten(0, 1), table_VD, targets_BT.flatten(), weights_BT.flatten()
    )
