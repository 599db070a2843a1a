"""What a job asks of a cluster."""

from dataclasses import asdict
from functools import lru_cache
from typing import Any

from jobs.plan import sweep_plan
from jobs.schedule import Ask
from jobs.spec import AnyJob, FinetuneJob, PipelineJob, PretrainJob, SweepJob


def ask_of(job: AnyJob, cores: float) -> Ask:
    """What a job needs to start, all of it at once; `cores`: of one node.

    An elastic job starts with its fewest workers.
    """
    if isinstance(job, FinetuneJob | PretrainJob):
        cluster = job.cluster
        cpus = cluster.cpus_per_worker or cores / cluster.max_workers
        return Ask(cluster.min_workers, cpus, cluster.gpus_per_worker)
    if isinstance(job, SweepJob):
        from jobs.head_trials import are_heads_alone

        plan = sweep_plan(job, int(cores))
        at_a_time = 1 if are_heads_alone(job) else int(plan["trials_at_a_time"])
        workers = int(plan["workers_per_trial"])
        per_worker = float(plan["cpus_per_trial"]) / workers
        return Ask(workers * at_a_time, per_worker, job.cluster.gpus_per_worker)
    if isinstance(job, PipelineJob):  # one stage at a time
        asks = [ask_of(stage.job, cores) for stage in job.stages.values()]
        return max(asks, key=lambda ask: (ask.gpus, ask.cpus))
    return Ask(1, 1.0, 0.0)


def entrypoint_cpus(ask: Ask, spec: dict[str, Any]) -> tuple[float, float]:
    """CPUs and GPUs that the attempt's own process holds; workers of Ray hold their own.

    Also an elastic job that starts with one worker has it beside its driver, and so has a
    pipeline, of which any stage may have several.
    """
    cluster = spec.get("cluster", {})
    works_alone = spec["kind"] not in ("sweep", "pipeline") and cluster.get("workers", 1) == 1
    return (ask.cpus_per_worker, ask.gpus_per_worker) if works_alone else (0.0, 0.0)


def dump_ask(ask: Ask) -> dict[str, Any]:
    """As the store keeps it, with its sums."""
    return asdict(ask) | {"cpus": ask.cpus, "gpus": ask.gpus}


def load_ask(values: dict[str, Any]) -> Ask:
    """What `dump_ask` gave."""
    names = ("workers", "cpus_per_worker", "gpus_per_worker", "driver_cpus")
    return _shared(*(values[name] for name in names))


@lru_cache(maxsize=4096)
def _shared(*values: Any) -> Ask:
    """One for all jobs that ask for the same: it remembers what it adds up to."""
    return Ask(*values)
