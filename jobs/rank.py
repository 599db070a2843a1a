"""Data-parallel ranks under Ray Train: the only file that imports ray.train.

Checkpoints, metrics and the stop request travel through files of the job's folder, not through
`ray.train.report`: a report is a barrier that costs a quarter of a second, and Train forgets a
complete checkpoint that was written just before a kill. A restarted group of workers scans the
folder for the newest whole checkpoint and goes on from there.
"""

import json
import time
from pathlib import Path
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from jobs.errors import JobFailed

ATTEMPTS_FILE = "attempts.jsonl"
FAILURE_FILE = "failure.txt"


def train_worker(payload: dict[str, Any]) -> None:
    """Run one rank from the start, or from the last checkpoint, to the end."""
    import ray.train

    from gpt2cls.errors import CheckpointError, NonFiniteLoss, RequestError
    from gpt2cls.training.payload import RankPayload
    from gpt2cls.training.session import run_rank

    context = ray.train.get_context()
    try:
        run_rank(
            RankPayload.model_validate(payload),
            rank=context.get_world_rank(),
            world=context.get_world_size(),
            local_rank=context.get_local_rank(),
        )
    except (NonFiniteLoss, RequestError, CheckpointError) as error:
        # All ranks raise these together, and another attempt would too: told, not retried.
        if context.get_world_rank() == 0:
            Path(payload["job_dir"], FAILURE_FILE).write_text(str(error))


class _Attempts(UserCallback):  # type: ignore[misc]
    """Writes down, where the driver sees it, which workers were lost and why."""

    def __init__(self, job_dir: str) -> None:
        self.path = Path(job_dir) / ATTEMPTS_FILE

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        lost = {
            str(rank): str(error).strip().splitlines()[-1][:500] or type(error).__name__
            for rank, error in worker_exceptions.items()
        }
        with self.path.open("a") as file:
            file.write(json.dumps({"time_ms": time.time_ns() // 1_000_000, "lost": lost}) + "\n")


def train_on_ray(
    payload: dict[str, Any],
    *,
    workers: int | tuple[int, int],
    cpus_per_worker: float,
    gpus_per_worker: float,
    retries: int,
) -> None:
    """Train on `workers` ranks, replacing lost ones up to `retries` times.

    Raises:
        JobFailed: the workers could not be started, or were lost too often.
    """
    job_dir = Path(payload["job_dir"])
    resources = {"CPU": cpus_per_worker} | ({"GPU": gpus_per_worker} if gpus_per_worker else {})
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=payload,
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=f"{job_dir.name}-{time.time_ns()}",  # a name used twice would resume a run
            storage_path=str(job_dir / "ray"),
            failure_config=FailureConfig(max_failures=retries, controller_failure_limit=2),
            callbacks=[_Attempts(str(job_dir))],
        ),
        torch_config=TorchConfig(backend="nccl" if gpus_per_worker else "gloo"),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise JobFailed(_why(error)) from error


def _why(error: TrainingFailedError) -> str:
    failures = getattr(error, "worker_failures", None)
    if failures:
        words = "; ".join(
            f"rank {rank}: {str(failure).strip().splitlines()[-1][:300]}"
            for rank, failure in sorted(failures.items())
        )
        return f"the workers failed more often than cluster.retries allows; last: {words}"
    return f"the workers could not be started: {str(error).strip().splitlines()[-1][:300]}"
