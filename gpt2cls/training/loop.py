"""The training loop of one rank. Knows PyTorch; knows nothing of Ray, MLflow or files.

Every rank runs the same loop over its share of each batch. What the ranks must agree on (the
loss, an overflow, a request to stop) is added up in the same exchange as the gradients.

Letters in tensor names: B rows, T tokens, C classes.
"""

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gpt2cls.config import TrainConfig
from gpt2cls.data.batches import Batch
from gpt2cls.errors import NonFiniteLoss
from gpt2cls.model.hidden_layer import BatchNorm
from gpt2cls.training.freezing import apply_freeze, set_training_mode, trainable_names
from gpt2cls.training.memory import TokenBudget, halve_until_it_fits
from gpt2cls.training.optim import set_lr
from gpt2cls.training.precision import Name, autocast
from gpt2cls.training.ranks import Ranks
from gpt2cls.training.schedule import lr_at, rhythm_steps
from gpt2cls.training.state import TrainState, note_evaluation


@dataclass(frozen=True)
class StepData:
    """One rank's part of one global batch; no batches when there were fewer rows than ranks."""

    batches: list[Batch]
    normaliser: float
    """What the loss sum of the whole global batch is divided by."""


@dataclass(frozen=True)
class Work:
    """What the loop is given: it asks, and does not know who answers."""

    num_steps: int
    steps_per_epoch: int
    select_metric: str
    """The evaluation metric by which the best weights are chosen."""
    precision: Name
    budget: TokenBudget
    data_of_step: Callable[[int, int], StepData]
    """Of a step (0 is the first) and a token budget."""
    loss_sum: Callable[[nn.Module, Batch], Tensor]
    evaluate: Callable[[nn.Module], dict[str, float]]
    report: Callable[[str, int, dict[str, float]], None]
    """Of the kind of event, the step (1 is the first) and its metrics."""
    save: Callable[[TrainState], None]
    should_stop: Callable[[], bool]


@dataclass(frozen=True)
class StepResult:
    """What all ranks know after a step."""

    loss: float
    num_tokens: int
    was_skipped: bool
    should_stop: bool


def fit(state: TrainState, work: Work, config: TrainConfig, ranks: Ranks) -> str:
    """Train to the end, or until told to stop; why it ended: finished, early_stopped or stopped.

    Raises:
        NonFiniteLoss: on all ranks alike, before the weights are touched.
    """
    save_every = rhythm_steps(config.checkpoint_every, work.steps_per_epoch)
    phase: int | None = None  # the epoch for which the model was made ready
    while True:
        improved = False
        if evaluation_due(state, work, config):
            improved, phase = _evaluate(state, work), None
        ending = _ending(state, work, config)
        if ending or improved or (state.step and state.step % save_every == 0):
            _save_once(state, work)
        if ending:
            return ending
        if phase != (epoch := state.step // work.steps_per_epoch):
            apply_freeze(state.model, trainable_names(state.model, config.freeze, epoch))
            set_training_mode(state.model)
            phase = epoch
        if _step_and_report(state, work, config, ranks).should_stop and state.step < work.num_steps:
            # An evaluation that is due now is made by the run that resumes.
            _save_once(state, work)
            return "stopped"


def evaluation_due(state: TrainState, work: Work, config: TrainConfig) -> bool:
    every = rhythm_steps(config.eval_every, work.steps_per_epoch)
    is_time = state.step % every == 0 or state.step == work.num_steps
    return is_time and state.evaluated_step < state.step


def _evaluate(state: TrainState, work: Work) -> bool:
    metrics = work.evaluate(state.model)
    work.report("eval", state.step, {f"eval/{name}": value for name, value in metrics.items()})
    return note_evaluation(state, work.select_metric, metrics)


def _ending(state: TrainState, work: Work, config: TrainConfig) -> str | None:
    if state.step >= work.num_steps:
        return "finished"
    early = config.early_stopping
    if early is not None and state.evaluations_without_gain >= early.patience:
        return "early_stopped"
    return None


def _save_once(state: TrainState, work: Work) -> None:
    if state.saved_step < state.step:
        work.save(state)
        state.saved_step = state.step


def _step_and_report(
    state: TrainState, work: Work, config: TrainConfig, ranks: Ranks
) -> StepResult:
    started_s = time.perf_counter()
    lr = config.lr * lr_at(state.step + 1, work.num_steps, config)
    set_lr(state.optimizer, lr)
    result = optimizer_step(state, work, config, ranks)
    state.step += 1
    metrics = {
        "train/loss": result.loss,
        "train/lr": lr,
        "train/tokens_per_second": result.num_tokens / (time.perf_counter() - started_s),
    }
    if state.loss_scale is not None:
        metrics["train/skipped_steps"] = state.skipped_steps
    if result.was_skipped:
        work.report("skipped", state.step, {"train/skipped_steps": state.skipped_steps})
    work.report("step", state.step, metrics)
    return result


def optimizer_step(state: TrainState, work: Work, config: TrainConfig, ranks: Ranks) -> StepResult:
    """One update from the global batch of `state.step`, which stays as it is."""
    # Not those of the model: to walk through a frozen backbone takes longer than a head's step.
    groups = state.optimizer.param_groups
    parameters = [p for group in groups for p in group["params"] if p.requires_grad]
    stop = float(work.should_stop())
    loss, num_tokens = halve_until_it_fits(
        work.budget, lambda tokens: _backward(state, work, config.seed, ranks, tokens)
    )
    sums = torch.stack([loss, loss.new_tensor(num_tokens), loss.new_tensor(stop)])
    share_statistics(state.model, ranks)
    gradients = exchange_gradients(parameters, sums, ranks)
    norm = nn.utils.get_total_norm(gradients)
    # The one wait for the device in a step.
    mean_loss, tokens, stops, norm_value = torch.cat([sums, norm.view(1).to(sums)]).tolist()
    overflowed = not (math.isfinite(mean_loss) and math.isfinite(norm_value))
    if overflowed:
        _skip_or_raise(state, work.precision, mean_loss)
    else:
        _scale_gradients(gradients, _factor(state, config, norm_value))
        state.optimizer.step()
        if state.loss_scale is not None:
            state.loss_scale.update(overflowed=False)
    state.optimizer.zero_grad(set_to_none=True)
    return StepResult(mean_loss, int(tokens), overflowed, stops > 0)


def _backward(
    state: TrainState, work: Work, seed: int, ranks: Ranks, token_budget: int
) -> tuple[Tensor, int]:
    """Leave this rank's gradients in the parameters; give its part of the loss, and its tokens."""
    state.optimizer.zero_grad(set_to_none=True)  # of an attempt that did not fit
    seed_draws(seed_of_step(seed, state.step, ranks.rank), ranks.device)
    data = work.data_of_step(state.step, token_budget)
    scale = 1.0 if state.loss_scale is None else state.loss_scale.scale
    loss_sum = torch.zeros((), device=ranks.device)
    for batch in data.batches:
        with autocast(work.precision, ranks.device):
            loss = work.loss_sum(state.model, batch.to(ranks.device)) / data.normaliser
        (loss * scale).backward()  # type: ignore[no-untyped-call]
        loss_sum += loss.detach()
    return loss_sum, sum(batch.num_tokens for batch in data.batches)


def seed_of_step(seed: int, step: int, rank: int) -> int:
    """Seeds that are unlike for neighbouring steps and ranks, and need nothing remembered."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_draws(seed: int, device: torch.device) -> None:
    """Seed torch's global generator of `device` only: `torch.manual_seed` takes 0.3 ms.

    (It notes for every kind of GPU where it was called from, also where there is none.)
    """
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def exchange_gradients(parameters: list[nn.Parameter], sums: Tensor, ranks: Ranks) -> list[Tensor]:
    """Add up gradients and `sums` over the ranks, in one exchange; `sums` in place.

    A parameter without a gradient takes part with zeros: a rank without rows has none at all.
    """
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients: list[Any] = [parameter.grad for parameter in parameters]
    if ranks.world == 1:
        return gradients
    flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), sums])
    ranks.add_up(flat)
    *parts, added = torch.split(flat, [*(p.numel() for p in parameters), len(sums)])
    sums.copy_(added)
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)
    return [part.view_as(parameter) for parameter, part in zip(parameters, parts, strict=True)]


def share_statistics(model: nn.Module, ranks: Ranks) -> None:
    """Give every rank the mean of what the batch norms of all ranks have seen."""
    head = getattr(model, "head", None)
    if ranks.world == 1 or head is None:
        return
    norms = [module for module in head.modules() if isinstance(module, BatchNorm)]
    seen = [s for norm in norms for s in (norm.running_mean, norm.running_var)]
    if not seen:
        return
    means = torch.split(ranks.add_up(torch.cat(seen)) / ranks.world, [len(s) for s in seen])
    for statistic, mean in zip(seen, means, strict=True):
        statistic.copy_(mean)


def _skip_or_raise(state: TrainState, precision: Name, loss: float) -> None:
    """Count a step that fp16 skips; raise where skipping cannot help."""
    if state.loss_scale is not None:
        state.loss_scale.update(overflowed=True)
        state.skipped_steps += 1
        if not state.loss_scale.is_hopeless:
            return
    # A finite loss with infinite gradients is shown as infinite.
    raise NonFiniteLoss(state.step + 1, math.inf if math.isfinite(loss) else loss, precision)


def _factor(state: TrainState, config: TrainConfig, norm: float) -> float:
    """What the gradients are multiplied by: the loss scale undone, and the norm clipped."""
    factor = 1.0 if state.loss_scale is None else 1.0 / state.loss_scale.scale
    if config.clip is not None and norm * factor > config.clip:
        factor = config.clip / norm
    return factor


def _scale_gradients(gradients: list[Tensor], factor: float) -> None:
    if factor != 1.0:
        torch._foreach_mul_(gradients, factor)
