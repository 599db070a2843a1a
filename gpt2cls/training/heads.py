"""Many head-only jobs as one program over the same pooled vectors, each with its own result.

Every job gets the events and the best weights that `run_rank` would have given it alone. There
are no checkpoints: a group takes minutes at most, and one that was killed starts again; what the
event files already say is not told twice.

Letters in tensor names: N heads, B rows, F features, C classes, P weights of one head, S seeds.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpt2cls.data.batches import BatchPlan, FeatureRows, Rows, SequenceRows, TokenRows
from gpt2cls.data.tasks import Task
from gpt2cls.errors import NonFiniteLoss, RequestError
from gpt2cls.model.classifier import Classifier, with_new_head
from gpt2cls.model.head import LinearHead
from gpt2cls.model.kernels import bits_of, draw_words
from gpt2cls.model.vocabulary import num_parameters
from gpt2cls.training.classification import (
    Classification,
    check_metric,
    new_objective,
    open_classification,
    selecting_metric,
)
from gpt2cls.training.compute import Compute
from gpt2cls.training.events import EventWriter
from gpt2cls.training.features import kept_features
from gpt2cls.training.grouping import check_group
from gpt2cls.training.head_stack import HeadStack
from gpt2cls.training.learn_labels import new_model
from gpt2cls.training.loop import seed_draws, seed_of_step
from gpt2cls.training.memory import TokenBudget
from gpt2cls.training.objectives import Objective, SquaredError
from gpt2cls.training.payload import EVENTS_FILE, STOP_FILE, RankPayload
from gpt2cls.training.precision import pick_precision
from gpt2cls.training.ranks import Ranks
from gpt2cls.training.saves import write_best
from gpt2cls.training.schedule import lr_at, rhythm_steps, total_steps, warmup_note
from gpt2cls.training.session import StopFile, pick_device
from gpt2cls.training.state import Best, note_evaluation

ROWS_AT_ONCE = 4096
"""Of an evaluation: bounds the memory for the features of a large split."""


@dataclass(frozen=True)
class Outcome:
    """How one job of a group ended."""

    job_dir: Path
    reason: str
    """finished or early_stopped, with the best weights; stopped; or failed."""
    error: NonFiniteLoss | None = None
    """Why it failed; the others went on."""


@dataclass
class Member:
    """One job of the group, and how far it has come."""

    payload: RankPayload
    data: Classification
    head: LinearHead
    events: EventWriter
    asked_to_stop: Callable[[], bool]
    num_steps: int
    eval_steps: int
    step: int = 0
    evaluated_step: int = 0
    best: Best | None = None
    evaluations_without_gain: int = 0
    best_weights_P: Tensor | None = None
    outcome: Outcome | None = None

    def end(self, reason: str, error: NonFiniteLoss | None = None) -> None:
        if error is None:
            self.events.write("stop", self.step, {}, reason=reason)
        self.outcome = Outcome(self.payload.job_dir, reason, error)

    def ending(self) -> str | None:
        """Why it is over now, if it is."""
        early = self.payload.train.early_stopping
        if self.step >= self.num_steps:
            return "finished"
        if early is not None and self.evaluations_without_gain >= early.patience:
            return "early_stopped"
        return None

    @property
    def is_evaluation_due(self) -> bool:
        is_time = self.step % self.eval_steps == 0 or self.step == self.num_steps
        return is_time and self.evaluated_step < self.step


def run_heads(
    payloads: Sequence[RankPayload], *, should_stop: Callable[[], bool] | None = None
) -> list[Outcome]:
    """Train the heads of all jobs together; how each ended, in the order of `payloads`.

    A file `stop` in a job's folder ends that job, `should_stop` ends all that are left; a job that
    was stopped keeps its events and its best weights, and begins anew when it is run again.

    Raises:
        RequestError: the jobs cannot be together, or their settings do not fit the data; says
            which field of which job.
        CheckpointError: best weights cannot be written.
    """
    check_group(payloads)
    first = payloads[0]
    ranks = Ranks(0, 1, pick_device(first.device, 0))
    if first.threads is not None:
        torch.set_num_threads(first.threads)
    precision, why = pick_precision(first.train.precision, ranks.device)
    task = Task.from_json(first.task)
    model = new_model(first, task, ranks)
    budget = TokenBudget.for_device(
        ranks.device, model.backbone.width, first.tokens_per_micro_batch
    )
    data = open_classification(first, task, Compute(ranks, precision, budget))
    data_of_each = _data_of_each(payloads, data)
    members = [
        _new_member(payload, its_data, model)
        for payload, its_data in zip(payloads, data_of_each, strict=True)
    ]
    try:
        for member in members:
            _announce(member, len(members), model, why)
        cache = (first.cache_dir or first.job_dir) / "features"
        _Group(members, _with_pooled_vectors(data, model, cache, members[0])).train(
            should_stop or (lambda: False)
        )
    finally:
        for member in members:
            member.events.close()
    return [member.outcome for member in members if member.outcome is not None]


def _with_pooled_vectors(
    data: Classification, model: Classifier, cache: Path, first: Member
) -> Classification:
    job, tell = first.payload.job_dir.name, partial(first.events.note, 0)
    train, validation = (
        kept_features(model, rows, cache, data.compute, job=job, tell=tell)
        for rows in (data.train, data.validation)
        if isinstance(rows, TokenRows | SequenceRows)
    )
    if not (isinstance(train, FeatureRows) and isinstance(validation, FeatureRows)):
        raise RequestError(f"no room in {cache} for the pooled vectors that the heads share")
    return replace(data, train=train, validation=validation)


def _data_of_each(payloads: Sequence[RankPayload], data: Classification) -> list[Classification]:
    """The rows of `data` as each job sees them.

    Raises:
        RequestError: with a line for each job whose settings do not fit.
    """
    plans: dict[int, BatchPlan] = {}
    found, faults = [], []
    for payload in payloads:
        config = payload.train
        # One plan for each seed: what it remembers of an epoch serves all that share it.
        plan = plans.setdefault(
            config.seed, BatchPlan(data.plan.lengths, config.batch_size, config.seed)
        )
        try:
            check_metric(selecting_metric(payload), data.validation_labels, data.task)
            objective = new_objective(config, data.train_labels, data.task)
        except RequestError as error:
            faults.append(f"{payload.job_dir.name}: {error}")
            continue
        found.append(replace(data, objective=objective, plan=plan))
    if faults:
        raise RequestError("\n".join(faults))
    return found


def _new_member(payload: RankPayload, data: Classification, model: Classifier) -> Member:
    config, per_epoch = payload.train, data.plan.steps_per_epoch
    with torch.random.fork_rng(devices=[]):
        head = with_new_head(model.backbone, payload.model, data.task, config.seed).head
    assert isinstance(head, LinearHead), "check_group() has looked"
    return Member(
        payload=payload,
        data=data,
        head=head,
        events=EventWriter(payload.job_dir / EVENTS_FILE),
        asked_to_stop=StopFile(payload.job_dir / STOP_FILE),
        num_steps=total_steps(config, per_epoch),
        eval_steps=rhythm_steps(config.eval_every, per_epoch),
    )


def _of_classes(objective: Objective | SquaredError) -> Objective:
    assert isinstance(objective, Objective), "the group was checked"
    return objective


def _announce(member: Member, num_members: int, model: Classifier, why: str) -> None:
    compute, learned = member.data.compute, sum(p.numel() for p in member.head.parameters())
    parts = {name: num_parameters(getattr(model, name)) for name in ("backbone", "pooling")}
    parts["head"] = learned
    member.events.write(
        "start",
        0,
        {},
        num_steps=member.num_steps,
        steps_per_epoch=member.data.plan.steps_per_epoch,
        precision=compute.precision,
        why=why,
        resumed_from=None,
        world=1,
        device=str(compute.ranks.device),
        parameters=sum(parts.values()),
        parameters_of=parts,
        trained_parameters=learned,
        heads_together=num_members,
    )
    if words := warmup_note(member.payload.train, member.num_steps):
        member.events.note(0, words)


class _Group:
    """The members that still train, and their weights in one stack."""

    def __init__(self, members: Sequence[Member], data: Classification) -> None:
        assert isinstance(data.train, FeatureRows) and isinstance(data.validation, FeatureRows)
        self.active = list(members)
        self.device = data.compute.ranks.device
        self.labels = data.train_labels
        # np.asarray: a memory map makes a map of each choice of rows, which takes longer.
        self.features_RF = np.asarray(data.train.features)
        self.cut_share_R = np.asarray(data.train.source.cut_share, np.float32)
        self.lengths_R = np.maximum(data.train.source.num_tokens, 1)
        self.validation = data.validation
        self.validation_cut_share = np.asarray(data.validation.source.cut_share, np.float32)
        self.stack = HeadStack(
            [member.head for member in members],
            [member.payload.train for member in members],
            [_of_classes(member.data.objective) for member in members],
            self.device,
        )
        self.step = 0
        self._look()

    def _look(self) -> None:
        """Which seeds there are: members of one seed see the same rows and draw the same bits."""
        seeds = [member.payload.train.seed for member in self.active]
        plans = {member.payload.train.seed: member.data.plan for member in self.active}
        self.plans = list(plans.items())
        places = [list(plans).index(seed) for seed in seeds]
        self.seed_of_N = np.array(places)
        self.index_N = torch.tensor(places, device=self.device)
        self.dropping_seeds = {
            member.payload.train.seed for member in self.active if member.payload.model.dropout
        }

    def train(self, should_stop: Callable[[], bool]) -> None:
        while self.active:
            self._evaluate()
            for i, member in enumerate(self.active):
                if reason := member.ending():
                    self._keep_best(member, i)
                    member.end(reason)
            self._leave_out_ended()
            if not self.active:
                return
            self._step()
            stop = should_stop()
            for i, member in enumerate(self.active):
                if (member.asked_to_stop() or stop) and member.step < member.num_steps:
                    if member.best is not None:
                        self._keep_best(member, i)
                    member.end("stopped")
            self._leave_out_ended()

    def _leave_out_ended(self) -> None:
        places = [i for i, member in enumerate(self.active) if member.outcome is None]
        if len(places) == len(self.active):
            return
        self.active = [self.active[i] for i in places]
        if places:
            self.stack.keep(places)
            self._look()

    def _evaluate(self) -> None:
        due = [i for i, member in enumerate(self.active) if member.is_evaluation_due]
        if not due:
            return
        logits_NVC = self._validation_logits()
        for i in due:
            member = self.active[i]
            metrics = member.data.measure(logits_NVC[i], member.head.probabilities)
            named = {f"eval/{name}": value for name, value in metrics.items()}
            member.events.write("eval", self.step, named)
            if note_evaluation(member, selecting_metric(member.payload), metrics):
                member.best_weights_P = self.stack.weights_NP[i].clone()

    def _validation_logits(self) -> Tensor:
        parts = []
        for start in range(0, len(self.validation.features), ROWS_AT_ONCE):
            some = slice(start, start + ROWS_AT_ONCE)
            features_BF = torch.from_numpy(np.array(self.validation.features[some]))
            cut_share_B = torch.from_numpy(self.validation_cut_share[some])
            parts.append(
                self.stack.logits_of_same_rows(
                    features_BF.to(self.device), cut_share_B.to(self.device)
                ).cpu()
            )
        return torch.cat(parts, dim=1)

    def _keep_best(self, member: Member, place: int) -> None:
        weights_P = member.best_weights_P
        self.stack.load_into(
            member.head, self.stack.weights_NP[place] if weights_P is None else weights_P
        )
        tensors = {
            f"head.{name}": parameter.detach() for name, parameter in member.head.named_parameters()
        }
        payload = member.payload
        write_best(
            payload.job_dir,
            tensors,
            payload.fingerprint,
            selecting_metric(payload),
            member.best,
            member.step,
        )

    def _step(self) -> None:
        """One update of every member; those whose loss is not finite fail and are left out."""
        started_s = time.perf_counter()
        rows_SB = np.stack([plan.rows_of_step(self.step) for _, plan in self.plans])
        rows_NB = rows_SB[self.seed_of_N]
        loss_N, gradient_NP = self.stack.losses_and_gradients(
            self._features(rows_SB),
            self._tensor(self.cut_share_R[rows_NB]),
            self._labels(rows_NB),
        )
        norm_N = torch.linalg.vector_norm(gradient_NP, dim=1)
        # The one wait for the device in a step.
        losses, norms = torch.stack([loss_N, norm_N]).tolist()
        self.step += 1
        finite = [
            i
            for i, (loss, norm) in enumerate(zip(losses, norms, strict=True))
            if math.isfinite(loss) and math.isfinite(norm)
        ]
        if len(finite) < len(losses):
            self._fail_others(finite, losses)
            gradient_NP, norm_N = gradient_NP[finite], norm_N[finite]
        lrs = [self._lr(member) for member in self.active]
        if self.active:
            self.stack.update(gradient_NP, norm_N, lrs)
        passed_s = time.perf_counter() - started_s
        tokens_N = self.lengths_R[rows_NB[finite]].sum(axis=1).tolist()
        for member, i, lr, tokens in zip(self.active, finite, lrs, tokens_N, strict=True):
            member.step = self.step
            metrics = {
                "train/loss": losses[i],
                "train/lr": lr,
                "train/tokens_per_second": tokens / passed_s,
            }
            member.events.write("step", self.step, metrics)

    def _lr(self, member: Member) -> float:
        config = member.payload.train
        return config.lr * lr_at(self.step, member.num_steps, config)

    def _features(self, rows_SB: Rows) -> Tensor:
        """What the heads read [N, B, F]: the vectors of their rows, after dropout."""
        features_SBF = self._tensor(self.features_RF.take(rows_SB, axis=0))
        features_NBF = self._of_each(features_SBF)
        if not self.stack.any_dropout:
            return features_NBF
        shape = features_SBF.shape[1:]
        words_SW = torch.empty(
            len(self.plans), -(-shape.numel() // 4), dtype=torch.int64, device=self.device
        )
        for words_W, (seed, _) in zip(words_SW.unbind(), self.plans, strict=True):
            if seed in self.dropping_seeds:
                seed_draws(seed_of_step(seed, self.step, 0), self.device)
                draw_words(words_W)
        return self.stack.dropped(features_NBF, self._of_each(bits_of(words_SW, shape)))

    def _of_each(self, values_SBF: Tensor) -> Tensor:
        if len(self.plans) == 1:
            return values_SBF.expand(len(self.active), -1, -1)
        if len(self.plans) == len(self.active):
            return values_SBF
        return values_SBF[self.index_N]

    def _tensor(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(self.device)

    def _labels(self, rows_NB: Rows) -> Tensor:
        dtype = np.int64 if self.labels.ndim == 1 else np.float32
        return self._tensor(self.labels[rows_NB].astype(dtype))

    def _fail_others(self, finite: Sequence[int], losses: Sequence[float]) -> None:
        for i, member in enumerate(self.active):
            if i not in finite:
                # A finite loss with infinite gradients is shown as infinite.
                loss = math.inf if math.isfinite(losses[i]) else losses[i]
                precision = member.data.compute.precision
                member.end("failed", NonFiniteLoss(self.step, loss, precision))
        self._leave_out_ended()
