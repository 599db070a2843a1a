"""An embedding table that holds, while it learns, only the rows that the data use.

A row whose token never occurs has no gradient: all that AdamW does to it is weight decay, which
is known in closed form. So gradients, moments and what ranks exchange shrink to the rows in use,
and the whole table is put together again at the end.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

WORTH_IT_BELOW = 0.9
"""The share of rows in use above which the whole table learns."""
_CHUNK = 1 << 22


class UsedRows(nn.Module):
    """The rows of `table` that are in use, as the only ones that learn."""

    decay: Tensor

    def __init__(self, table: Tensor, used: Tensor) -> None:
        super().__init__()
        self.table = table.detach()
        self.used = used
        # A token that is not in use is one beyond the last row: looked up, it is an error.
        self.place = torch.full((len(table),), len(used), device=table.device)
        self.place[used] = torch.arange(len(used), device=table.device)
        self.weight = nn.Parameter(self.table[used])
        self.register_buffer("decay", torch.ones((), dtype=torch.float64, device=table.device))

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(self.place[tokens], self.weight)

    def whole(self) -> nn.Embedding:
        """The embedding of all rows, as training on all of them would have left it."""
        table = self.table * self.decay.to(self.table.dtype)
        table[self.used] = self.weight.detach()
        return nn.Embedding(len(table), table.shape[1], _weight=table)


def num_parameters(module: nn.Module) -> int:
    """Of the module as it is kept and saved: with the rows that do not take part."""
    aside = sum(
        (len(part.table) - len(part.weight)) * part.table.shape[1]
        for part in module.modules()
        if isinstance(part, UsedRows)
    )
    return sum(parameter.numel() for parameter in module.parameters()) + aside


def used_tokens(splits: Iterable[NDArray[Any]], vocab_size: int, pad_id: int) -> NDArray[np.int64]:
    """The tokens that occur, in order; `splits` may be mapped from files of any size."""
    occurs = np.zeros(vocab_size, bool)
    occurs[pad_id] = True
    for tokens in splits:
        for start in range(0, len(tokens), _CHUNK):
            occurs[tokens[start : start + _CHUNK]] = True
    return np.flatnonzero(occurs)


def keep_used_rows(backbone: nn.Module, used: NDArray[np.int64]) -> None:
    """Let only the rows `used` of the backbone's `wte` take part, where that saves much."""
    table: Tensor = backbone.wte.weight  # type: ignore[union-attr, assignment]
    if len(used) < WORTH_IT_BELOW * len(table):
        backbone.wte = UsedRows(table, torch.from_numpy(used).to(table.device))


def restore_all_rows(model: nn.Module) -> None:
    """Undo `keep_used_rows` in every part of `model`."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, UsedRows):
                setattr(parent, name, child.whole().to(child.weight.device))


def decay_unused_rows(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """After each step of `optimizer`, note what weight decay does to the rows not in use."""
    rows = [module for module in model.modules() if isinstance(module, UsedRows)]
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}

    def note(*_: Any) -> None:
        for module in rows:
            group = groups.get(id(module.weight))
            if group is not None and module.weight.grad is not None:
                module.decay *= 1 - group["lr"] * group["weight_decay"]

    if rows:
        optimizer.register_step_post_hook(note)
