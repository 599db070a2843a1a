"""Which weights learn, and when; layers in groups from the bottom to the top.

Knows the parts of a classifier: `backbone.blocks` (lists of modules from the embeddings up),
`pooling` and `head`. A language model has the first alone.
"""

from typing import Any, Literal

import numpy as np
from torch import nn

Depth = int | Literal["final", "pooled"]
"""A place in the network: what enters this block (0 is the lowest), what leaves the backbone, or
the pooled vector."""

BACKBONE_GROUPS = 3
"""With pooling and head as the fourth group. One group per layer would let the lowest of 12 blocks
learn 2.6 ** 12 = 95,000 times slower than the head."""


def layer_groups(model: nn.Module) -> list[list[nn.Module]]:
    """Four groups of modules (fewer for a shallow model), the embeddings in the first."""
    below, *layers = blocks_of(model)
    cuts = np.array_split(np.arange(len(layers)), BACKBONE_GROUPS)
    groups = [[m for i in cut for m in layers[i]] for cut in cuts if len(cut)] or [[]]
    groups[0] = [*below, *groups[0]]
    return [*groups, top] if (top := _top(model)) else groups


def _top(model: nn.Module) -> list[nn.Module]:
    """Pooling and head, where there are any."""
    return [getattr(model, name) for name in ("pooling", "head") if hasattr(model, name)]


def blocks_of(model: nn.Module) -> list[list[nn.Module]]:
    blocks: Any = model.backbone.blocks  # type: ignore[union-attr]
    return [list(block) for block in blocks]


def trainable_names(model: nn.Module, freeze: str, epoch: int) -> set[str]:
    """Names of the parameters that learn in `epoch` (0 is the first)."""
    modules = _trainable_modules(model, freeze, epoch)
    chosen = {id(parameter) for module in modules for parameter in module.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in chosen}


def _trainable_modules(model: nn.Module, freeze: str, epoch: int) -> list[nn.Module]:
    if freeze == "none":
        return [model]
    pooling: Any = model.pooling
    head: Any = model.head
    if freeze == "last_layer":
        return [head]
    if freeze == "head_only":
        return [pooling, head]
    if freeze == "gradual":
        # Howard and Ruder 2018, section 3.3: the last group first, one more each epoch.
        groups = layer_groups(model)
        if epoch + 1 >= len(groups):
            return [model]
        return [module for group in groups[-(epoch + 1) :] for module in group]
    if freeze == "chain_thaw":
        # Felbo et al. 2017, section 3.3: the new layers, then each group from the bottom, then all.
        *groups, top_group = layer_groups(model)
        in_turn = [top_group, *groups]
        return in_turn[epoch] if epoch < len(in_turn) else [model]
    num_top = int(freeze.removeprefix("top:"))
    top = blocks_of(model)[1:][-num_top:]
    return [*(module for block in top for module in block), pooling, head]


def ever_trainable(model: nn.Module, freeze: str, num_epochs: int) -> set[str]:
    """Names of the parameters that learn at some time: all that a checkpoint must hold."""
    if freeze == "chain_thaw":  # the one scheme that freezes again
        return set().union(*(trainable_names(model, freeze, epoch) for epoch in range(num_epochs)))
    return trainable_names(model, freeze, num_epochs - 1)


def frozen_depth(model: nn.Module, names: set[str]) -> Depth | None:
    """How far up nothing changes while `names` learn, so that it can be computed once.

    None: no further than the embeddings, which are looked up faster than anything kept is read.
    """
    if not any(name.startswith(("backbone.", "pooling.")) for name in names):
        return "pooled"
    learning = {id(p) for name, p in model.named_parameters() if name in names}
    for place, block in enumerate(blocks_of(model)):
        if any(id(p) in learning for module in block for p in module.parameters()):
            return place - 1 if place > 1 else None
    return "final" if len(blocks_of(model)) > 1 else None


def apply_freeze(model: nn.Module, names: set[str]) -> None:
    """Let exactly these parameters learn; the others get no gradient from here on."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
        if name not in names:
            parameter.grad = None


def set_training_mode(model: nn.Module) -> None:
    """Training mode, except for what is frozen: dropout there would only add noise.

    Dropout between frozen layers belongs to them, also where it has no parameters of its own.
    """
    model.train()
    for part in _top(model):
        part.train(_learns(part) or not any(True for _ in part.parameters()))
    backbone: Any = model.backbone
    if all(parameter.requires_grad for parameter in backbone.parameters()):
        return
    backbone.eval()
    for block in blocks_of(model):
        for module in block:
            module.train(_learns(module))


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
