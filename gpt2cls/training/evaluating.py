"""A trained model over a whole split, spread over the ranks.

Letters in tensor names: N rows of the split, B rows, C classes.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gpt2cls.data.batches import Batch, RowSource, SequenceRows, TokenRows, shard
from gpt2cls.data.blocks import BlockRows
from gpt2cls.data.tasks import Task
from gpt2cls.model.backbone import Backbone
from gpt2cls.model.classifier import Classifier
from gpt2cls.model.packed import AGREES_WITHIN, PackedGPT2, can_pack
from gpt2cls.training.compute import Compute
from gpt2cls.training.memory import halve_until_it_fits
from gpt2cls.training.objectives import logits
from gpt2cls.training.precision import autocast
from gpt2cls.training.ranks import Ranks

CHECKED_ROWS = 4
ROWS_AT_ONCE = 4096
"""Rows sorted by length together: bounds what a memory shortage makes us compute again."""


def logits_of_rows(
    model: nn.Module,
    source: RowSource,
    lengths: NDArray[Any],
    task: Task,
    compute: Compute,
) -> Tensor:
    """Logits [N, C] of every row, in row order, the same bits on every rank (on the CPU).

    They are computed as a prediction is: by a packed network where its answers agree.
    """
    all_NC = torch.zeros(len(lengths), len(task.labels), device=compute.ranks.device)

    def keep(rows: NDArray[np.int64], batch: Batch) -> None:
        all_NC[torch.from_numpy(rows).to(compute.ranks.device)] = logits(model, batch).float()

    if (packed := _packed(model, source, task, compute)) is not None:
        model, compute = packed, replace(compute, precision="fp32")  # it casts by itself
    for_each_batch(model, source, _rows_of_rank(lengths, compute.ranks), keep, compute)
    # Every row is zero except on one rank, so the sum is exact.
    return compute.ranks.add_up(all_NC).cpu()


def _packed(model: nn.Module, source: RowSource, task: Task, compute: Compute) -> Classifier | None:
    """The model with its backbone packed, if it has one that can be and a few rows agree."""
    if (
        compute.precision != "bf16"
        or not isinstance(source, TokenRows | SequenceRows)
        or not isinstance(model, Classifier)
        or not can_pack(model.backbone)
    ):
        return None
    # It is no backbone that could be trained or saved, but it can be asked like one.
    packed = Classifier(cast(Backbone, PackedGPT2(model.backbone)), model.pooling, model.head)
    differences: list[Tensor] = []

    def compare(_: NDArray[np.int64], batch: Batch) -> None:
        exact, fast = (one.probabilities(logits(one, batch)) for one in (model, packed))
        differences.append((exact - fast).abs().max())

    few = np.unique(np.linspace(0, len(source.lengths) - 1, CHECKED_ROWS).astype(np.int64))
    for_each_batch(model, source, [few], compare, replace(compute, precision="fp32"))
    agrees = bool(torch.stack(differences).max() <= AGREES_WITHIN * task.std)
    return packed if agrees else None


def for_each_batch(
    model: nn.Module,
    source: RowSource | BlockRows,
    chunks: Iterable[NDArray[np.int64]],
    take: Callable[[NDArray[np.int64], Batch], None],
    compute: Compute,
) -> None:
    """Give `take` rows of the chunks and their batch, without gradients or dropout.

    A chunk is what is made again when it did not fit into memory.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()

    def attempt(rows: NDArray[np.int64], tokens: int) -> None:
        done = 0
        for batch in source.batches(rows, tokens):
            take(rows[done : done + batch.num_rows], batch.to(compute.ranks.device))
            done += batch.num_rows

    try:
        # no_grad: what inference_mode makes cannot be saved for a later backward pass.
        with torch.no_grad(), autocast(compute.precision, compute.ranks.device):
            for rows in chunks:
                halve_until_it_fits(compute.budget, lambda tokens, rows=rows: attempt(rows, tokens))  # type: ignore[misc]
    finally:
        for module, was_training in modes:
            module.training = was_training


def _rows_of_rank(lengths: NDArray[Any], ranks: Ranks) -> Iterator[NDArray[np.int64]]:
    mine = shard(np.argsort(lengths, kind="stable"), ranks.rank, ranks.world)
    for start in range(0, len(mine), ROWS_AT_ONCE):
        yield mine[start : start + ROWS_AT_ONCE]
