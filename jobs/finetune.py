"""One finetune job, from its job file to a registered model."""

from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.home import Surroundings
from cluster.local import RayPlace
from jobs.attempt import (
    Attempt,
    Ready,
    Stopwatch,
    Tell,
    encode_and_check,
    measure_and_register,
    new_job,
    read_data,
    record_page,
    run_attempt,
)
from jobs.backbones import pinned
from jobs.inputs import payload_of, write_labels
from jobs.plan import num_cores, threads_per_worker
from jobs.spec import FinetuneJob
from jobs.training import ray_for, train
from jobs.tune_language import with_ready_backbone


def run_finetune(
    text: str,
    job: FinetuneJob,
    base_dir: Path,
    surroundings: Surroundings,
    console: Console,
    ray: RayPlace | None,
) -> dict[str, Any]:
    """Run a job to its end; the document of `gpt2cls run --json`.

    Raises:
        RequestError: the data or the model cannot be used; nothing was created.
        JobFailed, JobStopped: the job ended early; its record says so.
    """
    watch = Stopwatch()
    job = pinned(job, surroundings)
    with watch.stage("data"):
        ready = read_data(job, base_dir, surroundings)
    job_id = new_job(text, job, base_dir, surroundings)
    return run_attempt(
        job_id,
        job,
        lambda attempt, data: train_measure_register(attempt, job, data),
        surroundings=surroundings,
        console=console,
        ray=ray,
        watch=watch,
        ready=ready,
    )


def attempt_finetune(
    job_id: str,
    job: FinetuneJob,
    surroundings: Surroundings,
    console: Console,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Begin a job that is written down, or go on with it."""
    job = pinned(job, surroundings, surroundings.home.job_dir(job_id))
    with ray_for(job.cluster, surroundings) as ray:
        return run_attempt(
            job_id,
            job,
            lambda attempt, data: train_measure_register(attempt, job, data),
            surroundings=surroundings,
            console=console,
            ray=ray,
            watch=Stopwatch(),
            tell=tell,
        )


def train_measure_register(attempt: Attempt, job: FinetuneJob, ready: Ready) -> dict[str, Any]:
    """The whole work of a finetune job, in the folder of the attempt."""
    tokens = encode_and_check(attempt, job, ready)
    payload = payload_of(
        with_ready_backbone(attempt, job, ready),
        ready.prepared,
        ready.tokenizer,
        tokens,
        write_labels(ready.prepared, attempt.dir),
        job_dir=attempt.dir,
        base_dir=attempt.base_dir,
        cache_dir=attempt.surroundings.home.cache,
        threads=threads_per_worker(job.cluster, num_cores()),
    )
    with attempt.watch.stage("train"):
        train(payload, job.cluster, attempt.ray, attempt.log)
    document = measure_and_register(attempt, job, ready, payload)
    record_page(attempt)
    return document
