"""One rank of a training job, from its payload to its end. What one process and Ray both call.

Wires model, tokens, loop, checkpoints and events together, and computes nothing itself. Every
file it writes lies in the job's folder, which all ranks share.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gpt2cls.data.batches import BatchPlan, RowSource, TokenRows, Tokens, label_tensor, shard
from gpt2cls.data.encode import open_tokens
from gpt2cls.data.tasks import Task
from gpt2cls.errors import CheckpointError, RequestError
from gpt2cls.metrics import quick_metrics
from gpt2cls.model.classifier import Classifier, build_classifier
from gpt2cls.training.checkpoint import (
    find_checkpoint,
    read_whole,
    remove_half_written,
    save_checkpoint,
    write_whole,
)
from gpt2cls.training.evaluating import logits_of_rows
from gpt2cls.training.events import EventWriter
from gpt2cls.training.features import kept_features
from gpt2cls.training.freezing import ever_trainable, learns_only_above_pooling
from gpt2cls.training.loop import StepData, Work, fit
from gpt2cls.training.memory import TokenBudget
from gpt2cls.training.objectives import Objective, class_weights
from gpt2cls.training.optim import new_optimizer
from gpt2cls.training.payload import RankPayload
from gpt2cls.training.precision import LossScale, Name, pick_precision
from gpt2cls.training.ranks import Ranks
from gpt2cls.training.schedule import total_steps, warmup_note
from gpt2cls.training.state import (
    TrainState,
    load_model_tensors,
    load_optimizer_tensors,
    model_tensors,
    optimizer_tensors,
    position,
    set_position,
)

EVENTS_FILE = "events.jsonl"
STOP_FILE = "stop"
CHECKPOINTS = "checkpoints"
BEST = "best"
STOP_POLL_S = 0.2


def run_rank(
    payload: RankPayload,
    rank: int = 0,
    world: int = 1,
    *,
    local_rank: int = 0,
    should_stop: Callable[[], bool] | None = None,
) -> str:
    """Train from the start, or from the newest checkpoint; why it ended.

    With `world` > 1 the caller has formed the process group. A file `stop` in the job's folder
    asks the job to stop; `should_stop` does so too, where it is given.

    Returns:
        "finished" or "early_stopped", with the best weights in `<job_dir>/best`; or "stopped",
        with a checkpoint from which another call goes on.

    Raises:
        NonFiniteLoss: the weights would have been harmed; checkpoints are whole.
        CheckpointError: a checkpoint can be neither read nor written.
        RequestError: the settings do not fit the data.
    """
    ranks = Ranks(rank, world, _device(payload.device, local_rank))
    if payload.threads is not None:
        torch.set_num_threads(payload.threads)
    events = EventWriter(payload.job_dir / EVENTS_FILE) if ranks.is_first else None
    try:
        return _run(payload, ranks, events, should_stop)
    finally:
        if events is not None:
            events.close()


def _run(
    payload: RankPayload,
    ranks: Ranks,
    events: EventWriter | None,
    should_stop: Callable[[], bool] | None,
) -> str:
    config, task = payload.train, Task.from_json(payload.task)
    precision, why = pick_precision(config.precision, ranks.device)
    model = _new_model(payload, task, ranks)
    names = ever_trainable(model, config.freeze, config.epochs)
    state = TrainState(model, new_optimizer(model, config, names, ranks.device))
    if precision == "fp16":
        state.loss_scale = LossScale(payload.initial_loss_scale)
    ranks.copy_from_first([tensor for name, tensor in model_tensors(model, names).items()])
    session = Session(payload, task, ranks, state, names, precision, events)
    notes = session.resume()
    work = session.work(should_stop or StopFile(payload.job_dir / STOP_FILE))
    session.announce(work, why, notes)
    reason = fit(state, work, config, ranks)
    if reason != "stopped":
        session.keep_best()
    session.report("stop", state.step, {}, reason=reason)
    return reason


class Session:
    """What is held while a rank trains."""

    def __init__(
        self,
        payload: RankPayload,
        task: Task,
        ranks: Ranks,
        state: TrainState,
        names: set[str],
        precision: Name,
        events: EventWriter | None,
    ) -> None:
        self.payload, self.task, self.ranks, self.state = payload, task, ranks, state
        self.names, self.precision, self.events = names, precision, events
        self.budget = TokenBudget.for_device(ranks.device, payload.tokens_per_micro_batch)
        self.checkpoints = payload.job_dir / CHECKPOINTS
        early = payload.train.early_stopping
        self.select_metric = early.metric if early else payload.select_metric

    def report(self, kind: str, step: int, metrics: dict[str, float], **more: Any) -> None:
        if self.events is not None:
            self.events.write(kind, step, metrics, **more)

    def resume(self) -> list[str]:
        """Go to the newest whole checkpoint, if there is one; words about damaged ones."""
        if self.ranks.is_first:
            remove_half_written(self.checkpoints)
        self.ranks.total(0)  # tidied up
        found, notes = find_checkpoint(self.checkpoints, self.payload.fingerprint)
        step = found.step if found else 0
        if self.ranks.total(step) != step * self.ranks.world:
            raise CheckpointError(
                f"the ranks see different checkpoints in {self.checkpoints} (rank "
                f"{self.ranks.rank}: step {step}); put $GPT2CLS_HOME on storage they all share"
            )
        if found is None:
            return notes
        load_model_tensors(self.state.model, found.tensors("model"))
        load_optimizer_tensors(self.state, found.tensors("optimizer"))
        set_position(self.state, found.state)
        # Written again where a kill came between the checkpoint and its event.
        self.report("checkpoint", step, {})
        return notes

    def work(self, should_stop: Callable[[], bool]) -> Work:
        payload, config = self.payload, self.payload.train
        train = self._rows(payload.train_tokens, payload.train_labels)
        validation = self._rows(payload.validation_tokens, payload.validation_labels)
        self._check_metric(validation.labels)
        lengths, labels = train.data.lengths, train.labels
        plan = BatchPlan(lengths, config.batch_size, config.seed)
        objective = Objective(
            self.task.kind == "multi_label",
            class_weights(config.class_weights, labels, self.task.labels),
            config.label_smoothing,
        )
        train_rows: RowSource = train
        validation_rows: RowSource = validation
        if learns_only_above_pooling(self.names):
            train_rows, validation_rows = self._kept(train), self._kept(validation)

        def data_of_step(step: int, token_budget: int) -> StepData:
            rows = plan.rows_of_step(step)
            mine = shard(rows, self.ranks.rank, self.ranks.world)
            batches = list(train_rows.batches(mine, token_budget))
            return StepData(batches, objective.normaliser(labels[rows]))

        return Work(
            num_steps=total_steps(config, plan.steps_per_epoch),
            steps_per_epoch=plan.steps_per_epoch,
            select_metric=self.select_metric,
            precision=self.precision,
            budget=self.budget,
            data_of_step=data_of_step,
            loss_sum=objective.loss_sum,
            evaluate=lambda model: self._evaluate(model, validation, validation_rows, objective),
            report=self.report,
            save=self.save,
            should_stop=should_stop,
        )

    def _rows(self, tokens: Path, labels: Path) -> TokenRows:
        payload, split = self.payload, open_tokens(tokens)
        return TokenRows(
            # The two properties of the split are computed on each access.
            Tokens(split.tokens, split.offsets, split.lengths, split.cut_share),
            np.load(labels, allow_pickle=False),
            payload.pad_id,
            payload.max_length,
        )

    def _kept(self, source: TokenRows) -> RowSource:
        return kept_features(
            self.state.model,
            source,
            (self.payload.cache_dir or self.payload.job_dir) / "features",
            precision=self.precision,
            budget=self.budget,
            ranks=self.ranks,
            job=self.payload.job_dir.name,
        )

    def _evaluate(
        self, model: nn.Module, split: TokenRows, rows: RowSource, objective: Objective
    ) -> dict[str, float]:
        logits_NC = logits_of_rows(
            model,
            rows,
            split.data.lengths,
            len(self.task.labels),
            precision=self.precision,
            budget=self.budget,
            ranks=self.ranks,
        )
        if not bool(logits_NC.isfinite().all()):
            return {"loss": math.nan}  # NaN is never the best
        with torch.no_grad():
            loss = objective.loss_of_logits(logits_NC, label_tensor(split.labels))
            probs: torch.Tensor = model.probabilities(logits_NC.to(self.ranks.device))  # type: ignore[operator]
        metrics = {"loss": float(loss) / objective.normaliser(split.labels)}
        return metrics | quick_metrics(probs.cpu().numpy(), split.labels, self.task)

    def _check_metric(self, labels: NDArray[Any]) -> None:
        """Refuse now what would otherwise be found out after the first epoch."""
        num_classes = len(self.task.labels)
        uniform_NC = np.full((len(labels), num_classes), 1 / num_classes)
        measured = {"loss", *quick_metrics(uniform_NC, labels, self.task)}
        if self.select_metric not in measured:
            raise RequestError(
                f"the metric {self.select_metric!r} is to choose the best weights, but it is not "
                f"measured in training; measured are {', '.join(sorted(measured))}"
            )

    def announce(self, work: Work, why: str, notes: list[str]) -> None:
        state = self.state
        self.report(
            "start",
            state.step,
            {},
            num_steps=work.num_steps,
            steps_per_epoch=work.steps_per_epoch,
            precision=self.precision,
            why=why,
            resumed_from=state.step or None,
            world=self.ranks.world,
            device=str(self.ranks.device),
            parameters=sum(p.numel() for p in state.model.parameters()),
            trained_parameters=sum(
                t.numel() for t in model_tensors(state.model, self.names).values()
            ),
        )
        if state.step == 0 and (words := warmup_note(self.payload.train, work.num_steps)):
            notes = [*notes, words]
        for words in notes:
            self.report("note", state.step, {}, text=words)

    def save(self, state: TrainState) -> None:
        """Rank 0 writes the checkpoint; all ranks learn whether that went well."""
        fault: CheckpointError | None = None
        if self.events is not None:
            self.events.sync()  # a checkpoint must not be ahead of the events
            tensors = {
                "model": model_tensors(state.model, self.names),
                "optimizer": optimizer_tensors(state),
            }
            record = {"job": self.payload.fingerprint, **position(state)}
            try:
                save_checkpoint(self.checkpoints, state.step, tensors, record)
            except CheckpointError as error:
                fault = error
        if self.ranks.total(float(fault is not None)):
            raise fault or CheckpointError(f"rank 0 could not write the checkpoint of {state.step}")
        self.report("checkpoint", state.step, {})

    def keep_best(self) -> None:
        """Put the best weights back into the model, and whole into `<job_dir>/best`."""
        state, best = self.state, self.state.best
        if best is not None and best.step != state.step:
            folder = self.checkpoints / f"step-{best.step:08d}"
            load_model_tensors(state.model, read_whole(folder).tensors("model"))
        if self.ranks.is_first:
            record = {
                "job": self.payload.fingerprint,
                "step": best.step if best else state.step,
                "metrics": best.metrics if best else {},
                "select_metric": self.select_metric,
            }
            write_whole(self.payload.job_dir / BEST, {"model": model_tensors(state.model)}, record)
        self.ranks.total(0)  # it is there when any rank returns


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


def load_best(job_dir: Path, model: nn.Module) -> dict[str, Any]:
    """Give `model` the best weights of a finished job; what `best/state.json` says of them.

    Raises:
        CheckpointError: the weights are missing, damaged, or of another model.
    """
    best = read_whole(job_dir / BEST)
    load_model_tensors(model, best.tensors("model"))
    return best.state


def _new_model(payload: RankPayload, task: Task, ranks: Ranks) -> Classifier:
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


def _device(setting: str, local_rank: int) -> torch.device:
    use_gpu = torch.cuda.is_available() if setting == "auto" else setting == "cuda"
    if not use_gpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RequestError("device = cuda: this machine's torch sees no GPU; use cpu or auto")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device
