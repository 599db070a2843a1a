"""A language model and its texts, as the session of a rank asks for them.

Letters in tensor names: N blocks of the split.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gpt2cls.data.batches import Batch, BatchPlan, shard
from gpt2cls.data.blocks import BlockRows
from gpt2cls.data.token_stream import open_stream
from gpt2cls.model.language import LanguageModel, build_language_model
from gpt2cls.training.compute import Compute
from gpt2cls.training.evaluating import for_each_batch
from gpt2cls.training.freezing import ever_trainable
from gpt2cls.training.loop import StepData
from gpt2cls.training.memory import TokenBudget
from gpt2cls.training.payload import RankPayload
from gpt2cls.training.precision import Name
from gpt2cls.training.ranks import Ranks
from gpt2cls.training.subject import Subject

BLOCKS_AT_ONCE = 256
"""Bounds what a memory shortage makes us compute again."""


def learn_language(
    payload: RankPayload, ranks: Ranks, precision: Name, tell: Callable[[str], None]
) -> Subject:
    """What a pretrain job learns: the next token, or (backward) the one before."""
    del tell  # nothing is decided on the way
    model = new_language_model(payload).to(ranks.device)
    budget = TokenBudget.for_device(
        ranks.device, model.backbone.width, payload.tokens_per_micro_batch, precision
    )
    train = _blocks(payload, payload.train_tokens)
    data = LanguageData(
        model=model,
        train=train,
        validation=_blocks(payload, payload.validation_tokens),
        plan=BatchPlan(train.lengths, payload.train.batch_size, payload.train.seed),
        compute=Compute(ranks, precision, budget),
    )
    return Subject(
        model=model,
        names=ever_trainable(model, payload.train.freeze, payload.train.epochs),
        steps_per_epoch=data.plan.steps_per_epoch,
        select_metric=payload.select_metric,
        compute=data.compute,
        data_of_step=data.data_of_step,
        loss_sum=_loss_sum,
        evaluate=lambda _: data.evaluate(),
    )


def new_language_model(payload: RankPayload) -> LanguageModel:
    return build_language_model(
        payload.model,
        vocab_size=payload.vocab_size,
        num_new=payload.num_new,
        pad_id=payload.pad_id,
        max_length=payload.max_length,
        seed=payload.train.seed,
        base_dir=payload.base_dir,
        objective=payload.objective,
    )


def _blocks(payload: RankPayload, folder: Path) -> BlockRows:
    return BlockRows(open_stream(folder), payload.max_length, payload.pad_id)


def _loss_sum(model: nn.Module, batch: Batch) -> Tensor:
    return model.loss_sum(batch.tokens_BT, batch.lengths_B, batch.labels)  # type: ignore[operator, no-any-return]


@dataclass(frozen=True)
class LanguageData:
    """The blocks of a job, and how well a model predicts those that were held out."""

    model: LanguageModel
    train: BlockRows
    validation: BlockRows
    plan: BatchPlan
    compute: Compute

    def data_of_step(self, step: int, token_budget: int) -> StepData:
        rows, ranks = self.plan.rows_of_step(step), self.compute.ranks
        batches = self.train.batches(shard(rows, ranks.rank, ranks.world), token_budget)
        return StepData(list(batches), float(self.train.lengths[rows].sum()))

    def evaluate(self) -> dict[str, float]:
        """Loss (nats per token), perplexity and bits per byte of the held-out texts."""
        ranks = self.compute.ranks
        losses_N = torch.zeros(
            len(self.validation.lengths), dtype=torch.float64, device=ranks.device
        )

        def keep(rows: NDArray[np.int64], batch: Batch) -> None:
            losses_N[torch.from_numpy(rows).to(ranks.device)] = self.model.losses(
                batch.tokens_BT, batch.lengths_B, batch.labels
            )

        mine = shard(np.arange(len(losses_N)), ranks.rank, ranks.world)
        chunks = (mine[i : i + BLOCKS_AT_ONCE] for i in range(0, len(mine), BLOCKS_AT_ONCE))
        for_each_batch(self.model, self.validation, chunks, keep, self.compute)
        # Every block is zero except on one rank, so the sum over the ranks is exact.
        return language_metrics(
            float(ranks.add_up(losses_N).sum()),
            self.validation.stream.num_targets,
            self.validation.stream.num_bytes,
        )


def language_metrics(loss_sum: float, num_targets: int, num_bytes: int) -> dict[str, float]:
    """What a sum of cross-entropies in nats means.

    Bits per byte does not depend on the tokenizer, so that models with different ones can be
    compared; the ends of texts count among the bits, and have no bytes.

    Source: bits per byte as in Gao et al. 2020, "The Pile", section 3.1.
    """
    loss = loss_sum / num_targets
    perplexity = math.exp(loss) if loss < 700 else math.inf
    bits = loss_sum / math.log(2)
    return {"loss": loss, "perplexity": perplexity, "bits_per_byte": bits / num_bytes}
