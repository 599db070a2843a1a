"""Hands attempts to a cluster and asks them to leave, in threads: both may take long."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from cluster.ray_api import RayApi, RayFaultError, RayRefusedError, RayUnreachableError
from jobs.clock import SteadyClock
from jobs.queue_store import Attempt
from jobs.store import Job

_THREADS = 8
_ASK_AGAIN_S = 15.0


class Launcher:
    """What was asked of the cluster, by submission; everything may be asked twice.

    Args:
        launch: writes the job's folder and submits the attempt.
        clock: for the pauses between two requests to leave.
    """

    def __init__(self, launch: Callable[[Job, Attempt, RayApi], None], clock: SteadyClock) -> None:
        self._launch, self._clock = launch, clock
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="ray")
        self._starts: dict[str, Future[None]] = {}
        self._stops: dict[str, tuple[float, Future[None]]] = {}

    def start(self, job: Job, attempt: Attempt, ray: RayApi) -> None:
        """Hand it over, unless that is under way."""
        if not self.is_starting(attempt):
            future = self._pool.submit(self._launch, job, attempt, ray)
            self._starts[attempt.submission_id] = future

    def is_starting(self, attempt: Attempt) -> bool:
        """Whether the cluster may get it at any moment."""
        future = self._starts.get(attempt.submission_id)
        return future is not None and not future.done()

    def fault_of(self, attempt: Attempt) -> tuple[str, str] | None:
        """Why the last try to hand it over cannot have worked, as `judge_unstarted` takes it."""
        future = self._starts.get(attempt.submission_id)
        error = future.exception() if future is not None and future.done() else None
        if error is None or isinstance(error, RayUnreachableError):
            return None
        if isinstance(error, RayRefusedError):
            return "setup", str(error)
        cause = "service" if isinstance(error, RayFaultError | OSError) else "internal"
        return cause, f"it could not be handed to the cluster: {error or type(error).__name__}"

    def ask_to_leave(self, attempt: Attempt, ray: RayApi) -> None:
        """Ray sends SIGTERM, and after its grace SIGKILL; asked anew where that has no effect."""
        now, name = self._clock.unix_s(), attempt.submission_id
        if (before := self._stops.get(name)) is not None:
            asked_unix_s, future = before
            has_failed = future.done() and future.exception() is not None
            if not has_failed and (not future.done() or now - asked_unix_s < _ASK_AGAIN_S):
                return
        self._stops[name] = now, self._pool.submit(ray.stop, name)

    def forget(self, attempt: Attempt) -> None:
        """It has ended."""
        self._starts.pop(attempt.submission_id, None)
        self._stops.pop(attempt.submission_id, None)

    def close(self) -> None:
        """Nothing new is asked; what is under way ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)
