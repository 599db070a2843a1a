"""Classification as the loop sees it: the batches of a step, their loss, an evaluation."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gpt2cls.config import TrainConfig
from gpt2cls.data.batches import (
    BatchPlan,
    RowSource,
    SequenceRows,
    TokenRows,
    label_tensor,
    rows_of_tokens,
    shard,
)
from gpt2cls.data.encode import open_tokens
from gpt2cls.data.tasks import Task
from gpt2cls.errors import RequestError
from gpt2cls.metrics import quick_metrics
from gpt2cls.training.compute import Compute
from gpt2cls.training.evaluating import logits_of_rows
from gpt2cls.training.loop import StepData
from gpt2cls.training.objectives import Objective, SquaredError, class_weights
from gpt2cls.training.payload import RankPayload


@dataclass(frozen=True)
class Classification:
    """The rows of a job with what is asked of them."""

    task: Task
    objective: Objective | SquaredError
    plan: BatchPlan
    train: RowSource
    train_labels: NDArray[Any]
    validation: RowSource
    validation_lengths: NDArray[Any]
    validation_labels: NDArray[Any]
    compute: Compute

    def data_of_step(self, step: int, token_budget: int) -> StepData:
        rows, ranks = self.plan.rows_of_step(step), self.compute.ranks
        batches = self.train.batches(shard(rows, ranks.rank, ranks.world), token_budget)
        return StepData(list(batches), self.objective.normaliser(self.train_labels[rows]))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The loss and quick metrics of the validation rows; the same on every rank."""
        logits_NC = logits_of_rows(
            model,
            self.validation,
            self.validation_lengths,
            self.task,
            self.compute,
        )
        return self.measure(logits_NC, model.probabilities)  # type: ignore[arg-type]

    def measure(
        self, logits_NC: torch.Tensor, probabilities: Callable[[torch.Tensor], torch.Tensor]
    ) -> dict[str, float]:
        """The loss and quick metrics of logits of the validation rows."""
        labels = self.validation_labels
        is_right_NC = logits_NC.isfinite()
        if self.task.kind == "multiple_choice":
            is_right_NC |= logits_NC.isneginf()  # an answer that is not there
        if not bool(is_right_NC.all()):
            return {"loss": math.nan}  # never the best
        with torch.no_grad():
            loss = self.objective.loss_of_logits(logits_NC, label_tensor(labels))
            probs_NC = probabilities(logits_NC)
        metrics = {"loss": float(loss) / self.objective.normaliser(labels)}
        return metrics | quick_metrics(probs_NC.numpy(), labels, self.task)


def open_classification(payload: RankPayload, task: Task, compute: Compute) -> Classification:
    """Open the tokens and labels of a payload; little is read yet.

    Raises:
        RequestError: settings that do not fit the data; found before the first step.
    """
    train = _rows(payload, task, payload.train_tokens, payload.train_labels, compute)
    validation = _rows(payload, task, payload.validation_tokens, payload.validation_labels, compute)
    config = payload.train
    check_metric(selecting_metric(payload), validation.labels, task)
    return Classification(
        task=task,
        objective=new_objective(config, train.labels, task),
        plan=BatchPlan(train.lengths, config.batch_size, config.seed),
        train=train,
        train_labels=train.labels,
        validation=validation,
        validation_lengths=validation.lengths,
        validation_labels=validation.labels,
        compute=compute,
    )


def new_objective(
    config: TrainConfig, train_labels: NDArray[Any], task: Task
) -> Objective | SquaredError:
    if task.kind == "regression":
        return SquaredError(task.mean, task.std)
    weights = class_weights(config.class_weights, train_labels, task.labels)
    return Objective(task.kind == "multi_label", weights, config.label_smoothing)


def _rows(
    payload: RankPayload, task: Task, tokens: Path, labels: Path | None, compute: Compute
) -> TokenRows | SequenceRows:
    assert labels is not None, "only a payload without labels has none"
    return rows_of_tokens(
        open_tokens(tokens),
        np.load(labels, allow_pickle=False),
        pad_id=payload.pad_id,
        max_length=payload.max_length,
        pad_to=compute.pad_to,
        num_sequences=task.num_sequences,
    )


def selecting_metric(payload: RankPayload) -> str:
    """The metric that chooses the best weights."""
    early = payload.train.early_stopping
    return early.metric if early else payload.select_metric


def check_metric(name: str, labels: NDArray[Any], task: Task) -> None:
    """Refuse now what would otherwise be found out after the first epoch.

    Raises:
        RequestError: training does not measure `name`.
    """
    uniform_NC = np.full((len(labels), len(task.labels)), 1 / len(task.labels))
    measured = {"loss", *quick_metrics(uniform_NC, labels, task)}
    if name not in measured:
        raise RequestError(
            f"the metric {name!r} is to choose the best weights, but it is not "
            f"measured in training; measured are {', '.join(sorted(measured))}"
        )
