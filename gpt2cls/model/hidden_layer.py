"""What may stand before the last layer of a head: dropout, and a layer with batch norm.

Letters in tensor names: N vectors of a micro-batch, F features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2cls.config import ModelConfig
from gpt2cls.model.kernels import keep_mask

FEWEST_VECTORS = 8
"""Of two vectors batch norm leaves nothing but signs."""
MOMENTUM = 0.1


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
    """Batch norm, also where a micro-batch holds too few vectors to say what is usual.

    Those are normed by what was seen so far, themselves included, as if it were constant.
    """

    running_mean: Tensor
    running_var: Tensor

    def forward(self, x_NF: Tensor) -> Tensor:
        if not self.training:
            return self._by_what_was_seen(x_NF)
        is_enough = len(x_NF) >= FEWEST_VECTORS
        with torch.no_grad():
            mean_F = x_NF.mean(dim=0)
            around_F = mean_F if is_enough else self.running_mean
            variance_F = (x_NF - around_F).square().sum(dim=0) / max(len(x_NF) - is_enough, 1)
            share = MOMENTUM * min(len(x_NF) / FEWEST_VECTORS, 1.0)
            for seen_F, now_F in ((self.running_mean, mean_F), (self.running_var, variance_F)):
                # fp16 may overflow: such a step is skipped, and must leave no trace.
                seen_F.lerp_(torch.where(now_F.isfinite(), now_F, seen_F), share)
        if not is_enough:
            return self._by_what_was_seen(x_NF)
        return F.batch_norm(x_NF, None, None, self.weight, self.bias, training=True, eps=self.eps)

    def _by_what_was_seen(self, x_NF: Tensor) -> Tensor:
        mean_F, variance_F = self.running_mean.clone(), self.running_var.clone()
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
