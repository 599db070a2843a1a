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
    at 1 / layer_decay of the rate of the group above it.
    """
    groups = layer_groups(model)
    group_of = {
        id(parameter): i
        for i, modules in enumerate(groups)
        for module in modules
        for parameter in module.parameters()
    }
    parted: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if name in names:
            # What no group claims (a learned scale between two parts) learns with the top.
            key = (group_of.get(id(parameter), len(groups) - 1), parameter.ndim >= 2)
            parted.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decays else 0.0,
            "lr_share": config.layer_decay ** (i - (len(groups) - 1)),
        }
        for (i, decays), parameters in sorted(parted.items(), key=lambda item: item[0])
    ]


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_share"]
