"""What is minimised: sums of losses over rows, and what a sum is divided by.

The divisor is that of the global batch and is known to every rank, so a loss and its gradient do
not depend on how rows are spread over ranks and micro-batches.

Letters in tensor names: B rows, C classes.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn, tensor

from gpt2cls.data.batches import Batch
from gpt2cls.errors import RequestError
from gpt2cls.model.head import AdaptiveHead

WeightSetting = Literal["none", "balanced"] | dict[str, float]


@dataclass(frozen=True)
class Objective:
    """Cross-entropy of one label per row, or binary cross-entropy averaged over the labels."""

    is_multi_label: bool
    weights: tuple[float, ...] | None = None
    """One per class: of its rows, or (several labels per row) of its presence."""
    label_smoothing: float = 0.0

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """The weighted losses of the rows of `batch`, summed; in float32."""
        return self.loss_of_features(model, pooled(model, batch), batch)

    def loss_of_features(self, model: nn.Module, features_BF: Tensor, batch: Batch) -> Tensor:
        """As `loss_sum`, from what the head reads."""
        head: Any = model.head
        if not isinstance(head, AdaptiveHead):
            return self.loss_of_logits(head(features_BF, batch.cut_share_B), batch.labels)
        # Without the other labels' probabilities, which nothing here asks for.
        log_p_B = head.log_probability(features_BF, batch.cut_share_B, batch.labels)
        if self.weights is not None:
            log_p_B = log_p_B * tensor(self.weights, device=log_p_B.device)[batch.labels]
        return -log_p_B.sum()

    def loss_of_logits(self, logits_BC: Tensor, labels: Tensor) -> Tensor:
        # float(): cross-entropy in bf16 loses the small probabilities.
        logits_BC = logits_BC.float()
        weights_C = None
        if self.weights is not None:
            weights_C = tensor(self.weights, device=logits_BC.device)
        if not self.is_multi_label:
            return F.cross_entropy(
                logits_BC,
                labels,
                weight=weights_C,
                label_smoothing=self.label_smoothing,
                reduction="sum",
            )
        targets_BC = labels * (1 - self.label_smoothing) + self.label_smoothing / 2
        loss = F.binary_cross_entropy_with_logits(
            logits_BC, targets_BC, pos_weight=weights_C, reduction="sum"
        )
        return loss / logits_BC.shape[1]

    def normaliser(self, labels: NDArray[Any]) -> float:
        """What the loss sum over rows with these labels is divided by to give a mean."""
        if self.weights is None or self.is_multi_label:
            return float(max(len(labels), 1))
        total = float(np.asarray(self.weights)[labels].sum())
        return total or 1.0  # rows of weight 0 only: their loss is 0 too


@dataclass(frozen=True)
class SquaredError:
    """The squared error of values, in units of the variance of the training labels."""

    mean: float
    std: float

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """The losses of the rows of `batch`, summed; in float32."""
        return self.loss_of_features(model, pooled(model, batch), batch)

    def loss_of_features(self, model: nn.Module, features_BF: Tensor, batch: Batch) -> Tensor:
        """As `loss_sum`, from what the head reads."""
        head: Any = model.head
        return self.loss_of_logits(head(features_BF, batch.cut_share_B), batch.labels)

    def loss_of_logits(self, logits_B1: Tensor, labels_B: Tensor) -> Tensor:
        wanted_B = (labels_B.float() - self.mean) / self.std
        return F.mse_loss(logits_B1.float().squeeze(1), wanted_B, reduction="sum")

    def normaliser(self, labels: NDArray[Any]) -> float:
        """What the loss sum over rows with these labels is divided by to give a mean."""
        return float(max(len(labels), 1))


def pooled(model: nn.Module, batch: Batch) -> Tensor:
    """What the head reads, from what was kept of the layers below where the batch has it."""
    if batch.features_BF is not None:
        return batch.features_BF
    if batch.hidden_BTD is not None:
        return model.features_above(batch.hidden_BTD, batch.lengths_B, batch.block)  # type: ignore[operator, no-any-return]
    return model.features(batch.tokens_BT, batch.lengths_B)  # type: ignore[operator, no-any-return]


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """The model's logits [B, C]."""
    return model.head_logits(pooled(model, batch), batch.cut_share_B)  # type: ignore[operator, no-any-return]


def class_weights(
    setting: WeightSetting, labels: NDArray[Any], names: tuple[str, ...]
) -> tuple[float, ...] | None:
    """One weight per class from the setting and the training labels; None: all alike.

    `balanced` gives every class the same total: rows / (classes * rows of the class), as
    scikit-learn has it; for several labels per row, rows without the label / rows with it. A class
    without rows weighs 1.

    Raises:
        RequestError: the mapping names a label that the data do not have.
    """
    if setting == "none":
        return None
    if isinstance(setting, dict):
        if unknown := sorted(set(setting) - set(names)):
            raise RequestError(
                f"train.class_weights names {', '.join(map(repr, unknown))}: no such label; the "
                f"training data have {', '.join(map(repr, names[:20]))}"
            )
        return tuple(float(setting.get(name, 1.0)) for name in names)
    if labels.ndim == 2:
        counts = labels.sum(axis=0)
        balanced = (len(labels) - counts) / np.maximum(counts, 1)
    else:
        counts = np.bincount(labels, minlength=len(names))
        balanced = len(labels) / (len(names) * np.maximum(counts, 1))
    return tuple(np.where((counts > 0) & (balanced > 0), balanced, 1.0).tolist())
