"""What a job will use on this machine, said before it starts."""

import os
from typing import Any

from jobs.faults import BadRequestError, Problem, shown
from jobs.spec import ClusterConfig, FinetuneJob, PretrainJob, SweepJob, TrainingJob


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_per_worker(cluster: ClusterConfig, cores: int) -> int:
    """Threads of one rank: its share of the machine, or what the job says."""
    return max(int(cluster.cpus_per_worker or cores / cluster.max_workers), 1)


def plan_of(job: FinetuneJob | PretrainJob, cores: int) -> dict[str, Any]:
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


def sweep_plan(job: SweepJob, cores: int) -> dict[str, Any]:
    """Trials, and how many of them at a time, of a sweep on a machine with so many cores."""
    cluster, search, space = job.cluster, job.search, job.search_space
    cpus = cpus_per_trial(job, cores)
    room = max(int(cores // cpus), 1)
    return {
        "trials": job.num_trials,
        "runs": job.num_trials * search.seeds,
        "points": space.num_points(job.fixed),  # None: more than can be counted
        "trials_at_a_time": min(search.max_concurrent or room, room, job.num_trials * search.seeds),
        "workers_per_trial": _workers_that_fit(cluster, cores),
        "cpus_per_trial": cpus,
        "gpus_per_trial": cluster.gpus_per_worker * _workers_that_fit(cluster, cores),
        "searcher": search.searcher,
        "scheduler": search.scheduler,
        "objective": f"{search.best_mode} of eval/{search.metric}",
        "time_budget_s": search.time_budget_s,
        "refit": search.refit,
        "precision": _precision_note(job),
    }


_WEIGHT_BYTES, _CHECKPOINT_BYTES = 4, 12  # fp32; with the two moments of AdamW
_CHECKPOINTS_AT_ONCE = 5  # the two newest, the best as of each, and one that is being written
_HANDED_OVER = 3


def sweep_disk_bytes(job: SweepJob, trials_at_a_time: int, num_trained: int) -> int:
    """What the weights of a sweep take on disk at most, at any moment; tokens not counted.

    Args:
        job: the sweep.
        trials_at_a_time: as planned.
        num_trained: weights that a trial learns.
    """
    checkpoints = trials_at_a_time * _CHECKPOINTS_AT_ONCE
    if job.search.pauses_trials:  # a trial that waits keeps its own
        runs = job.num_trials * job.search.seeds
        checkpoints = runs * (_CHECKPOINTS_AT_ONCE + _HANDED_OVER)
    kept = job.search.keep + trials_at_a_time + 1
    return num_trained * (checkpoints * _CHECKPOINT_BYTES + kept * _WEIGHT_BYTES)


def cpus_per_trial(job: SweepJob, cores: int) -> float:
    """Cores that one trial takes: 1 per worker unless the job says otherwise."""
    return _workers_that_fit(job.cluster, cores) * cpus_per_trial_worker(job.cluster)


def cpus_per_trial_worker(cluster: ClusterConfig) -> float:
    """Cores of one worker of a trial; several trials share the machine."""
    return cluster.cpus_per_worker or 1


def _workers_that_fit(cluster: ClusterConfig, cores: int) -> int:
    """The most workers of [min, max] that this machine has room for, and no fewer than min."""
    fitting = int(cores // cpus_per_trial_worker(cluster))
    return max(min(cluster.max_workers, fitting), cluster.min_workers)


def never_fits(job: SweepJob, cores: int) -> Problem | None:
    """The fault of a sweep of which one trial is larger than the machine."""
    cluster = job.cluster
    per_worker, workers = cpus_per_trial_worker(cluster), cluster.min_workers
    needed = per_worker * workers
    if needed <= cores:
        return None
    if per_worker > cores or workers == 1:
        field, most = "cluster.cpus_per_worker", cores / workers
    else:
        field, most = "cluster.workers", cores // per_worker
    value = getattr(cluster, field.removeprefix("cluster."))
    allowed = f"at most {most:g}"
    words = (
        f"{field} = {shown(value)}: one trial needs {needed:g} cores; this machine has {cores}; "
        f"ask for {allowed}"
    )
    return Problem(words, field=field, value=value, allowed=allowed)


def refuse_if_never_fits(job: SweepJob, cores: int) -> None:
    """Refuse a sweep that would wait for ever.

    Raises:
        BadRequestError: one trial needs more cores than there are.
    """
    if problem := never_fits(job, cores):
        raise BadRequestError([problem])


def sweep_warnings(job: SweepJob, cores: int) -> list[str]:
    """What is allowed in a sweep but probably not meant."""
    warnings = _precision_warnings(job)
    if problem := never_fits(job, cores):
        warnings.append(problem.message)
    space, fixed = job.search_space, job.fixed
    reachable = space.reachable(fixed)
    for field, dimension in space.items():
        block, _, name = field.partition(".")
        if field not in reachable:
            asked = " and ".join(name for name, _ in dimension.when)
            if not isinstance(job.space, str):  # a shipped space is for many jobs
                warnings.append(f"space.{field} never varies in this job: see {asked}")
        elif not dimension.when and name in getattr(job, block).model_fields_set:
            warnings.append(
                f"{field} = {shown(fixed[field])} is not used: the space varies this field"
            )
    return warnings


def plan_warnings(job: FinetuneJob | PretrainJob, cores: int) -> list[str]:
    """What is allowed but probably not meant."""
    warnings = []
    wanted = job.cluster.max_workers * (job.cluster.cpus_per_worker or 1)
    if wanted > cores:
        warnings.append(
            f"cluster.workers = {job.cluster.max_workers} asks for {wanted:g} cores; this machine "
            f"has {cores}, so the workers slow each other down. Ask for {cores} workers or fewer."
        )
    if isinstance(job, TrainingJob):
        warnings += _frozen_embedding_warnings(job)
    return warnings + _precision_warnings(job)


def _frozen_embedding_warnings(job: TrainingJob) -> list[str]:
    freeze = job.train.freeze
    if freeze not in ("head_only", "last_layer") and not freeze.startswith("top:"):
        return []
    warnings = []
    if job.data.special_tokens != "none":
        warnings.append(
            f"train.freeze = {freeze}: the tokens of data.special_tokens do not learn, and a "
            "backbone that does not know them yet keeps them as they were drawn"
        )
    if job.train.embedding_lr is not None and not job.train.lm_epochs:
        warnings.append(
            f"train.embedding_lr = {job.train.embedding_lr:g} is not used: train.freeze = {freeze} "
            "keeps the embedding as it is"
        )
    return warnings


def _precision_warnings(job: TrainingJob | PretrainJob) -> list[str]:
    if job.train.precision == "fp16" and not job.cluster.gpus_per_worker:
        return ["train.precision = fp16 is slow without a GPU; auto picks what is fast"]
    return []


def _precision_note(job: TrainingJob | PretrainJob) -> str:
    if job.train.precision != "auto":
        return job.train.precision
    return "auto: the fastest that the hardware of a worker has; the job says which"
