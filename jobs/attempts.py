"""What works on a job that is written down, by its kind: for the queue, and for `resume`."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cluster.home import Surroundings
from jobs.console import console_of
from jobs.job_folder import base_dir_of
from jobs.spec import KINDS, AnyJob, FinetuneJob, PipelineJob, PretrainJob, SweepJob
from jobs.spec_uses import DeployJob, EnsembleJob, EvaluateJob, PredictJob, PrepareJob

if TYPE_CHECKING:
    from jobs.attempt import Tell
    from jobs.store import Job

RESUMED = ("finetune", "pretrain", "ensemble", "deploy", "pipeline")
"""Kinds that go on by `gpt2cls resume`; of the others sweeps have a verb, the rest starts anew."""


def resume(row: "Job", surroundings: Surroundings) -> dict[str, Any]:
    """Go on with a job that was stopped, failed or killed, in the same MLflow run.

    Raises:
        RequestError: its state does not allow it.
    """
    from jobs.store import Store

    job = KINDS[row.kind].model_validate(row.spec)
    Store(surroundings.home).start(row.id, by_resume=True)
    return attempt(job, row.id, surroundings, None)


def attempt(
    job: AnyJob, job_id: str, surroundings: Surroundings, tell: "Tell | None"
) -> dict[str, Any]:
    """Begin a job, or go on with it; `tell` is told how it ended, None: the store is."""
    return _ATTEMPTS[type(job)](job, job_id, surroundings, tell)


def _finetune(job: FinetuneJob, job_id: str, surroundings: Surroundings, tell: Any) -> Any:
    from jobs.finetune import attempt_finetune

    return attempt_finetune(job_id, job, surroundings, console_of(sys.stderr), tell)


def _pretrain(job: PretrainJob, job_id: str, surroundings: Surroundings, tell: Any) -> Any:
    from jobs.pretrain import attempt_pretrain

    return attempt_pretrain(job_id, job, surroundings, console_of(sys.stderr), tell)


def _sweep(job: SweepJob, job_id: str, surroundings: Surroundings, tell: Any) -> Any:
    from jobs.sweep import attempt_sweep

    return attempt_sweep(job_id, job, surroundings, console_of(sys.stderr), tell)


def _pipeline(job: PipelineJob, job_id: str, surroundings: Surroundings, tell: Any) -> Any:
    from jobs.pipeline import attempt_pipeline

    return attempt_pipeline(job_id, job, surroundings, console_of(sys.stderr), tell)


def _ensemble(job: EnsembleJob, job_id: str, surroundings: Surroundings, tell: Any) -> Any:
    from jobs.ensemble import attempt_ensemble

    return attempt_ensemble(job_id, job, surroundings, console_of(sys.stderr), tell)


def _evaluate(job: EvaluateJob, job_id: str, surroundings: Surroundings, tell: Any) -> Any:
    from jobs.evaluate import run_evaluate

    return run_evaluate(
        job.model,
        job.data,
        base_dir=base_dir_of(surroundings.home.job_dir(job_id)),
        surroundings=surroundings,
        console=console_of(sys.stderr),
    )


def _deploy(job: DeployJob, job_id: str, surroundings: Surroundings, tell: Any) -> Any:
    from jobs.deploy import attempt_deploy

    return attempt_deploy(job_id, job, surroundings, console_of(sys.stderr), tell)


def _prepare(job: PrepareJob, job_id: str, surroundings: Surroundings, tell: Any) -> Any:
    from jobs.prepare import run_prepare

    base_dir = base_dir_of(surroundings.home.job_dir(job_id))
    return run_prepare(job, base_dir=base_dir, console=console_of(sys.stderr))


def _predict(job: PredictJob, job_id: str, surroundings: Surroundings, tell: Any) -> Any:
    from jobs.predict import run_predict

    return run_predict(
        job.model,
        job.input,
        job.output,
        base_dir=base_dir_of(surroundings.home.job_dir(job_id)),
        surroundings=surroundings,
        console=console_of(sys.stderr),
        spreadsheet_safe=job.spreadsheet_safe,
        low_confidence=job.low_confidence,
    )


_ATTEMPTS: dict[type, Callable[..., dict[str, Any]]] = {
    FinetuneJob: _finetune,
    PretrainJob: _pretrain,
    SweepJob: _sweep,
    EnsembleJob: _ensemble,
    PipelineJob: _pipeline,
    EvaluateJob: _evaluate,
    PrepareJob: _prepare,
    DeployJob: _deploy,
    PredictJob: _predict,
}
