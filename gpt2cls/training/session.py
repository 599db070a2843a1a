"""One rank of a training job, from its payload to its end. What one process and Ray both call.

Wires model, data, loop, checkpoints and events together, and computes nothing itself. Every file
it writes lies in the job's folder, which all ranks share.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gpt2cls.errors import RequestError
from gpt2cls.model.vocabulary import decay_unused_rows, num_parameters
from gpt2cls.training.allocator import keep_freed_memory
from gpt2cls.training.events import EventWriter
from gpt2cls.training.learn_labels import learn_labels
from gpt2cls.training.learn_language import learn_language
from gpt2cls.training.loop import Work, fit
from gpt2cls.training.optim import new_optimizer
from gpt2cls.training.payload import EVENTS_FILE, STOP_FILE, RankPayload
from gpt2cls.training.precision import LossScale, pick_precision
from gpt2cls.training.ranks import Ranks
from gpt2cls.training.saves import BEST, keep_best, load_best, resume, save
from gpt2cls.training.schedule import total_steps, warmup_note
from gpt2cls.training.state import TrainState, model_tensors
from gpt2cls.training.subject import Subject

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
    config, job = payload.train, payload.fingerprint
    precision, why = pick_precision(config.precision, ranks.device)

    def tell(words: str) -> None:
        events.note(state.step, words)

    learn = learn_labels if payload.objective == "labels" else learn_language
    subject = learn(payload, ranks, precision, tell)
    model, names = subject.model, subject.names
    ranks.copy_from_first(list(model_tensors(model, names).values()))
    scale = LossScale(payload.initial_loss_scale) if precision == "fp16" else None
    state = TrainState(model, new_optimizer(model, config, names, ranks.device), scale)
    decay_unused_rows(model, state.optimizer)
    notes = resume(state, payload.job_dir, job, ranks)
    num_steps = total_steps(config, subject.steps_per_epoch)
    _announce(events, state, payload, subject, num_steps, why)
    for words in notes:
        events.note(state.step, words)

    def save_and_report(state: TrainState) -> None:
        events.sync()  # a checkpoint must not be ahead of the events
        save(state, payload.job_dir, job, names, ranks)
        events.write("checkpoint", state.step, {})

    work = Work(
        num_steps=num_steps,
        steps_per_epoch=subject.steps_per_epoch,
        select_metric=subject.select_metric,
        precision=precision,
        budget=subject.compute.budget,
        data_of_step=subject.data_of_step,
        loss_sum=subject.loss_sum,
        evaluate=lambda _: subject.evaluate(state.step),
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
    subject: Subject,
    num_steps: int,
    why: str,
) -> None:
    """What a reader of the events wants to know at the start."""
    learned = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    sizes = {id(p): p.numel() for p in state.model.parameters()}
    parts = {name: num_parameters(part) for name, part in state.model.named_children()}
    events.write(
        "start",
        state.step,
        {},
        num_steps=num_steps,
        steps_per_epoch=subject.steps_per_epoch,
        precision=subject.compute.precision,
        why=why,
        resumed_from=state.step or None,
        world=subject.compute.ranks.world,
        device=str(subject.compute.ranks.device),
        parameters=sum(parts.values()),
        parameters_of=parts,
        trained_parameters=sum(size for key, size in sizes.items() if key in learned),
    )
    told = events.last_step.get("step", 0)
    if told > state.step:  # without this line, nothing is seen to happen until there
        words = f"steps {state.step + 1:,} to {told:,} came after the checkpoint and are made again"
        events.note(state.step, f"{words}, without being reported twice")
    if state.step:  # told again where a kill came between the checkpoint and its event
        events.write("checkpoint", state.step, {})
        return
    warmup = warmup_note(payload.train, num_steps)
    for words in (*subject.notes, *([warmup] if warmup else ())):
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


def pick_device(setting: str, local_rank: int) -> torch.device:
    use_gpu = torch.cuda.is_available() if setting == "auto" else setting == "cuda"
    if not use_gpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RequestError("device = cuda: this machine's torch sees no GPU; use cpu or auto")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device
