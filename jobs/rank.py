"""Data-parallel ranks under Ray Train: the only file that imports ray.train.

Checkpoints, metrics and the stop request travel through files of the job's folder, not through
`ray.train.report`: a report is a barrier that costs a quarter of a second, and Train forgets a
complete checkpoint that was written just before a kill. A restarted group of workers scans the
folder for the newest whole checkpoint and goes on from there.

Much of what Train starts for every run, and imports in every process, is for features that are
not used here, and each process costs a second or two of a core before the first step. So the
trainer below starts the controller, the barrier that Train needs, and the ranks; torch is imported
by the ranks alone (`ray.train.torch` would have the driver and the controller import it as well).
"""

import json
import os
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, UserCallback
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from jobs.errors import JobFailed, JobUnplaced
from jobs.rank_files import ATTEMPTS_FILE, FAILURE_FILE, RANK_NODES

_COLLECTIVE_TIMEOUT_S = 1800.0


def train_worker(payload: dict[str, Any]) -> None:
    """Run one rank from the start, or from the last checkpoint, to the end."""
    import torch.distributed as dist

    from gpt2cls.errors import CheckpointError, NonFiniteLoss, RequestError
    from gpt2cls.training.payload import RankPayload
    from gpt2cls.training.session import run_rank

    context = ray.train.get_context()
    node = Path(payload["job_dir"], RANK_NODES, str(context.get_world_rank()))
    node.parent.mkdir(exist_ok=True)
    node.write_text(ray.get_runtime_context().get_node_id())
    # Where the ranks meet is in the environment; see _ProcessGroupBackend.
    dist.init_process_group(
        os.environ["GPT2CLS_BACKEND"],
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        timeout=timedelta(seconds=_COLLECTIVE_TIMEOUT_S),
    )
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
    dist.destroy_process_group()


@dataclass
class _ProcessGroup(BackendConfig):  # type: ignore[misc]
    """How the ranks reach each other: "gloo" or "nccl"."""

    backend: str

    @property
    def backend_cls(self) -> type[Backend]:
        return _ProcessGroupBackend


class _ProcessGroupBackend(Backend):  # type: ignore[misc]
    """Tells every rank where to meet; they form the group themselves, in `train_worker`."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: _ProcessGroup) -> None:
        address, port = worker_group.execute_single(0, get_address_and_port)
        worker_group.execute(_set_meeting_point, address, port, backend_config.backend)


def _set_meeting_point(address: str, port: int, backend: str) -> None:
    os.environ |= {
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "GPT2CLS_BACKEND": backend,
    }


class _Workers(WorkerGroup):  # type: ignore[misc]
    @staticmethod
    def _get_worker_runtime_env(custom_runtime_env: Any) -> Any:
        """Nothing but what was asked for.

        A process with an environment of its own is started by way of another process that
        imports Ray too, and cannot be one of those that Ray has started ahead.
        """
        return custom_runtime_env


class _Controller(TrainController):  # type: ignore[misc]
    worker_group_cls = _Workers

    def __init__(self, settings: dict[str, str], **options: Any) -> None:
        os.environ.update(settings)
        super().__init__(**options)


class _FixedPolicy(FixedScalingPolicy):  # type: ignore[misc]
    """So many workers; the placement group alone asks for room, as it does of an autoscaler."""

    def after_controller_start(self, train_run_context: Any) -> None:
        return

    def _maybe_send_resource_request(self) -> None:
        return


class _Trainer(DataParallelTrainer):  # type: ignore[misc]
    """Ray's trainer without the processes that nothing here needs."""

    def _create_default_callbacks(self) -> list[Any]:
        # There are no datasets of Ray's; and where a controller dies, the driver ends as well,
        # with which Ray gives back the placement group.
        needless = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [c for c in super()._create_default_callbacks() if not isinstance(c, needless)]

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        policy = options["scaling_policy"]
        if type(policy) is FixedScalingPolicy:
            options["scaling_policy"] = _FixedPolicy(policy.scaling_config)
        node = {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
        make = ray.remote(num_cpus=0, label_selector=node)(_Controller)
        controller = make.remote(get_env_vars_to_propagate(), **options)
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())


class _Attempts(UserCallback):  # type: ignore[misc]
    """Writes down, where the driver sees it, which workers were lost and why."""

    def __init__(self, job_dir: str) -> None:
        self.path = Path(job_dir) / ATTEMPTS_FILE

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        # Where one has died, the others fail because they wait for it.
        died = {rank: error for rank, error in worker_exceptions.items() if _has_died(error)}
        lost = {
            str(rank): str(error).strip().splitlines()[-1][:500] or type(error).__name__
            for rank, error in (died or worker_exceptions).items()
        }
        with self.path.open("a") as file:
            file.write(json.dumps({"time_ms": time.time_ns() // 1_000_000, "lost": lost}) + "\n")


def _has_died(error: Exception) -> bool:
    return isinstance(getattr(error, "health_check_failure", error), RayActorError)


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
        JobUnplaced: the workers could not be started.
        JobFailed: they were lost too often.
    """
    job_dir = Path(payload["job_dir"])
    resources = {"CPU": cpus_per_worker} | ({"GPU": gpus_per_worker} if gpus_per_worker else {})
    trainer = _Trainer(
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
        backend_config=_ProcessGroup("nccl" if gpus_per_worker else "gloo"),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise _fault(error) from error


def _fault(error: TrainingFailedError) -> JobFailed:
    failures = getattr(error, "worker_failures", None)
    if failures:
        words = "; ".join(
            f"rank {rank}: {str(failure).strip().splitlines()[-1][:300]}"
            for rank, failure in sorted(failures.items())
        )
        return JobFailed(
            f"the workers failed more often than cluster.retries allows; last: {words}"
        )
    cause = str(error).strip().splitlines()[-1][:300]
    return JobUnplaced(f"the workers could not be started: {cause}")
