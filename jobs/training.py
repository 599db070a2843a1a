"""Where the ranks of a finetune job run: in this process, or under Ray Train."""

import json
import math
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

from cluster.home import Surroundings
from cluster.local import RayPlace, ray_ahead, ray_session
from gpt2cls.errors import CheckpointError, NonFiniteLoss
from gpt2cls.training.payload import EVENTS_FILE, STOP_FILE, RankPayload
from jobs.errors import JobFailed, JobStopped
from jobs.joblog import JobLog
from jobs.plan import num_cores
from jobs.progress import shown
from jobs.rank_files import ATTEMPTS_FILE, FAILURE_FILE, RANK_NODES
from jobs.spec import ClusterConfig


def cpus_per_worker(cluster: ClusterConfig) -> float:
    """What one rank may use; the machine divided evenly where the job does not say."""
    return cluster.cpus_per_worker or num_cores() / cluster.max_workers


def ray_for(
    cluster: ClusterConfig, surroundings: Surroundings, *, is_needed: bool | None = None
) -> AbstractContextManager[RayPlace | None]:
    """Ray, started in the background where the job will need it; it is ended with the context."""
    if not (cluster.workers != 1 if is_needed is None else is_needed):
        return nullcontext()
    cpus, ranks = cpus_per_worker(cluster), cluster.max_workers
    return ray_ahead(
        address=surroundings.ray_address,
        num_cpus=max(num_cores(), math.ceil(cpus * ranks)),
        num_gpus=cluster.gpus_per_worker * ranks,
        state_dir=surroundings.home.root,
    )


def train(payload: RankPayload, cluster: ClusterConfig, ray: RayPlace | None, log: JobLog) -> None:
    """Train to the end, showing progress.

    Raises:
        JobStopped: a signal or a stop request ended training early; it can be resumed.
        JobFailed: workers were lost too often, or the loss was not finite.
    """
    job_dir = payload.job_dir
    for left_over in (STOP_FILE, FAILURE_FILE):
        (job_dir / left_over).unlink(missing_ok=True)
    shutil.rmtree(job_dir / RANK_NODES, ignore_errors=True)
    events, attempts = job_dir / EVENTS_FILE, job_dir / ATTEMPTS_FILE
    with stop_on_signal(job_dir / STOP_FILE), shown(events, attempts, log):
        if ray is None:
            _in_this_process(payload)
        else:
            _under_ray(payload, cluster, ray)
    end = last_event(events, "stop")
    if end is None:
        raise JobFailed(f"training ended without saying how; see {log.path}")
    if end["reason"] == "stopped":
        raise JobStopped(f"stopped after step {end['step']}; the checkpoint of that step is kept")


def _in_this_process(payload: RankPayload) -> None:
    from gpt2cls.training.session import run_rank  # torch, which a driver of others does not need

    try:
        run_rank(payload, rank=0, world=1)
    except (NonFiniteLoss, CheckpointError) as error:
        raise JobFailed(str(error)) from error


def _under_ray(payload: RankPayload, cluster: ClusterConfig, ray: RayPlace) -> None:
    # Ray puts its own handlers in place of ours; hence once more, within its session.
    with ray_session(ray), stop_on_signal(payload.job_dir / STOP_FILE):
        from jobs.rank import train_on_ray

        # Not in the main thread: there Ray Train would replace our signal handlers.
        in_a_thread(
            lambda: train_on_ray(
                payload.model_dump(mode="json"),
                workers=cluster.workers,
                cpus_per_worker=cpus_per_worker(cluster),
                gpus_per_worker=cluster.gpus_per_worker,
                retries=cluster.retries,
            )
        )
    shutil.rmtree(payload.job_dir / "ray", ignore_errors=True)
    failure = payload.job_dir / FAILURE_FILE
    if failure.exists():
        raise JobFailed(failure.read_text())


def in_a_thread(body: Callable[[], None], poll: Callable[[], None] = lambda: None) -> None:
    """Wait for a thread, looking around five times a second; what it raises is raised here."""
    caught: list[BaseException] = []

    def guarded() -> None:
        try:
            body()
        except BaseException as error:  # raised again below, in the thread that waits
            caught.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)  # short, so that signals are handled meanwhile
        poll()
    if caught:
        raise caught[0]


@contextmanager
def stop_on_signal(stop_file: Path) -> Iterator[None]:
    """SIGINT and SIGTERM ask the ranks to stop at the next step; a second one does not wait."""

    def ask(number: int, frame: FrameType | None) -> None:
        if stop_file.exists():
            raise KeyboardInterrupt
        stop_file.touch()

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def last_event(events: Path, kind: str) -> dict[str, Any] | None:
    """The newest event of a kind, if there is one."""
    found = None
    if events.exists():
        with events.open() as file:
            for line in file:
                event = json.loads(line)
                if event["kind"] == kind:
                    found = event
    return found
