"""What may stand before the last layer of a head: dropout, and a layer with batch norm.

Letters in tensor names: N vectors of a micro-batch, F features.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from gpt2cls.config import ModelConfig
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


class BatchNorm(nn.BatchNorm1d):
    """Batch norm over the vectors of a micro-batch; of a single one by the running statistics."""

    def forward(self, x_NF: Tensor) -> Tensor:
        if len(x_NF) > 1:
            return super().forward(x_NF)
        mean_F, variance_F = self.running_mean, self.running_var
        return F.batch_norm(x_NF, mean_F, variance_F, self.weight, self.bias, eps=self.eps)


class HiddenLayer(nn.Module):
    """Batch norm, dropout, a linear layer with ReLU, and batch norm: [N, F] to `width` features.

    Source: Howard and Ruder 2018, "Universal Language Model Fine-tuning for Text Classification",
        section 3.3; Ioffe and Szegedy 2015, "Batch Normalization".
    """

    def __init__(self, num_features: int, width: int, dropout: float) -> None:
        super().__init__()
        self.norm_in = BatchNorm(num_features)
        self.dropout = HeadDropout(dropout)
        self.linear = nn.Linear(num_features, width)
        self.norm_out = BatchNorm(width)
        nn.init.kaiming_normal_(self.linear.weight, nonlinearity="relu")
        nn.init.zeros_(self.linear.bias)

    def forward(self, x_NF: Tensor) -> Tensor:
        return self.norm_out(self.linear(self.dropout(self.norm_in(x_NF))).relu())  # type: ignore[no-any-return]


def hidden_layer(config: ModelConfig, num_features: int) -> tuple[HiddenLayer | nn.Identity, int]:
    """The hidden layer that `config` asks for, or nothing, and how many features leave it."""
    if config.hidden == 0:
        return nn.Identity(), num_features
    return HiddenLayer(num_features, config.hidden, config.dropout), config.hidden
