"""The MLflow record of one job: written to a spool at once, delivered by a thread of its own.

Training never waits for MLflow: what is recorded is a line in a file, and a rank's events are
read from the file that the rank writes anyway.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cluster.errors import TrackingError
from cluster.home import Home, Surroundings
from cluster.tracking_server import ensure_server, find_server, tracking_uri
from jobs.deliver import Delivery
from jobs.masking import mask
from jobs.spool import DeliveryLock, Spool, now_ms
from jobs.usage import Usage

_EVERY_S = 1.0
_LONGEST_PAUSE_S = 15.0
_SAMPLE_EVERY_S = 10.0
_SERVER_LATEST_S = 15.0  # a long preparation is to be seen in MLflow, too
_START_UP_S = 60.0  # a server on its way up is nothing to report


class Record:
    """The one MLflow run of a job, however many processes worked on it one after another.

    Only one process has a job's record open (the owner of the job); the methods may be called
    from any of its threads and return at once, except `wait_run_id` and `finish`. With
    `starts_server` the embedded server is started, but not before the first step is made: its
    imports would take a core from the start of training. With `parent_dir` it is a run under that
    of the job in that folder.
    """

    def __init__(
        self,
        job_dir: Path,
        surroundings: Surroundings,
        *,
        job_id: str,
        experiment: str,
        run_name: str | None = None,
        log: Callable[[str], None] = lambda text: None,
        with_usage: bool = True,
        starts_server: bool = False,
        parent_dir: Path | None = None,
    ) -> None:
        self._spool = Spool(job_dir)
        self._surroundings = surroundings
        self._log = log
        self._server_due_s = time.monotonic() + _SERVER_LATEST_S if starts_server else None
        is_resumed = self._spool.path.exists()
        if not self._spool.head():
            self._spool.set_head(
                job_id=job_id,
                experiment=experiment,
                run_name=run_name or job_id,
                start_ms=now_ms(),
                server=mask(surroundings.tracking_uri) if surroundings.tracking_uri else None,
                **({"parent_dir": os.path.relpath(parent_dir, job_dir)} if parent_dir else {}),
            )
        if is_resumed:
            self._spool.reopen()
        self._delivery = Delivery(self._spool, lambda: tracking_uri(surroundings))
        self._routes = [_Route(self._delivery, DeliveryLock(self._spool))]
        self._usage = Usage() if with_usage else None
        self._wake, self._ending, self._told = (threading.Event() for _ in range(3))
        self._num_notes = 0
        self._is_away = False  # and the log says so
        self._thread = threading.Thread(target=self._work, name="record", daemon=True)
        self._thread.start()

    def params(self, values: Mapping[str, Any]) -> None:
        """Settings; `{"train.lr": 0.1}` style, flat. A second value for a name is not taken."""
        self._spool.params(values)

    def tags(self, values: Mapping[str, Any]) -> None:
        self._spool.tags(values)

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """Points that no rank reports, such as `test/accuracy`."""
        self._spool.metrics(values, step=step)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Upload a file or folder as it is when its turn comes; keep it until `finish`."""
        self._spool.artifact(path, folder)

    def child(self, folder: Path, *, job_id: str, run_name: str) -> Spool:
        """The record of a part of this job: a run under this one, delivered along with it.

        The caller writes down its end; `folder` is the part's own, below this job's.
        """
        spool = Spool(folder)
        if spool.head():
            spool.reopen()
        else:
            spool.set_head(
                **{key: self._spool.head()[key] for key in ("experiment", "server")},
                job_id=job_id,
                run_name=run_name,
                start_ms=now_ms(),
                parent_dir=os.path.relpath(self._spool.job_dir, folder),
            )
        self._add(spool)
        return spool

    def part(self, folder: Path, *, job_id: str, run_name: str) -> "Record":
        """The record of a part that is a job by itself: a run under this one.

        Its `end` leaves what has not arrived by then to this record, which is to `follow` it.
        """
        return Record(
            folder,
            self._surroundings,
            job_id=job_id,
            experiment=self._spool.head()["experiment"],
            run_name=run_name,
            log=self._log,
            with_usage=False,
            starts_server=self._server_due_s is not None,
            parent_dir=self._spool.job_dir,
        )

    def end(self, status: str) -> None:
        """Write down the end, and wait for nothing."""
        self._spool.status(status)
        self.close()

    def follow(self, folder: Path) -> None:
        """Deliver what an earlier process wrote down about a part of this job, and could not."""
        spool = Spool(folder)
        if spool.head() and not spool.is_delivered():
            self._add(spool)

    def _add(self, spool: Spool) -> None:
        delivery = Delivery(spool, partial(tracking_uri, self._surroundings))
        self._routes.append(_Route(delivery, DeliveryLock(spool)))

    @property
    def run_id(self) -> str | None:
        """None until the server has answered for the first time."""
        return self._spool.head().get("run_id")

    def wait_run_id(self, timeout_s: float) -> str | None:
        deadline = time.monotonic() + timeout_s
        while self.run_id is None and time.monotonic() < deadline:
            self._wake.set()
            time.sleep(0.1)
        return self.run_id

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was recorded so far has arrived; False if it has not."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self._told.clear()
            self._wake.set()
            self._told.wait(max(0.0, min(1.0, deadline - time.monotonic())))
            if self._is_delivered():
                return True
        return self._is_delivered()

    def _is_delivered(self) -> bool:
        return all(route.spool.is_delivered() for route in list(self._routes))

    def finish(self, status: str, timeout_s: float) -> bool:
        """Write down the end (FINISHED, FAILED, KILLED) and deliver everything.

        Returns:
            True if all of it arrived; else it stays on disk for `deliver_pending`.
        """
        if self._usage:
            self._sample()
        self._spool.status(status)
        if self._surroundings.tracking_uri is None:
            ensure_server(self._surroundings.home)  # it may have been ended under the job
        arrived = self.flush(timeout_s)
        self.close()
        return arrived

    def close(self) -> None:
        """Stop delivering. What did not arrive stays on disk."""
        self._ending.set()
        self._wake.set()
        self._thread.join(timeout=5)  # it may be inside a request; then it ends with the process
        self._spool.close()

    def _work(self) -> None:
        began, pause_s = time.monotonic(), _EVERY_S
        next_sample = began + _SAMPLE_EVERY_S
        while not self._ending.is_set():
            self._wake.wait(pause_s)
            self._wake.clear()
            if self._usage and time.monotonic() >= next_sample:
                next_sample = time.monotonic() + _SAMPLE_EVERY_S
                self._sample()
            try:
                self._start_server_when_due()
                self._deliver()
                self._is_away, pause_s = False, _EVERY_S
            except (TrackingError, OSError) as error:
                is_starting = self.run_id is None and time.monotonic() - began < _START_UP_S
                if not self._is_away and not is_starting:
                    self._log(f"record: {error}; what is recorded waits in {self._spool.folder}")
                    self._is_away = True
                pause_s = min(_LONGEST_PAUSE_S, pause_s * 1.5)
            self._pass_on_notes()
            self._told.set()
        for route in self._routes:
            route.lock.release()

    def _deliver(self) -> None:
        """Everything there is now, the job's own run first: those of its parts lie under it."""
        for route in list(self._routes):
            if route.lock.take():
                route.delivery.run()
            if route.is_done and route.delivery is not self._delivery:
                route.spool.close()
                route.lock.release()
                self._routes.remove(route)

    def _start_server_when_due(self) -> None:
        due_s = self._server_due_s
        if due_s is not None and (time.monotonic() >= due_s or _has_step(self._spool.events_path)):
            self._server_due_s = None
            ensure_server(self._surroundings.home)

    def _sample(self) -> None:
        assert self._usage is not None, "asked for only with usage"
        seconds = (now_ms() - int(self._spool.head()["start_ms"])) // 1000
        self._spool.metrics(self._usage.sample(), step=seconds)

    def _pass_on_notes(self) -> None:
        for note in self._delivery.notes[self._num_notes :]:
            self._log(f"record: {note}")
        self._num_notes = len(self._delivery.notes)


@dataclass(frozen=True)
class _Route:
    """One spool on its way, and the right to deliver it."""

    delivery: Delivery
    lock: DeliveryLock

    @property
    def spool(self) -> Spool:
        return self.delivery.spool

    @property
    def is_done(self) -> bool:
        return bool(self.spool.head().get("ended")) and self.spool.is_delivered()


def _has_step(events: Path) -> bool:
    return events.exists() and b'"kind": "step"' in events.read_bytes()


def run_page(job_dir: Path, surroundings: Surroundings) -> str | None:
    """Where a job's run can be looked at now; None: it has none, or no server runs."""
    spool = Spool(job_dir)
    uri = _server_of(spool.head(), surroundings)
    return spool.page(mask(uri)) if uri else None


def deliver_pending(
    surroundings: Surroundings, job_ids: Iterable[str] | None = None
) -> dict[str, str]:
    """Deliver what ended processes left on disk; starts no server.

    Returns:
        For each job whose record still waits, why. Jobs whose owner delivers now are left alone.
    """
    home = surroundings.home
    folders = (
        [home.job_dir(job_id) for job_id in job_ids]
        if job_ids is not None
        else sorted(path.parent for path in home.jobs.glob("*/record"))
    )
    waiting = {}
    for folder in (part for job in folders for part in (job, *parts_of(job))):
        spool = Spool(folder)
        if spool.head() and not spool.is_delivered():
            why = _deliver_left_over(spool, surroundings)
            if why:
                waiting[spool.head()["job_id"]] = why
    return waiting


def parts_of(job_dir: Path) -> list[Path]:
    """The folders of a job's parts that have a record of their own: trials, or stages."""
    records = (*job_dir.glob("trials/*/record"), *job_dir.glob("stages/*/record"))
    return sorted(path.parent for path in records)


def _deliver_left_over(spool: Spool, surroundings: Surroundings) -> str | None:
    lock = DeliveryLock(spool)
    if not lock.take():
        return None
    try:
        Delivery(spool, lambda: _server_of(spool.head(), surroundings)).run()
    except TrackingError as error:
        return str(error)
    finally:
        lock.release()
    return None


def _server_of(head: Mapping[str, Any], surroundings: Surroundings) -> str | None:
    """The server a job was recorded on, which need not be the one that serves now."""
    recorded = head.get("server")
    if recorded is None:
        return _embedded_uri(surroundings.home)
    now = surroundings.tracking_uri
    # The address on disk is masked; where it matches, the environment has the whole one.
    return now if now and mask(now) == recorded else str(recorded)


def _embedded_uri(home: Home) -> str | None:
    server = find_server(home)
    return server.uri if server else None


def end_left_over(job_dir: Path, status: str) -> str | None:
    """Write down the end of a job whose process could not, for `deliver_pending` to tell.

    Parts that were still at work were ended from outside: KILLED.

    Returns:
        The id of its run, if it has one and was not ended yet.
    """
    for part in parts_of(job_dir):
        end_left_over(part, "KILLED")
    spool = Spool(job_dir)
    head = spool.head()
    if not head or head.get("ended"):
        return None
    spool.status(status)
    spool.close()
    return head.get("run_id")
