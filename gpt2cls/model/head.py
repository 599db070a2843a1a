"""From a pooled vector to logits and probabilities.

Letters in tensor names: B rows, F features of the pooled vector, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2cls.config import ModelConfig
from gpt2cls.data.tasks import Task
from gpt2cls.errors import ModelError
from gpt2cls.model.kernels import keep_mask


class HeadDropout(nn.Module):
    """Dropout whose mask is a function of the generator's seed and the shape alone.

    So heads that train together can draw what each would draw by itself.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x_BF: Tensor) -> Tensor:
        return x_BF * keep_mask(x_BF, self.p) if self.training and self.p else x_BF


class LinearHead(nn.Module):
    """Dropout, one linear layer, and a temperature that rises with the share cut off a text."""

    def __init__(self, config: ModelConfig, task: Task, num_features: int) -> None:
        super().__init__()
        self.is_multi_label = task.kind == "multi_label"
        self.temperature = config.temperature
        self.prob_floor = _checked_floor(config.prob_floor, self._num_outcomes(len(task.labels)))
        self.dropout = HeadDropout(config.dropout)
        self.linear = nn.Linear(num_features, len(task.labels))
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)
        self.fixed_smoothing = 0.0
        self.smoothing: nn.Parameter | None = None
        if config.truncation_smoothing == "learned":
            self.smoothing = nn.Parameter(torch.zeros(()))  # through softplus: begins at 0.69
        else:
            self.fixed_smoothing = config.truncation_smoothing

    def _num_outcomes(self, num_labels: int) -> int:
        return 2 if self.is_multi_label else num_labels

    def forward(self, features_BF: Tensor, cut_share_B: Tensor) -> Tensor:
        """Logits [B, C] in float32, whatever autocast says: small probabilities need it."""
        with torch.autocast(features_BF.device.type, enabled=False):
            logits_BC = self.linear(self.dropout(features_BF.float()))
            return logits_BC / self._temperatures(cut_share_B.float())[:, None]  # type: ignore[no-any-return]

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


def _checked_floor(floor: float, outcomes: int) -> float:
    if outcomes * floor >= 1:
        raise ModelError(
            f"model.prob_floor = {floor}: {outcomes} outcomes cannot all have this probability; "
            f"set it below {1 / outcomes:g}"
        )
    return floor


def build_head(config: ModelConfig, task: Task, num_features: int) -> LinearHead:
    if config.head != "linear":
        raise ModelError(
            f"model.head = {config.head!r}: not in this version; set model.head to linear"
        )
    return LinearHead(config, task, num_features)
