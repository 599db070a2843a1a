"""What a job will use on this machine, said before it starts."""

import os
from typing import Any

from jobs.spec import ClusterConfig, FinetuneJob


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_per_worker(cluster: ClusterConfig, cores: int) -> int:
    """Threads of one rank: its share of the machine, or what the job says."""
    return max(int(cluster.cpus_per_worker or cores / cluster.max_workers), 1)


def plan_of(job: FinetuneJob, cores: int) -> dict[str, Any]:
    """Workers, threads and precision of a job on a machine with so many cores."""
    cluster = job.cluster
    return {
        "workers": cluster.workers,
        "threads_per_worker": threads_per_worker(cluster, cores),
        "gpus": cluster.gpus_per_worker * cluster.max_workers,
        "runs_in": "this process" if cluster.workers == 1 else "Ray Train workers",
        "rows_per_step_and_worker": -(-job.train.batch_size // cluster.max_workers),
        "precision": _precision_note(job),
    }


def plan_warnings(job: FinetuneJob, cores: int) -> list[str]:
    """What is allowed but probably not meant."""
    warnings = []
    wanted = job.cluster.max_workers * (job.cluster.cpus_per_worker or 1)
    if wanted > cores:
        warnings.append(
            f"cluster.workers = {job.cluster.max_workers} asks for {wanted:g} cores; this machine "
            f"has {cores}, so the workers slow each other down. Ask for {cores} workers or fewer."
        )
    if job.train.precision == "fp16" and not job.cluster.gpus_per_worker:
        warnings.append("train.precision = fp16 is slow without a GPU; auto picks what is fast")
    return warnings


def _precision_note(job: FinetuneJob) -> str:
    if job.train.precision != "auto":
        return job.train.precision
    return "auto: the fastest that the hardware of a worker has; the job says which"
