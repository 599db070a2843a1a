"""The optimizer: which weights learn how fast, and which of them decay."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gpt2cls.config import TrainConfig
from gpt2cls.training.freezing import layer_groups

EPSILON = 1e-8


class _AdamW(torch.optim.AdamW):
    """AdamW whose methods do not import torch's compiler.

    torch wraps them so that a compiled step leaves them alone, and the wrapping imports
    torch._dynamo: 1.4 s of a core in every rank, before its first step. Nothing is compiled here.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        _bare(torch.optim.Optimizer.add_param_group)(self, param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        _bare(torch.optim.Optimizer.zero_grad)(self, set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return _bare(torch.optim.Optimizer.state_dict)(self)  # type: ignore[no-any-return]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        _bare(torch.optim.Optimizer.load_state_dict)(self, state_dict)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        return _bare(torch.optim.Adam.step)(self, closure)


def _bare(method: Callable[..., Any]) -> Callable[..., Any]:
    """What the method wraps; the method itself in a version of torch that does not wrap it."""
    return getattr(method, "__wrapped__", method)


def new_optimizer(
    model: nn.Module, config: TrainConfig, names: set[str], device: torch.device
) -> torch.optim.AdamW:
    """AdamW over the named parameters; each group carries `lr_share`, its part of the rate."""
    return _AdamW(
        parameter_groups(model, config, names),
        lr=config.lr,
        betas=config.betas,
        eps=EPSILON,
        fused=device.type in ("cpu", "cuda"),
    )


def parameter_groups(
    model: nn.Module, config: TrainConfig, names: set[str]
) -> list[dict[str, object]]:
    """The named parameters by layer group, each parted into what decays and what does not.

    Norms and biases do not decay: they have one dimension, all other weights more. A group learns
    at 1 / layer_decay of the rate of the group above it. The token embedding may have a rate of its
    own, and decays as it would without: a decay that grew with the rate would wipe out rare words.

    Source: Yang et al. 2022, "Tensor Programs V", table 3 (the rate of an embedding does not shrink
        with the width of the network, as that of its matrices does).
    """
    groups = layer_groups(model)
    group_of = {
        id(parameter): i
        for i, modules in enumerate(groups)
        for module in modules
        for parameter in module.parameters()
    }
    table = None if config.embedding_lr is None else token_table(model)
    parted: dict[tuple[int, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if name in names:
            # What no group claims (a learned scale between two parts) learns with the top.
            group = group_of.get(id(parameter), len(groups) - 1)
            key = (group, parameter.ndim >= 2, parameter is table)
            parted.setdefault(key, []).append(parameter)
    made: list[dict[str, object]] = []
    for (group, decays, is_table), parameters in sorted(parted.items(), key=lambda item: item[0]):
        share = config.layer_decay ** (group - (len(groups) - 1))
        decay = config.weight_decay if decays else 0.0
        if is_table and config.embedding_lr is not None:
            own_share = config.embedding_lr / config.lr
            share, decay = own_share, decay * share / own_share
        made.append({"params": parameters, "weight_decay": decay, "lr_share": share})
    return made


def token_table(model: nn.Module) -> nn.Parameter:
    """The token embedding [V, D] of a classifier or language model of ours."""
    return model.backbone.wte.weight  # type: ignore[union-attr, return-value]


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_share"]
