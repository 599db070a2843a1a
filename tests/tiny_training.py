"""A real classifier and real batches, so small that a test trains in a blink."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpt2cls.config import ModelConfig, TrainConfig
from gpt2cls.data.batches import BatchPlan, TokenRows, Tokens, shard
from gpt2cls.data.tasks import Task
from gpt2cls.model.classifier import Classifier, build_classifier
from gpt2cls.training.freezing import ever_trainable
from gpt2cls.training.loop import StepData, Work
from gpt2cls.training.memory import TokenBudget
from gpt2cls.training.objectives import Objective, class_weights
from gpt2cls.training.optim import new_optimizer
from gpt2cls.training.precision import LossScale
from gpt2cls.training.ranks import Ranks
from gpt2cls.training.schedule import total_steps
from gpt2cls.training.state import TrainState

VOCABULARY, MAX_LENGTH = 60, 16
needs_bf16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="oneDNN packs nothing in bf16 on this processor",
)
TASK = Task("single_label", ("a", "b", "c"), False)
MULTI_TASK = Task("multi_label", ("a", "b", "c"), False)


def tiny_rows(num_rows: int = 30, *, is_multi_label: bool = False) -> TokenRows:
    """Texts of 1 to 16 tokens; a text of class c is made of its own third of the vocabulary."""
    draw = np.random.default_rng(7)
    labels = np.arange(num_rows) % 3
    lengths = draw.integers(1, MAX_LENGTH + 1, num_rows)
    tokens = np.concatenate(
        [
            draw.integers(20 * c, 20 * c + 20, n).astype(np.uint16)
            for c, n in zip(labels, lengths, strict=True)
        ]
    )
    offsets = np.concatenate([[0], lengths.cumsum()])
    data = Tokens(tokens, offsets, lengths, np.zeros(num_rows, np.float32))
    return TokenRows(data, np.eye(3, dtype=bool)[labels] if is_multi_label else labels, 0, 16)


def tiny_model(task: Task = TASK, **settings: Any) -> Classifier:
    config = ModelConfig(**{"backbone": "gpt2-tiny", "dropout": 0.0, **settings})
    return build_classifier(
        config, task, vocab_size=VOCABULARY, pad_id=0, max_length=16, seed=3, base_dir=Path()
    )


def tiny_config(**settings: Any) -> TrainConfig:
    return TrainConfig(**{"epochs": 2, "batch_size": 8, "lr": 1e-3, "seed": 5, **settings})


def tiny_state(config: TrainConfig, model: Classifier | None = None) -> TrainState:
    model = model or tiny_model()
    names = ever_trainable(model, config.freeze, config.epochs)
    scale = LossScale() if config.precision == "fp16" else None
    return TrainState(model, new_optimizer(model, config, names, torch.device("cpu")), scale)


@dataclass
class Log:
    """What the loop told."""

    events: list[tuple[str, int, dict[str, float]]] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)

    def of(self, kind: str) -> list[int]:
        return [step for k, step, _ in self.events if k == kind]

    def losses(self) -> list[float]:
        return [metrics["train/loss"] for kind, _, metrics in self.events if kind == "step"]


def tiny_work(
    config: TrainConfig,
    log: Log,
    *,
    rows: TokenRows | None = None,
    ranks: Ranks | None = None,
    task: Task = TASK,
    evaluate: Callable[[Any], dict[str, float]] = lambda model: {"loss": 1.0, "accuracy": 0.5},
    save: Callable[[TrainState], None] = lambda state: None,
    should_stop: Callable[[], bool] = lambda: False,
    budget: int = 1 << 20,
) -> Work:
    rows, ranks = rows or tiny_rows(), ranks or Ranks()
    plan = BatchPlan(rows.data.lengths, config.batch_size, config.seed)
    weights = class_weights(config.class_weights, rows.labels, task.labels)
    objective = Objective(task.kind == "multi_label", weights, config.label_smoothing)

    def data_of_step(step: int, tokens: int) -> StepData:
        chosen = plan.rows_of_step(step)
        mine = shard(chosen, ranks.rank, ranks.world)
        return StepData(list(rows.batches(mine, tokens)), objective.normaliser(rows.labels[chosen]))

    def report(kind: str, step: int, metrics: dict[str, float]) -> None:
        log.events.append((kind, step, metrics))

    def remember(state: TrainState) -> None:
        log.saved.append(state.step)
        save(state)

    return Work(
        num_steps=total_steps(config, plan.steps_per_epoch),
        steps_per_epoch=plan.steps_per_epoch,
        select_metric="accuracy",
        precision="fp32" if config.precision == "auto" else config.precision,
        budget=TokenBudget(budget),
        data_of_step=data_of_step,
        loss_sum=objective.loss_sum,
        evaluate=evaluate,
        report=report,
        save=remember,
        should_stop=should_stop,
    )


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    """Bit for bit."""
    theirs = other.state_dict()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name
