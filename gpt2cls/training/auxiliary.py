"""Language modelling beside classification: the loss of the labels plus a part of the texts'.

Letters in tensor names: B rows, S sequences of a row, N sequences of all rows, T tokens.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gpt2cls.data.batches import Batch
from gpt2cls.errors import ModelError
from gpt2cls.model.backbone import OurBackbone
from gpt2cls.model.classifier import Classifier
from gpt2cls.model.language import next_token_loss
from gpt2cls.model.pooling import token_mask

LabelLoss = Callable[[nn.Module, Tensor, Batch], Tensor]
"""Of a model, the pooled vectors [B, F] and their batch, summed over the rows."""


def joint_loss(model: Classifier, of_labels: LabelLoss, weight: float) -> Callable[..., Tensor]:
    """A loss of a model and a batch, summed over its rows: L2 + weight * L1.

    L1 of a text is its mean over the tokens that have one before them, so a long text counts as
    much as a short one, and the sum does not depend on how rows are spread over ranks.

    Source: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training",
        equation 5; they leave open how tokens are averaged.

    Raises:
        ModelError: the backbone is none of ours, so its output embedding is not known.
    """
    if not isinstance(model.backbone, OurBackbone):
        raise ModelError(
            f"train.lm_weight = {weight:g}: only a GPT-2 or an AWD-LSTM learns texts beside "
            "labels; set it to 0"
        )

    def loss_sum(model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, Classifier)
        tokens_NT, lengths_N, share_N = _sequences(batch)
        hidden_NTD = model.backbone(tokens_NT, lengths_N)
        features_BF = model.pooling(hidden_NTD, lengths_N)
        if batch.lengths_B.dim() == 2:
            features_BF = model.of_rows(features_BF, batch.lengths_B > 0)
        texts = _text_loss(model, hidden_NTD, tokens_NT, lengths_N, share_N)
        return of_labels(model, features_BF, batch) + weight * texts

    return loss_sum


def _sequences(batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
    """The tokens, the lengths and the share in its row of every sequence; None: all 1."""
    if batch.lengths_B.dim() == 1:
        return batch.tokens_BT, batch.lengths_B, None
    is_there_BS = batch.lengths_B > 0
    share_BS = is_there_BS / is_there_BS.sum(dim=1, keepdim=True)
    return batch.tokens_BT[is_there_BS], batch.lengths_B[is_there_BS], share_BS[is_there_BS]


def _text_loss(
    model: Classifier,
    hidden_NTD: Tensor,
    tokens_NT: Tensor,
    lengths_N: Tensor,
    share_N: Tensor | None,
) -> Tensor:
    """The mean cross-entropy of each text's tokens from the second on, summed over the rows.

    That of a row of several sequences is the mean over them.
    """
    T = hidden_NTD.shape[1]
    has_next_NT = token_mask(lengths_N - 1, T)
    targets_NT = torch.full_like(tokens_NT[:, :T], -1)
    targets_NT[:, :-1] = tokens_NT[:, 1:T]
    targets_NT = targets_NT.masked_fill(~has_next_NT, -1)
    weights_NT = has_next_NT / (lengths_N - 1).clamp(min=1)[:, None]
    if share_N is not None:
        weights_NT = weights_NT * share_N[:, None]
    table_VD: Any = model.backbone.wte.weight
    return next_token_loss(
        hidden_NTD.flatten(0, 1), table_VD, targets_NT.flatten(), weights_NT.flatten()
    )
