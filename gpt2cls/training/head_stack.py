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
from gpt2cls.training.optim import BETAS, EPSILON


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
    decay_NP: Tensor
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

        decay_NP = torch.zeros_like(self.weights_NP)
        decay_NP[:, : C * self.num_features] = column([c.weight_decay for c in configs], 1)
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
            decay_NP=decay_NP,
            clip_N=column([math.inf if c.clip is None else c.clip for c in configs]),
        )

    def _look(self) -> None:
        """Views of the weights for autograd, and what can be left out when no head wants it."""
        N, C, num_weights = len(self.weights_NP), self.num_classes, self._num_linear_weights
        parts = (
            self.weights_NP[:, :num_weights].view(N, C, self.num_features),
            self.weights_NP[:, num_weights : num_weights + C].view(N, 1, C),
            self.weights_NP[:, -1:],
        )
        self.weight_NCF, self.bias_N1C, self.smoothing_N1 = (
            part.detach().requires_grad_() for part in parts
        )
        s = self.settings
        self.any_dropout = bool((s.dropout_scale_N11 > 1).any())
        self.any_learned = bool(s.learns_smoothing_N1.any())
        self.any_smoothing = self.any_learned or bool((s.fixed_smoothing_N1 > 0).any())
        self.any_label_smoothing = bool((s.label_smoothing_N11 > 0).any())
        self.any_class_weights = bool((s.class_weights_NC != 1).any())
        self.any_clip = bool(s.clip_N.isfinite().any())

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

    def logits(self, features_NBF: Tensor, cut_share_NB: Tensor) -> Tensor:
        """Logits [N, B, C] of rows that each head has of its own."""
        logits_NBC = torch.baddbmm(self.bias_N1C, features_NBF, self.weight_NCF.transpose(1, 2))
        return self._cooled(logits_NBC, cut_share_NB)

    @torch.no_grad()
    def logits_of_same_rows(self, features_BF: Tensor, cut_share_B: Tensor) -> Tensor:
        """Logits [N, B, C] of the same rows for all heads, by one product."""
        logits_BM = features_BF @ self.weight_NCF.reshape(-1, self.num_features).T
        logits_BNC = logits_BM.view(len(features_BF), -1, self.num_classes)
        return self._cooled(logits_BNC.transpose(0, 1) + self.bias_N1C, cut_share_B)

    def _cooled(self, logits_NBC: Tensor, cut_share: Tensor) -> Tensor:
        """Divided by each head's temperature for the share that was cut off a text."""
        s = self.settings
        if not self.any_smoothing:
            return logits_NBC / s.temperature_N1[:, :, None]
        amount_N1 = s.fixed_smoothing_N1
        if self.any_learned:
            learned_N1 = F.softplus(self.smoothing_N1)
            amount_N1 = torch.where(s.learns_smoothing_N1, learned_N1, amount_N1)
        temperatures_NB = s.temperature_N1 * (1 + amount_N1 * cut_share)
        return logits_NBC / temperatures_NB[:, :, None]

    def mean_losses(self, logits_NBC: Tensor, labels: Tensor) -> Tensor:
        """The mean loss [N] of each head; `labels` are [N, B], or [N, B, C] for several labels."""
        s = self.settings
        num_rows, C = logits_NBC.shape[1:]
        if self.is_multi_label:
            targets_NBC = labels
            if self.any_label_smoothing:
                targets_NBC = labels * (1 - s.label_smoothing_N11) + s.label_smoothing_N11 / 2
            weights_N1C = s.class_weights_NC[:, None] if self.any_class_weights else None
            loss_NBC = F.binary_cross_entropy_with_logits(
                logits_NBC, targets_NBC, pos_weight=weights_N1C, reduction="none"
            )
            return loss_NBC.sum(dim=(1, 2)) / C / num_rows
        log_p_NBC = logits_NBC.log_softmax(dim=2)
        loss_NB = -log_p_NBC.gather(2, labels[:, :, None])[:, :, 0]
        divisor_N: Tensor | float = float(num_rows)
        if self.any_class_weights:
            weights_NB = s.class_weights_NC.gather(1, labels)
            loss_NB = loss_NB * weights_NB
            # A head without weights has ones. Rows of weight 0 only: their loss is 0 too.
            divisor_N = weights_NB.sum(dim=1)
            divisor_N = torch.where(divisor_N > 0, divisor_N, 1.0)
        if self.any_label_smoothing:
            spread_NB = -(log_p_NBC * s.class_weights_NC[:, None]).mean(dim=2)
            share_N1 = s.label_smoothing_N11[:, :, 0]
            loss_NB = loss_NB * (1 - share_N1) + spread_NB * share_N1
        return loss_NB.sum(dim=1) / divisor_N

    def gradients(self, loss_N: Tensor) -> Tensor:
        """Each head's gradient [N, P] of its own loss."""
        leaves = [self.weight_NCF, self.bias_N1C]
        if self.any_learned:
            leaves.append(self.smoothing_N1)
        parts = list(torch.autograd.grad(loss_N.sum(), leaves))
        if not self.any_learned:
            parts.append(torch.zeros_like(self.smoothing_N1))
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    @torch.no_grad()
    def update(self, gradient_NP: Tensor, norm_N: Tensor, lr: Sequence[float]) -> None:
        """Clip, then one AdamW step, with a learning rate for each head."""
        if self.any_clip:
            factor_N = torch.where(norm_N > self.settings.clip_N, self.settings.clip_N / norm_N, 1)
            gradient_NP = gradient_NP * factor_N[:, None]
        self.updates += 1
        lr_N1 = torch.tensor(lr, device=gradient_NP.device)[:, None]
        self.weights_NP.mul_(1 - lr_N1 * self.settings.decay_NP)
        self.first_NP.lerp_(gradient_NP, 1 - BETAS[0])
        self.second_NP.mul_(BETAS[1]).addcmul_(gradient_NP, gradient_NP, value=1 - BETAS[1])
        root_NP = self.second_NP.sqrt()
        root_NP.div_(math.sqrt(1 - BETAS[1] ** self.updates)).add_(EPSILON)
        change_NP = torch.div(self.first_NP, root_NP, out=root_NP)
        change_NP.mul_(lr_N1 / (1 - BETAS[0] ** self.updates))
        self.weights_NP.sub_(change_NP)


def _flat(head: LinearHead) -> Tensor:
    smoothing = torch.zeros(()) if head.smoothing is None else head.smoothing.detach()
    parts = (head.linear.weight, head.linear.bias, smoothing)
    return torch.cat([part.detach().reshape(-1) for part in parts])
