"""From a pooled vector to logits and probabilities.

Letters in tensor names: B rows, F features of the pooled vector, C classes.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from gpt2cls.config import ModelConfig
from gpt2cls.data.tasks import Task
from gpt2cls.errors import ModelError
from gpt2cls.model.adaptive import AdaptiveSoftmax, cutoffs_of, places_by_frequency
from gpt2cls.model.head_rules import check_head, has_clusters
from gpt2cls.model.hidden_layer import HeadDropout, HiddenLayer, hidden_layer


class Head(nn.Module):
    """What all heads have: dropout, a temperature that rises with the share cut off, a floor."""

    def __init__(self, config: ModelConfig, task: Task) -> None:
        super().__init__()
        self.is_multi_label = task.kind == "multi_label"
        self.temperature = config.temperature
        self.prob_floor = _checked_floor(config.prob_floor, self._num_outcomes(len(task.labels)))
        self.dropout = HeadDropout(config.dropout)
        self.fixed_smoothing = 0.0
        self.smoothing: nn.Parameter | None = None
        if config.truncation_smoothing == "learned":
            self.smoothing = nn.Parameter(torch.zeros(()))  # through softplus: begins at 0.69
        else:
            self.fixed_smoothing = config.truncation_smoothing

    def _num_outcomes(self, num_labels: int) -> int:
        return 2 if self.is_multi_label else num_labels

    def _temperatures(self, cut_share_B: Tensor) -> Tensor:
        amount = self.fixed_smoothing if self.smoothing is None else F.softplus(self.smoothing)
        return self.temperature * (1 + amount * cut_share_B)

    def probabilities(self, logits_BC: Tensor) -> Tensor:
        """Softmax over the classes, or a sigmoid per label; none below `prob_floor`."""
        logits_BC = logits_BC.float()
        p_BC = logits_BC.sigmoid() if self.is_multi_label else logits_BC.softmax(dim=1)
        if self.prob_floor == 0:
            return p_BC
        outcomes = self._num_outcomes(logits_BC.shape[1])
        return p_BC * (1 - outcomes * self.prob_floor) + self.prob_floor


class PerLabel(nn.Module):
    """Each label's logit from a vector of its own: [B, C * D] to [B, C]."""

    def __init__(self, num_labels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_labels, width))
        self.bias = nn.Parameter(torch.empty(num_labels))

    def forward(self, features_BF: Tensor) -> Tensor:
        vectors_BCD = features_BF.view(len(features_BF), *self.weight.shape)
        return (vectors_BCD * self.weight).sum(dim=2) + self.bias


class LinearHead(Head):
    """One linear layer, after the hidden one if there is one, and one softmax or sigmoids."""

    def __init__(
        self,
        config: ModelConfig,
        task: Task,
        linear: nn.Linear | PerLabel,
        hidden: HiddenLayer | nn.Identity | None = None,
    ) -> None:
        super().__init__(config, task)
        self.hidden = hidden or nn.Identity()
        self.linear = linear
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features_BF: Tensor, cut_share_B: Tensor) -> Tensor:
        """Logits [B, C] in float32, whatever autocast says: small probabilities need it."""
        with torch.autocast(features_BF.device.type, enabled=False):
            logits_BC = self.linear(self.dropout(self.hidden(features_BF.float())))
            return logits_BC / self._temperatures(cut_share_B.float())[:, None]  # type: ignore[no-any-return]


class AdaptiveHead(Head):
    """Labels clustered by how often the training split has them.

    The temperature divides the logits of the root and of each cluster, before their softmax.
    """

    place_C: Tensor

    def __init__(
        self, config: ModelConfig, task: Task, num_features: int, counts_C: NDArray[Any] | None
    ) -> None:
        super().__init__(config, task)
        num_labels = len(task.labels)
        self.softmax = AdaptiveSoftmax(num_features, cutoffs_of(num_labels))
        self.softmax.weigh_clusters(config.temperature)
        # Without counts a file will say it.
        counts_C = np.zeros(num_labels, np.int64) if counts_C is None else counts_C
        # A label keeps its number outside; this is its place within, the most frequent at 0.
        self.register_buffer("place_C", torch.from_numpy(places_by_frequency(counts_C)))

    def forward(self, features_BF: Tensor, cut_share_B: Tensor) -> Tensor:
        """Log-probabilities [B, C]: logits whose softmax leaves them as they are."""
        with torch.autocast(features_BF.device.type, enabled=False):
            return self.softmax.log_probabilities(*self._inputs(features_BF, cut_share_B))[
                :, self.place_C
            ]

    def log_probability(self, features_BF: Tensor, cut_share_B: Tensor, labels_B: Tensor) -> Tensor:
        """Of each row's own label, [B]; computes only the clusters that hold one."""
        with torch.autocast(features_BF.device.type, enabled=False):
            inputs = self._inputs(features_BF, cut_share_B)
            return self.softmax.log_probability(*inputs, self.place_C[labels_B])

    def has_sound_places(self) -> bool:
        """Whether every label has a place of its own; a damaged file may say otherwise."""
        wanted_C = torch.arange(len(self.place_C), device=self.place_C.device)
        return bool((self.place_C.sort().values == wanted_C).all())

    def _inputs(self, features_BF: Tensor, cut_share_B: Tensor) -> tuple[Tensor, Tensor]:
        heat_B1 = self._temperatures(cut_share_B.float())[:, None]
        return self.dropout(features_BF.float()), heat_B1


def _checked_floor(floor: float, outcomes: int) -> float:
    if outcomes * floor >= 1:
        raise ModelError(
            f"model.prob_floor = {floor}: {outcomes} outcomes cannot all have this probability; "
            f"set it below {1 / outcomes:g}"
        )
    return floor


def build_head(
    config: ModelConfig, task: Task, num_features: int, counts_C: NDArray[Any] | None = None
) -> Head:
    """The head that `config` names, for these labels.

    Args:
        config: names it.
        task: has the labels.
        num_features: of the pooled vector.
        counts_C: rows of each label in the training split; None: a file will say what they were.

    Raises:
        ModelError: the labels or other settings do not allow this head.
    """
    num_labels = len(task.labels)
    check_head(config, task)
    if has_clusters(config, task):
        return AdaptiveHead(config, task, num_features, counts_C)
    if config.head == "encdec":
        return LinearHead(config, task, PerLabel(num_labels, num_features // num_labels))
    hidden, width = hidden_layer(config, num_features)
    return LinearHead(config, task, nn.Linear(width, num_labels), hidden)
