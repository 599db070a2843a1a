"""One rank of a training job, from its payload to its end. What one process and Ray both call.

Wires model, data, loop, checkpoints and events together, and computes nothing itself. Every file
it writes lies in the job's folder, which all ranks share.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpt2cls.data.batches import RowSource, TokenRows
from gpt2cls.data.encode import open_tokens
from gpt2cls.data.tasks import Task
from gpt2cls.errors import RequestError
from gpt2cls.model.classifier import Classifier, build_classifier
from gpt2cls.model.gpt2 import GPT2Backbone
from gpt2cls.model.vocabulary import decay_unused_rows, keep_used_rows, used_tokens
from gpt2cls.training.allocator import keep_freed_memory
from gpt2cls.training.classification import (
    Classification,
    open_classification,
    selecting_metric,
)
from gpt2cls.training.compute import Compute
from gpt2cls.training.events import EventWriter
from gpt2cls.training.features import kept_features
from gpt2cls.training.freezing import Depth, ever_trainable
from gpt2cls.training.loop import Work, fit
from gpt2cls.training.memory import TokenBudget
from gpt2cls.training.optim import new_optimizer
from gpt2cls.training.payload import EVENTS_FILE, STOP_FILE, RankPayload
from gpt2cls.training.phases import Phases
from gpt2cls.training.precision import LossScale, pick_precision
from gpt2cls.training.ranks import Ranks
from gpt2cls.training.saves import BEST, keep_best, load_best, resume, save
from gpt2cls.training.schedule import total_steps, warmup_note
from gpt2cls.training.state import TrainState, model_tensors

__all__ = ["BEST", "RankPayload", "load_best", "run_rank"]

STOP_POLL_S = 0.2


def run_rank(
    payload: RankPayload,
    rank: int = 0,
    world: int = 1,
    *,
    local_rank: int = 0,
    should_stop: Callable[[], bool] | None = None,
    watch: Callable[[dict[str, Any]], None] | None = None,
) -> str:
    """Train from the start, or from the newest checkpoint; why it ended.

    With `world` > 1 the caller has formed the process group. A file `stop` in the job's folder
    asks the job to stop, unless `should_stop` is given and asked instead. `watch` is called with
    every event of the first rank.

    Returns:
        "finished" or "early_stopped"; or "stopped", with a checkpoint from which another call
        goes on. The best weights so far, if any were measured, are in `<job_dir>/best`.

    Raises:
        NonFiniteLoss: the weights would have been harmed; checkpoints are whole.
        CheckpointError: a checkpoint can be neither read nor written.
        RequestError: the settings do not fit the data.
    """
    ranks = Ranks(rank, world, pick_device(payload.device, local_rank))
    keep_freed_memory()
    if payload.threads is not None:
        torch.set_num_threads(payload.threads)
    events = EventWriter(payload.job_dir / EVENTS_FILE if ranks.is_first else None, watch)
    try:
        return _train(payload, ranks, events, should_stop or StopFile(payload.job_dir / STOP_FILE))
    finally:
        events.close()


def _train(
    payload: RankPayload, ranks: Ranks, events: EventWriter, should_stop: Callable[[], bool]
) -> str:
    config, task, job = payload.train, Task.from_json(payload.task), payload.fingerprint
    precision, why = pick_precision(config.precision, ranks.device)
    model = new_model(payload, task, ranks)
    budget = TokenBudget.for_device(
        ranks.device, model.backbone.width, payload.tokens_per_micro_batch, precision
    )
    names = ever_trainable(model, config.freeze, config.epochs)
    if isinstance(model.backbone, GPT2Backbone) and "backbone.wte.weight" in names:
        keep_used_rows(model.backbone, _used_tokens(payload))
    ranks.copy_from_first(list(model_tensors(model, names).values()))
    scale = LossScale(payload.initial_loss_scale) if precision == "fp16" else None
    state = TrainState(model, new_optimizer(model, config, names, ranks.device), scale)
    decay_unused_rows(model, state.optimizer)
    data = open_classification(payload, task, Compute(ranks, precision, budget))
    notes = resume(state, payload.job_dir, job, ranks)
    num_steps = total_steps(config, data.plan.steps_per_epoch)
    _announce(events, state, payload, data, num_steps, why)
    for words in notes:
        events.note(state.step, words)

    def keep(rows: TokenRows, depth: Depth) -> RowSource:
        cache_dir = (payload.cache_dir or payload.job_dir) / "features"
        name = payload.job_dir.name
        return kept_features(model, rows, cache_dir, data.compute, job=name, tell=tell, depth=depth)

    def tell(words: str) -> None:
        events.note(state.step, words)

    phases = Phases(data, model, config.freeze, keep)

    def save_and_report(state: TrainState) -> None:
        events.sync()  # a checkpoint must not be ahead of the events
        save(state, payload.job_dir, job, names, ranks)
        events.write("checkpoint", state.step, {})

    work = Work(
        num_steps=num_steps,
        steps_per_epoch=data.plan.steps_per_epoch,
        select_metric=selecting_metric(payload),
        precision=precision,
        budget=budget,
        data_of_step=phases.data_of_step,
        loss_sum=data.objective.loss_sum,
        evaluate=lambda _: phases.evaluate(state.step),
        report=events.write,
        save=save_and_report,
        should_stop=should_stop,
    )
    reason = fit(state, work, config, ranks)
    if reason != "stopped" or state.best is not None:
        keep_best(state, payload.job_dir, job, work.select_metric, names, ranks)
    events.write("stop", state.step, {}, reason=reason)
    return reason


def _announce(
    events: EventWriter,
    state: TrainState,
    payload: RankPayload,
    data: Classification,
    num_steps: int,
    why: str,
) -> None:
    """What a reader of the events wants to know at the start."""
    learned = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    sizes = {id(p): p.numel() for p in state.model.parameters()}
    events.write(
        "start",
        state.step,
        {},
        num_steps=num_steps,
        steps_per_epoch=data.plan.steps_per_epoch,
        precision=data.compute.precision,
        why=why,
        resumed_from=state.step or None,
        world=data.compute.ranks.world,
        device=str(data.compute.ranks.device),
        parameters=sum(sizes.values()),
        trained_parameters=sum(size for key, size in sizes.items() if key in learned),
    )
    if state.step:  # told again where a kill came between the checkpoint and its event
        events.write("checkpoint", state.step, {})
    elif words := warmup_note(payload.train, num_steps):
        events.note(0, words)


class StopFile:
    """Whether somebody has asked the job to stop; looks at the disk a few times a second."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.looked_s = -math.inf

    def __call__(self) -> bool:
        if time.monotonic() - self.looked_s < STOP_POLL_S:
            return False
        self.looked_s = time.monotonic()
        return self.path.exists()


def new_model(payload: RankPayload, task: Task, ranks: Ranks) -> Classifier:
    if payload.train.lm_epochs:
        raise RequestError(
            f"train.lm_epochs = {payload.train.lm_epochs}: language-model fine-tuning is not in "
            "this version; set it to 0"
        )
    model = build_classifier(
        payload.model,
        task,
        vocab_size=payload.vocab_size,
        pad_id=payload.pad_id,
        max_length=payload.max_length,
        seed=payload.train.seed,
        base_dir=payload.base_dir,
    )
    return model.to(ranks.device)


def _used_tokens(payload: RankPayload) -> NDArray[np.int64]:
    splits = [
        open_tokens(path).tokens for path in (payload.train_tokens, payload.validation_tokens)
    ]
    return used_tokens(splits, payload.vocab_size, payload.pad_id)


def pick_device(setting: str, local_rank: int) -> torch.device:
    use_gpu = torch.cuda.is_available() if setting == "auto" else setting == "cuda"
    if not use_gpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RequestError("device = cuda: this machine's torch sees no GPU; use cpu or auto")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device
