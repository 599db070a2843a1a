"""All that a checkpoint must hold for a resumed run to equal an unbroken one."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gpt2cls.errors import CheckpointError
from gpt2cls.training.precision import LossScale

LOWER_IS_BETTER = frozenset({"loss", "log_loss", "ece", "mse"})


@dataclass(frozen=True)
class Best:
    """The evaluation with the best value of the selecting metric so far."""

    step: int
    value: float
    log_loss: float
    metrics: dict[str, float]


@dataclass
class TrainState:
    """The weights and where the run stands. Random states are a function of `step`."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss_scale: LossScale | None = None
    """Only for fp16."""
    step: int = 0
    """Optimizer steps made, skipped ones included: the position in the data."""
    evaluated_step: int = 0
    saved_step: int = 0
    skipped_steps: int = 0
    best: Best | None = None
    evaluations_without_gain: int = 0


def is_better(metric: str, value: float, log_loss: float, best: Best | None) -> bool:
    """Whether an evaluation beats the best one; of equal values the lower log loss wins.

    NaN never wins.
    """
    if math.isnan(value):
        return False
    if best is None:
        return True
    gain = best.value - value if metric in LOWER_IS_BETTER else value - best.value
    return gain > 0 or (gain == 0 and log_loss < best.log_loss)


class Evaluated(Protocol):
    """What has a best evaluation: the state of one run, or a head among many."""

    step: int
    evaluated_step: int
    best: Best | None
    evaluations_without_gain: int


def note_evaluation(state: Evaluated, metric: str, metrics: dict[str, float]) -> bool:
    """Remember an evaluation of the present step; True if it is the best so far."""
    state.evaluated_step = state.step
    value, log_loss = metrics.get(metric, math.nan), metrics.get("log_loss", math.nan)
    if not is_better(metric, value, log_loss, state.best):
        state.evaluations_without_gain += 1
        return False
    state.best = Best(state.step, value, log_loss, metrics)
    state.evaluations_without_gain = 0
    return True


def model_tensors(model: nn.Module, names: set[str] | None = None) -> dict[str, Tensor]:
    """The parameters in `names` (None: all) and every buffer, by name."""
    tensors = {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if names is None or name in names
    }
    return tensors | dict(model.named_buffers())


def load_model_tensors(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy tensors into the parameters and buffers of these names; others stay."""
    own = model_tensors(model)
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            raise CheckpointError(
                f"the checkpoint holds {name!r} of shape {tuple(tensor.shape)}, which does not fit "
                "this model; it was written for another one"
            )
        own[name].copy_(tensor)


def optimizer_tensors(state: TrainState) -> dict[str, Tensor]:
    """The optimizer's moments as `<parameter>:<moment>`; none for weights that never learned."""
    moments = state.optimizer.state
    return {
        f"{name}:{key}": tensor
        for name, parameter in state.model.named_parameters()
        for key, tensor in moments.get(parameter, {}).items()
    }


def load_optimizer_tensors(state: TrainState, tensors: dict[str, Tensor]) -> None:
    parameters = dict(state.model.named_parameters())
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition(":")
        parameter = parameters[name]
        state.optimizer.state[parameter][key] = tensor.to(parameter.device, copy=True)


_PLAIN = ("step", "evaluated_step", "skipped_steps", "evaluations_without_gain")


def position(state: TrainState) -> dict[str, Any]:
    """The plain values of the state, as JSON."""
    return {
        **{key: getattr(state, key) for key in _PLAIN},
        "best": asdict(state.best) if state.best else None,
        "loss_scale": asdict(state.loss_scale) if state.loss_scale else None,
    }


def set_position(state: TrainState, values: dict[str, Any]) -> None:
    for key in _PLAIN:
        setattr(state, key, values[key])
    state.saved_step = state.step
    state.best = Best(**values["best"]) if values["best"] else None
    if values["loss_scale"] and state.loss_scale:
        state.loss_scale = LossScale(**values["loss_scale"])
