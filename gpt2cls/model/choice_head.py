"""From the pooled vectors of a row's answers to one logit each: the head of multiple choice.

Letters in tensor names: B rows, S sequences of a row (its answers), F features.
"""

import torch
from torch import Tensor, nn

from gpt2cls.config import ModelConfig
from gpt2cls.data.tasks import Task
from gpt2cls.model.head import Head
from gpt2cls.model.hidden_layer import hidden_layer


class ChoiceHead(Head):
    """One linear layer that reads each answer alone; the softmax is across them.

    Source: Radford et al. 2018, section 3.3 (question answering and commonsense reasoning).
    """

    def __init__(self, config: ModelConfig, task: Task, num_features: int) -> None:
        super().__init__(config, task)
        self.hidden, width = hidden_layer(config, num_features)
        self.linear = nn.Linear(width, 1)
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features_BSF: Tensor, cut_share_B: Tensor) -> Tensor:
        """Logits [B, S] in float32; minus infinity for an answer that is not there.

        Such an answer has a vector of zeros, which no text has.
        """
        is_there_BS = (features_BSF != 0).any(dim=2)
        with torch.autocast(features_BSF.device.type, enabled=False):
            of_each_NF = self.dropout(self.hidden(features_BSF[is_there_BS].float()))
            logits_BS = of_each_NF.new_zeros(is_there_BS.shape)
            logits_BS[is_there_BS] = self.linear(of_each_NF).squeeze(1)
            logits_BS = logits_BS / self._temperatures(cut_share_B.float())[:, None]
            return logits_BS.masked_fill(~is_there_BS, -torch.inf)  # type: ignore[no-any-return]
