"""Many linear heads as one: their weights side by side, a step of all of them as a few products.

Knows PyTorch; knows nothing of files. Does for each head what `LinearHead`, `Objective`, the
clipping of the loop and AdamW do for one, in the same order; sums may differ in the last bit.

Letters in tensor names: N heads, B rows, F features, C classes, P weights of one head, S seeds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2cls.config import TrainConfig
from gpt2cls.model.head import LinearHead
from gpt2cls.model.kernels import DROP_LEVELS, drop_level
from gpt2cls.training.objectives import Objective
from gpt2cls.training.optim import EPSILON


@dataclass(frozen=True)
class _Settings:
    """What each head has of its own; the first axis is always N."""

    dropout_level_N11: Tensor
    """Bits below it drop a number."""
    dropout_scale_N11: Tensor
    temperature_N1: Tensor
    fixed_smoothing_N1: Tensor
    learns_smoothing_N1: Tensor
    label_smoothing_N11: Tensor
    class_weights_NC: Tensor
    decay_N1: Tensor
    betas_N2: Tensor
    """float64: 1 - 0.999 has four good digits in float32."""
    clip_N: Tensor
    """Infinite: no clipping."""


class HeadStack:
    """The weights, moments and settings of N heads; ended heads are taken out.

    A row of `weights_NP` is [weight C x F, bias C, smoothing 1].
    """

    def __init__(
        self,
        heads: Sequence[LinearHead],
        configs: Sequence[TrainConfig],
        objectives: Sequence[Objective],
        device: torch.device,
    ) -> None:
        self.num_classes, self.num_features = heads[0].linear.weight.shape
        self.is_multi_label = heads[0].is_multi_label
        self.weights_NP = torch.stack([_flat(head) for head in heads]).to(device)
        self.first_NP = torch.zeros_like(self.weights_NP)
        self.second_NP = torch.zeros_like(self.weights_NP)
        self.updates = 0
        self.settings = self._settings_of(heads, configs, objectives, device)
        self._look()

    def _settings_of(
        self,
        heads: Sequence[LinearHead],
        configs: Sequence[TrainConfig],
        objectives: Sequence[Objective],
        device: torch.device,
    ) -> _Settings:
        C = self.num_classes
        levels = [drop_level(head.dropout.p) for head in heads]

        def column(values: Sequence[float], *shape: int) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device).view(-1, *shape)

        return _Settings(
            dropout_level_N11=column([level - DROP_LEVELS // 2 for level in levels], 1, 1),
            dropout_scale_N11=column(
                [DROP_LEVELS / (DROP_LEVELS - level) for level in levels], 1, 1
            ),
            temperature_N1=column([head.temperature for head in heads], 1),
            fixed_smoothing_N1=column([head.fixed_smoothing for head in heads], 1),
            learns_smoothing_N1=column([head.smoothing is not None for head in heads], 1) > 0,
            label_smoothing_N11=column([o.label_smoothing for o in objectives], 1, 1),
            class_weights_NC=torch.stack(
                [torch.tensor(o.weights or (1.0,) * C) for o in objectives]
            ).to(device),
            decay_N1=column([c.weight_decay for c in configs], 1),
            betas_N2=torch.tensor([c.betas for c in configs], dtype=torch.float64, device=device),
            clip_N=column([math.inf if c.clip is None else c.clip for c in configs]),
        )

    def _look(self) -> None:
        """Views of the weights, and what can be left out when no head wants it."""
        N, C, num_weights = len(self.weights_NP), self.num_classes, self._num_linear_weights
        self.weight_NCF = self.weights_NP[:, :num_weights].view(N, C, self.num_features)
        self.bias_N1C = self.weights_NP[:, None, num_weights : num_weights + C]
        self.smoothing_N1 = self.weights_NP[:, -1:]
        s = self.settings
        self.any_dropout = bool((s.dropout_scale_N11 > 1).any())
        self.any_learned = bool(s.learns_smoothing_N1.any())
        self.any_smoothing = self.any_learned or bool((s.fixed_smoothing_N1 > 0).any())
        self.any_label_smoothing = bool((s.label_smoothing_N11 > 0).any())
        self.any_class_weights = bool((s.class_weights_NC != 1).any())
        self.any_clip = bool(s.clip_N.isfinite().any())
        self.any_decay = bool((s.decay_N1 > 0).any())

    @property
    def _num_linear_weights(self) -> int:
        return self.num_classes * self.num_features

    def keep(self, places: Sequence[int]) -> None:
        """Go on with the heads at these places only."""
        index = torch.tensor(places, dtype=torch.int64, device=self.weights_NP.device)
        self.weights_NP = self.weights_NP[index]
        self.first_NP, self.second_NP = self.first_NP[index], self.second_NP[index]
        kept = {field.name: getattr(self.settings, field.name) for field in fields(_Settings)}
        self.settings = _Settings(**{name: values[index] for name, values in kept.items()})
        self._look()

    def load_into(self, head: LinearHead, weights_P: Tensor) -> None:
        """Give `head` the weights of a row."""
        sizes = [self._num_linear_weights, self.num_classes, 1]
        weight, bias, smoothing = torch.split(weights_P, sizes)
        with torch.no_grad():
            head.linear.weight.copy_(weight.view_as(head.linear.weight))
            head.linear.bias.copy_(bias)
            if head.smoothing is not None:
                head.smoothing.copy_(smoothing[0])

    def dropped(self, features_NBF: Tensor, bits_NBF: Tensor) -> Tensor:
        """The features after dropout; `bits_NBF` are those that each head would draw alone."""
        mask_NBF = bits_NBF.float().ge_(self.settings.dropout_level_N11)
        return mask_NBF.mul_(self.settings.dropout_scale_N11).mul_(features_NBF)

    def losses_and_gradients(
        self, features_NBF: Tensor, cut_share_NB: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Each head's mean loss [N] over rows of its own, and the gradient [N, P] of it.

        `labels` are [N, B], or [N, B, C] for several labels. The gradient is written out, because
        autograd takes three times as long to find the few products that it is.
        """
        hot_NBC = torch.baddbmm(self.bias_N1C, features_NBF, self.weight_NCF.transpose(1, 2))
        heat_NB1 = self._temperatures(cut_share_NB)
        logits_NBC = hot_NBC / heat_NB1
        loss_N, slope_NBC = self._loss_and_slope(logits_NBC, labels)
        slope_NBC = slope_NBC / heat_NB1
        weight_NCF = torch.bmm(slope_NBC.transpose(1, 2), features_NBF)
        smoothing_N1 = torch.zeros_like(loss_N)[:, None]
        if self.any_learned:
            # The slope by a temperature is -(slope by the hot logit) * (the cooled logit).
            by_heat_NB = -(slope_NBC * logits_NBC).sum(dim=2) * cut_share_NB
            by_amount_N1 = by_heat_NB.sum(dim=1, keepdim=True) * self.settings.temperature_N1
            by_smoothing_N1 = by_amount_N1 * self.smoothing_N1.sigmoid()
            smoothing_N1 = by_smoothing_N1 * self.settings.learns_smoothing_N1
        return loss_N, torch.cat([weight_NCF.flatten(1), slope_NBC.sum(dim=1), smoothing_N1], dim=1)

    def logits_of_same_rows(self, features_BF: Tensor, cut_share_B: Tensor) -> Tensor:
        """Logits [N, B, C] of the same rows for all heads, by one product."""
        logits_BM = features_BF @ self.weight_NCF.reshape(-1, self.num_features).T
        logits_BNC = logits_BM.view(len(features_BF), -1, self.num_classes)
        return (logits_BNC.transpose(0, 1) + self.bias_N1C) / self._temperatures(cut_share_B)

    def _temperatures(self, cut_share: Tensor) -> Tensor:
        """Each head's temperature [N, B or 1, 1] for the share that was cut off a text."""
        s = self.settings
        if not self.any_smoothing:
            return s.temperature_N1[:, :, None]
        amount_N1 = s.fixed_smoothing_N1
        if self.any_learned:
            learned_N1 = F.softplus(self.smoothing_N1)
            amount_N1 = torch.where(s.learns_smoothing_N1, learned_N1, amount_N1)
        return (s.temperature_N1 * (1 + amount_N1 * cut_share))[:, :, None]

    def _loss_and_slope(self, logits_NBC: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss [N] of each head, and its derivative by the logits.

        With p the probabilities and w the weights that a row gives to its outcomes, the loss of a
        row is -sum(w log p) and its slope p sum(w) - w. Of several labels each is a row of two.
        """
        if self.is_multi_label:
            return self._of_several_labels(logits_NBC, labels)
        s = self.settings
        num_rows, C = logits_NBC.shape[1:]
        own_NB1 = (1 - s.label_smoothing_N11).expand(-1, num_rows, 1)
        divisor_N11: Tensor | float = float(num_rows)
        if self.any_class_weights:
            weights_NB1 = s.class_weights_NC.gather(1, labels)[:, :, None]
            own_NB1 = own_NB1 * weights_NB1
            # A head without weights has ones. Rows of weight 0 only: their loss is 0 too.
            divisor_N11 = weights_NB1.sum(dim=1, keepdim=True)
            divisor_N11 = torch.where(divisor_N11 > 0, divisor_N11, 1.0)
        at_NB1 = labels[:, :, None]
        log_p_NBC = logits_NBC.log_softmax(dim=2)
        # Not the sum over all outcomes: a weight of 0 times an infinity is NaN.
        loss_NB1 = log_p_NBC.gather(2, at_NB1) * own_NB1
        if self.any_label_smoothing:
            spread_N1C = s.class_weights_NC[:, None] * (s.label_smoothing_N11 / C)
            loss_NB1 = loss_NB1 + (log_p_NBC * spread_N1C).sum(dim=2, keepdim=True)
            weights_NBC = spread_N1C.repeat(1, num_rows, 1)
            total_NB1 = own_NB1 + spread_N1C.sum(dim=2, keepdim=True)
        else:
            weights_NBC, total_NB1 = torch.zeros_like(logits_NBC), own_NB1
        weights_NBC.scatter_add_(2, at_NB1, own_NB1)
        slope_NBC = log_p_NBC.exp_().mul_(total_NB1).sub_(weights_NBC)
        return (loss_NB1 / -divisor_N11).sum(dim=(1, 2)), slope_NBC.div_(divisor_N11)

    def _of_several_labels(self, logits_NBC: Tensor, labels_NBC: Tensor) -> tuple[Tensor, Tensor]:
        s = self.settings
        targets_NBC = labels_NBC
        if self.any_label_smoothing:
            targets_NBC = labels_NBC * (1 - s.label_smoothing_N11) + s.label_smoothing_N11 / 2
        weights_N1C = s.class_weights_NC[:, None]
        loss_NBC = F.binary_cross_entropy_with_logits(
            logits_NBC, targets_NBC, pos_weight=weights_N1C, reduction="none"
        )
        present_NBC = targets_NBC * weights_N1C
        slope_NBC = logits_NBC.sigmoid() * (present_NBC + 1 - targets_NBC) - present_NBC
        num_outcomes = logits_NBC.shape[1] * logits_NBC.shape[2]
        return loss_NBC.sum(dim=(1, 2)) / num_outcomes, slope_NBC / num_outcomes

    def update(self, gradient_NP: Tensor, norm_N: Tensor, lr: Sequence[float]) -> None:
        """Clip, then one AdamW step, with a learning rate for each head."""
        if self.any_clip:
            factor_N = torch.where(norm_N > self.settings.clip_N, self.settings.clip_N / norm_N, 1)
            gradient_NP = gradient_NP * factor_N[:, None]
        self.updates += 1
        lr_N1 = torch.tensor(lr, device=gradient_NP.device)[:, None]
        if self.any_decay:
            decaying_NW = self.weights_NP[:, : self._num_linear_weights]
            decaying_NW.mul_(1 - lr_N1 * self.settings.decay_N1)
        betas_N2 = self.settings.betas_N2
        first_N1, second_N1 = torch.split((1 - betas_N2).float(), 1, dim=1)
        parts_N2 = (1 - betas_N2**self.updates).float()
        first_part_N1, second_part_N1 = torch.split(parts_N2, 1, dim=1)
        self.first_NP.lerp_(gradient_NP, first_N1)
        self.second_NP.lerp_(gradient_NP * gradient_NP, second_N1)
        root_NP = self.second_NP.sqrt().div_(second_part_N1.sqrt()).add_(EPSILON)
        step_NP = self.first_NP * (lr_N1 / first_part_N1)
        self.weights_NP.addcdiv_(step_NP, root_NP, value=-1)


def _flat(head: LinearHead) -> Tensor:
    smoothing = torch.zeros(()) if head.smoothing is None else head.smoothing.detach()
    parts = (head.linear.weight, head.linear.bias, smoothing)
    return torch.cat([part.detach().reshape(-1) for part in parts])
