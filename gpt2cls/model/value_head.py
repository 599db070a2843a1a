"""From a pooled vector to a value: the head of regression.

Letters in tensor names: B rows, F features of the pooled vector.
"""

import torch
from torch import Tensor, nn

from gpt2cls.config import ModelConfig
from gpt2cls.data.tasks import Task
from gpt2cls.model.hidden_layer import HeadDropout, hidden_layer


class ValueHead(nn.Module):
    """One linear layer, after the hidden one if there is one.

    It gives standard deviations from the mean of the training labels.
    """

    def __init__(self, config: ModelConfig, task: Task, num_features: int) -> None:
        super().__init__()
        self.mean, self.std = task.mean, task.std
        self.dropout = HeadDropout(config.dropout)
        self.hidden, width = hidden_layer(config, num_features)
        self.linear = nn.Linear(width, 1)
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features_BF: Tensor, cut_share_B: Tensor) -> Tensor:
        """The standardised values [B, 1] in float32, whatever autocast says."""
        del cut_share_B
        with torch.autocast(features_BF.device.type, enabled=False):
            return self.linear(self.dropout(self.hidden(features_BF.float())))  # type: ignore[no-any-return]

    def probabilities(self, logits_B1: Tensor) -> Tensor:
        """The values [B, 1] as labels have them; they stand where classes have probabilities."""
        return logits_B1.float() * self.std + self.mean
