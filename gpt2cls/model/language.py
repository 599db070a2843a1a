"""A language model: a GPT-2 or an AWD-LSTM whose output is its own token embedding.

Logits of a whole batch never exist at once. With a vocabulary of 50,257 the logits of 8,192 tokens
take 1.6 GB in fp32, and their gradient as much again; here they are made, used for the loss and
its gradient, and dropped, a chunk of tokens at a time.

Letters in tensor names: B rows, T tokens, N tokens of all rows, C tokens of a chunk, D features,
V tokens of the vocabulary.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gpt2cls.config import ModelConfig
from gpt2cls.errors import ModelError
from gpt2cls.model.backbone import OurBackbone, build_backbone

LOGITS_ON_CPU = 2**22
LOGITS_ON_GPU = 2**28
"""Numbers of a chunk's logits, at most."""
FEWEST_TOKENS = 256
"""Of a chunk, however large the vocabulary: each passes once over the table and its gradient."""


class LanguageModel(nn.Module):
    """Tokens to the loss of the next ones.

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; the
        embedding as output layer: Press and Wolf 2017, "Using the Output Embedding to Improve
        Language Models".
    """

    def __init__(self, backbone: OurBackbone) -> None:
        super().__init__()
        self.backbone = backbone

    def loss_sum(self, tokens_BT: Tensor, lengths_B: Tensor, targets_BT: Tensor) -> Tensor:
        """The cross-entropy of all targets, summed; a negative target is none."""
        hidden_BTD = self.backbone(tokens_BT, lengths_B)
        return next_token_loss(hidden_BTD.flatten(0, 1), self._table, targets_BT.flatten())

    def losses(self, tokens_BT: Tensor, lengths_B: Tensor, targets_BT: Tensor) -> Tensor:
        """The same as float64 [B], summed over the targets of each row; without gradients."""
        with torch.no_grad():
            hidden_ND = self.backbone(tokens_BT, lengths_B).flatten(0, 1)
            parts = _losses(hidden_ND, self._table, targets_BT.flatten())
            losses_N = torch.cat([losses_C for *_, losses_C in parts])
        return losses_N.view_as(targets_BT).double().sum(dim=1)

    @property
    def _table(self) -> Tensor:
        return self.backbone.wte.weight


def next_token_loss(
    hidden_ND: Tensor, table_VD: Tensor, targets_N: Tensor, weights_N: Tensor | None = None
) -> Tensor:
    """The summed cross-entropy of `targets_N` under the logits hidden @ table^T, in float32.

    Products are made in the type of the autocast around the call, losses in float32. The
    gradient is made in the same pass, so backward() only scales it.

    Args:
        hidden_ND: what leaves the backbone.
        table_VD: the token embedding.
        targets_N: the right token of each place; where it is negative the loss is 0.
        weights_N: what each place counts; None: all 1.
    """
    return _NextTokenLoss.apply(hidden_ND, table_VD, targets_N, weights_N)  # type: ignore[no-any-return, no-untyped-call]


class _NextTokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        table_VD: Tensor,
        targets_N: Tensor,
        weights_N: Tensor | None,
    ) -> Tensor:
        grad_ND, grad_VD = torch.empty_like(hidden_ND), torch.zeros_like(table_VD)
        table = table_VD.to(_product_type(hidden_ND))
        loss = torch.zeros((), dtype=_loss_type(hidden_ND), device=hidden_ND.device)
        counts_N1 = (targets_N >= 0).to(loss.dtype)[:, None]
        if weights_N is not None:
            counts_N1 *= weights_N[:, None]
        right_N1 = targets_N.clamp(min=0)[:, None]
        late_N1 = counts_N1.clone()
        # The gradient of the logits: their probabilities, less one at the target. The one is left
        # to the smaller tensors below, where it is not rounded; but where the model is sure the
        # two almost cancel, and do so exactly only here.
        for here, probs_CV, losses_C in _losses(hidden_ND, table_VD, targets_N):
            loss += (losses_C * counts_N1[here, 0]).sum()
            is_sure_C1 = probs_CV.gather(1, right_N1[here]) > 0.5
            probs_CV.scatter_add_(1, right_N1[here], -is_sure_C1.to(probs_CV.dtype))
            late_N1[here] *= ~is_sure_C1
            slope_CV = probs_CV.to(table.dtype)
            with torch.autocast(hidden_ND.device.type, enabled=False):
                grad_ND[here] = (slope_CV @ table) * counts_N1[here]
                counted_CD = (hidden_ND[here] * counts_N1[here]).to(table.dtype)
                if table.dtype == grad_VD.dtype:
                    grad_VD.addmm_(slope_CV.t(), counted_CD)
                else:
                    grad_VD += slope_CV.t() @ counted_CD
        right_N = right_N1.squeeze(1)
        grad_ND -= table_VD[right_N] * late_N1
        late_ND = (hidden_ND * late_N1).to(grad_VD.dtype)
        grad_VD.index_add_(0, right_N, late_ND, alpha=-1)
        ctx.grads = grad_ND, grad_VD
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        # In place: the table's is the largest tensor of all. So there is no second backward().
        grad_ND, grad_VD = ctx.grads
        ctx.grads = None
        return grad_ND.mul_(grad), grad_VD.mul_(grad), None, None


def _losses(
    hidden_ND: Tensor, table_VD: Tensor, targets_N: Tensor
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Of each chunk its place, the probabilities [C, V] and the losses [C]."""
    dtype = _product_type(hidden_ND)
    table = table_VD.to(dtype)
    at_once = LOGITS_ON_CPU if hidden_ND.device.type == "cpu" else LOGITS_ON_GPU
    size = max(at_once // len(table_VD), FEWEST_TOKENS)
    for start in range(0, len(hidden_ND), size):
        here = slice(start, start + size)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            logits_CV = hidden_ND[here].to(dtype) @ table.t()
            probs_CV = logits_CV.to(_loss_type(hidden_ND)).softmax(dim=1)
        right_C1 = probs_CV.gather(1, targets_N[here].clamp(min=0)[:, None])
        # What underflows counts as the least there is: 87 nats in fp32.
        losses_C = -right_C1.squeeze(1).clamp(min=torch.finfo(probs_CV.dtype).tiny).log()
        yield here, probs_CV, losses_C * (targets_N[here] >= 0)


def _product_type(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _loss_type(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def build_language_model(
    config: ModelConfig,
    *,
    vocab_size: int,
    pad_id: int,
    max_length: int,
    seed: int,
    base_dir: Path,
    objective: str = "causal",
    num_new: int = 0,
) -> LanguageModel:
    """A language model; of a built-in shape the same seed gives the same weights.

    Raises:
        ModelError: the backbone cannot be had, does not fit, or is none of ours.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = build_backbone(
            config,
            vocab_size=vocab_size,
            pad_id=pad_id,
            max_length=max_length,
            base_dir=base_dir,
            objective=objective,
            num_new=num_new,
        )
    if not isinstance(backbone, OurBackbone):
        raise ModelError(
            f"model.backbone = {config.backbone!r}: only a GPT-2 or an AWD-LSTM is pre-trained in "
            "this version; give a folder of one, or a built-in shape"
        )
    return LanguageModel(backbone)
