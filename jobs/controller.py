"""The loop that brings about what was wished: looks at the store, at Ray and at the jobs' folders.

It decides nothing itself: `jobs.schedule` says what starts, `jobs.lifecycle` what follows from what
is seen. What it decides is written before it is done, and can be done twice.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from cluster.home import Home
from cluster.ray_api import RayApi, RayJob, RayRefusedError, RayUnreachableError
from jobs import attempt_files
from jobs.asks import load_ask
from jobs.clock import SteadyClock
from jobs.lifecycle import Budget, Seen, Verdict, judge, retry_delay_s
from jobs.queue_config import QueueConfig
from jobs.queue_store import (
    Attempt,
    QueueStore,
    add_attempt,
    add_event,
    change,
    change_attempt,
    move,
)
from jobs.schedule import Node, Running, Turn, Waiting, next_turn
from jobs.states import AT_WORK, FINAL, LIVE, RUN_STATUS, WAITING, State
from jobs.store import Job

BY_CONTROLLER = "controller"
_TURN_EVERY_S = 1.0  # where nothing seems to have changed


@dataclass(frozen=True)
class ClusterView:
    """What the cluster answered in one look; None: it did not."""

    session: str
    nodes: list[Node]
    jobs: Mapping[str, RayJob]


class Controller:
    """One holder of the lease. `round` is called again and again, from one thread."""

    def __init__(
        self,
        home: Home,
        queue: QueueStore,
        ray: RayApi | None,
        config: QueueConfig,
        *,
        lease: int,
        launch: Callable[[Job, Attempt, RayApi], None],
        clock: SteadyClock,
        say: Callable[[str], None],
    ) -> None:
        self.home, self.queue, self.ray, self.config = home, queue, ray, config
        self.lease, self.launch, self.clock, self.say = lease, launch, clock, say
        self.nodes: list[Node] = []
        """As the cluster last told them."""
        self.is_draining = False
        """Nothing is started any more; what runs is asked to leave."""
        self.why: dict[str, str] = {}
        """Why each job that waits does so."""
        self.seen_unix_s: float | None = None
        """When the cluster last answered."""
        self._signs: dict[str, tuple[float, float]] = {}
        self._asked: dict[str, Future[None]] = {}
        self._pool = ThreadPoolExecutor(8, thread_name_prefix="ray")
        self._rng = Random()
        self._last_s = time.monotonic()
        self._next_turn_s = 0.0
        self._turn_state: tuple[Any, ...] = ()

    def round(self) -> None:
        """Look once, and do what follows."""
        view = self._look()
        passed_s, self._last_s = time.monotonic() - self._last_s, time.monotonic()
        jobs = self.queue.of_queue(states=AT_WORK)
        attempts = self.queue.live_attempts()
        for job in jobs:
            if (attempt := attempts.get(job.id)) is not None:
                with suppress(_ChangedMeanwhileError):
                    self._attend(job, attempt, view, passed_s)
        if self._is_turn_due(view):
            self._take_turn(view)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _look(self) -> ClusterView | None:
        if self.ray is None:
            return None
        try:
            _, session = self.ray.version()
            jobs = self.ray.jobs()
            nodes = [Node(node.id, node.cpus, node.gpus) for node in self.ray.nodes()]
        except RayUnreachableError:
            return None
        self.nodes, self.seen_unix_s = nodes, self.clock.unix_s()
        return ClusterView(session, nodes, jobs)

    # What is at work.

    def _attend(
        self, job: Job, attempt: Attempt, view: ClusterView | None, passed_s: float
    ) -> None:
        seen = self._seen(job, attempt, view)
        budget = Budget(job.num_lost, self._retries(job))
        if (verdict := judge(seen, job.wish, budget)) is not None:
            self._end(job, attempt, seen, verdict, passed_s)
            return
        self._note_reach(job, view)
        if view is None:
            return
        if seen.ray is None:
            self._launch(job, attempt)
            return
        self._note_progress(job, attempt, seen, view, passed_s)
        if job.wish is not None or self._limit_reached(job, attempt, seen):
            self._ask_to_leave(attempt)

    def _seen(self, job: Job, attempt: Attempt, view: ClusterView | None) -> Seen:
        folder = attempt_files.attempt_dir(self.home.job_dir(job.id), attempt.number)
        return Seen(
            is_reachable=view is not None,
            ray=view.jobs.get(attempt.submission_id) if view else None,
            is_confirmed=attempt.session is not None,
            end=attempt_files.read_end(folder),
            has_begun=attempt_files.process_of(folder) is not None,
            is_gone=attempt_files.is_gone(folder),
        )

    def _retries(self, job: Job) -> int:
        return int(job.limits.get("retries", 0))

    def _end(
        self, job: Job, attempt: Attempt, seen: Seen, verdict: Verdict, passed_s: float
    ) -> None:
        now = self.clock.unix_s()
        reason = f"{job.reason}: {verdict.reason}" if job.wish == "preempt" else verdict.reason
        seconds = max(attempt.seconds + passed_s, seen.end.seconds if seen.end else 0.0)
        values: dict[str, Any] = {"num_lost": verdict.num_lost, "unseen_since_unix_s": None}
        if verdict.state in WAITING:
            values["wish"] = None
        if verdict.state is State.RETRYING:
            delay_s = retry_delay_s(verdict.num_lost, self._rng)
            values["not_before_unix_s"] = now + delay_s
        with self.queue.acting(self.lease) as db:
            change_attempt(
                db,
                attempt,
                ended_unix_s=now,
                seconds=seconds,
                cause=verdict.cause,
                reason=reason[:2000],
            )
            if not move(db, job, verdict.state, reason, BY_CONTROLLER, now, **values):
                raise _ChangedMeanwhileError(job.id)
        self._signs.pop(job.id, None)
        self._asked.pop(attempt.submission_id, None)
        if verdict.state is not State.SUCCEEDED:
            self._end_record(job, verdict.state)
        self._say(job, verdict.state, reason)

    def _end_record(self, job: Job, state: State) -> None:
        """Nothing runs, so the job's MLflow run must not say that something does."""
        from jobs.record import end_left_over

        status = RUN_STATUS[state] if state in FINAL else "KILLED"
        end_left_over(self.home.job_dir(job.id), status)

    def _note_reach(self, job: Job, view: ClusterView | None) -> None:
        is_unseen = view is None and self._unseen_s() > self.config.unreachable_note_s
        if is_unseen and job.unseen_since_unix_s is None:
            since = self.seen_unix_s or self.clock.unix_s()
            with self.queue.acting(self.lease) as db:
                change(db, job, unseen_since_unix_s=since)
        elif view is not None and job.unseen_since_unix_s is not None:
            with self.queue.acting(self.lease) as db:
                change(db, job, unseen_since_unix_s=None)

    def _unseen_s(self) -> float:
        return self.clock.unix_s() - (self.seen_unix_s or self.clock.started_unix_s)

    def _note_progress(
        self, job: Job, attempt: Attempt, seen: Seen, view: ClusterView, passed_s: float
    ) -> None:
        assert seen.ray is not None
        values: dict[str, Any] = {"seconds": attempt.seconds + passed_s}
        if attempt.session is None:
            values["session"] = view.session
        if attempt.node is None and seen.ray.node:
            values["node"] = seen.ray.node
        with self.queue.acting(self.lease) as db:
            change_attempt(db, attempt, **values)
            if job.state is State.STARTING and seen.has_begun:
                node = f"on node {seen.ray.node[:12]}" if seen.ray.node else ""
                now = self.clock.unix_s()
                changed = {"started_unix_s": job.started_unix_s or now}
                if move(db, job, State.RUNNING, node, BY_CONTROLLER, now, **changed):
                    self._say(job, State.RUNNING, node)
            elif job.wish is not None and job.state is not State.STOPPING:
                reason = {"stop": "stop asked for", "preempt": job.reason}.get(job.wish, job.reason)
                if move(db, job, State.STOPPING, reason, BY_CONTROLLER, self.clock.unix_s()):
                    self._say(job, State.STOPPING, reason)

    def _limit_reached(self, job: Job, attempt: Attempt, seen: Seen) -> bool:
        """Whether the job is over one of its limits; the wish that follows is written down."""
        run_within_s = job.limits.get("run_within_s")
        no_progress_s = self.config.no_progress_s
        wish = None
        if run_within_s is not None and attempt.seconds > run_within_s:
            wish, reason = "time_limit", f"it has run for {run_within_s:g} s, its time limit"
        elif seen.has_begun and no_progress_s and self._idle_s(job) > no_progress_s:
            wish, reason = "no_progress", f"no sign of progress for {no_progress_s:g} s"
        if wish is None:
            return False
        with self.queue.acting(self.lease) as db:
            done = change(db, job, wish=wish, reason=reason)
        if done:
            self._say(job, job.state, reason)
        return done

    def _idle_s(self, job: Job) -> float:
        """Seconds since anything was last written in the job's folder."""
        sign = newest_sign(self.home.job_dir(job.id))
        before = self._signs.get(job.id)
        if before is None or before[0] != sign:
            self._signs[job.id] = before = (sign, time.monotonic())
        return time.monotonic() - before[1]

    def _ask_to_leave(self, attempt: Attempt) -> None:
        """Ray sends SIGTERM, and after its grace SIGKILL; asked once."""
        ray = self.ray
        assert ray is not None
        name = f"stop {attempt.submission_id}"
        asked = self._asked.get(name)
        if asked is None or (asked.done() and asked.exception() is not None):
            self._asked[name] = self._pool.submit(ray.stop, attempt.submission_id)

    # What waits.

    def _is_turn_due(self, view: ClusterView | None) -> bool:
        """Whether anything may have changed; to weigh thousands of jobs takes its time."""
        state = (self.queue.newest_event(), view.nodes if view else None, self.is_draining)
        is_late = time.monotonic() > self._next_turn_s
        if state == self._turn_state and not is_late:
            return False
        self._turn_state = state
        return True

    def _take_turn(self, view: ClusterView | None) -> None:
        started_s = time.monotonic()
        jobs = self._end_hopeless(self.queue.of_queue())
        if view is None or not view.nodes:
            self.why = {job.id: "no cluster answers" for job in jobs if job.state in WAITING}
        elif self.is_draining:
            self.why = {job.id: "the cluster is shut down" for job in jobs if job.state in WAITING}
        else:
            self._start(jobs, view)
        took_s = time.monotonic() - started_s
        self._next_turn_s = time.monotonic() + max(_TURN_EVERY_S, 10 * took_s)

    def _end_hopeless(self, jobs: list[Job]) -> list[Job]:
        """The jobs without those that can start no more: too late, or after one that failed."""
        now, left = self.clock.unix_s(), []
        for job in jobs:
            reason = self._hopeless(job, now) if job.state in WAITING else ""
            if not reason:
                left.append(job)
                continue
            with self.queue.acting(self.lease) as db:
                if move(db, job, State.FAILED, reason, BY_CONTROLLER, now):
                    self._say(job, State.FAILED, reason)
        return left

    def _hopeless(self, job: Job, now: float) -> str:
        within_s = job.limits.get("start_within_s")
        is_new = job.num_attempts == 0
        if within_s is not None and is_new and now - job.created_unix_s > within_s:
            return f"it did not start within {within_s:g} s: {self.why.get(job.id, 'its turn')}"
        for parent, on in self._parents(job):
            if on == "success" and parent.state in FINAL - {State.SUCCEEDED}:
                return f"it comes after job {parent.id}, which is {parent.state}"
        return ""

    def _parents(self, job: Job) -> list[tuple[Job, str]]:
        return [(self.queue.store.get(one["job"]), one["on"]) for one in job.after]

    def _start(self, jobs: list[Job], view: ClusterView) -> None:
        waiting = [self._waiting(job) for job in jobs if job.state in WAITING]
        running = [
            Running(
                id=job.id,
                user=job.user,
                queue=job.queue,
                priority=job.priority,
                order=job.request or 0,
                ask=load_ask(job.ask),
                is_leaving=job.wish is not None or job.state is State.STOPPING,
            )
            for job in jobs
            if job.state in AT_WORK
        ]
        turn = next_turn(waiting, running, view.nodes, self.config.policy())
        self.why = turn.why
        self._carry_out(turn, {job.id: job for job in jobs})

    def _waiting(self, job: Job) -> Waiting:
        return Waiting(
            id=job.id,
            user=job.user,
            queue=job.queue,
            priority=job.priority,
            order=job.request or 0,
            ask=load_ask(job.ask),
            blocked=self._blocked(job),
            num_passed=job.num_passed,
        )

    def _blocked(self, job: Job) -> str:
        for parent, _ in self._parents(job):
            if parent.state in LIVE:
                return f"after job {parent.id}, which is {parent.state}"
        wait_s = (job.not_before_unix_s or 0.0) - self.clock.unix_s()
        # More than any pause of ours: the clock was set meanwhile.
        return f"tried again in {wait_s:.0f} s" if 0 < wait_s <= 60 else ""

    def _carry_out(self, turn: Turn, jobs: Mapping[str, Job]) -> None:
        now = self.clock.unix_s()
        for job_id in turn.passed:
            with self.queue.acting(self.lease) as db:
                num = self.queue.store.get(job_id).num_passed
                change(db, jobs[job_id], num_passed=num + 1)
        for job_id, for_whom in turn.preempts.items():
            reason = f"makes room for job {for_whom}"
            with self.queue.acting(self.lease) as db:
                if change(db, jobs[job_id], wish="preempt", reason=reason):
                    add_event(db, jobs[job_id], jobs[job_id].state, reason, BY_CONTROLLER, now)
        for job_id in turn.starts:
            job = jobs[job_id]
            with self.queue.acting(self.lease) as db:
                number = job.num_attempts + 1
                values = {"num_attempts": number, "not_before_unix_s": None, "num_passed": 0}
                reason = f"attempt {number}"
                if not move(db, job, State.STARTING, reason, BY_CONTROLLER, now, **values):
                    continue
                add_attempt(db, job, now)
            self._say(job, State.STARTING, reason)
            started = self.queue.store.get(job_id)
            self._launch(started, self.queue.live_attempts()[job_id])

    def _launch(self, job: Job, attempt: Attempt) -> None:
        """Hand an attempt to Ray, in a thread of its own; asked again until Ray knows it."""
        before = self._asked.get(attempt.submission_id)
        if before is not None and not before.done():
            return
        if before is not None and isinstance(before.exception(), RayRefusedError):
            self._refused(job, attempt, str(before.exception()))
            return
        assert self.ray is not None
        self._asked[attempt.submission_id] = self._pool.submit(self.launch, job, attempt, self.ray)

    def _refused(self, job: Job, attempt: Attempt, reason: str) -> None:
        verdict = Verdict(State.FAILED, "setup", reason, job.num_lost)
        self._end(job, attempt, Seen(is_reachable=True), verdict, 0.0)

    def drain(self) -> None:
        """Start nothing any more, and send what runs back to the queue, with its checkpoints."""
        self.is_draining = True
        for job in self.queue.of_queue(states=AT_WORK):
            reason = "the cluster is shut down; it goes on when the cluster is up again"
            with self.queue.acting(self.lease) as db:
                if job.wish is None:
                    change(db, job, wish="preempt", reason=reason)

    def _say(self, job: Job, state: State, reason: str) -> None:
        number = f" attempt {job.num_attempts}" if job.num_attempts else ""
        words = f": {reason}" if reason else ""
        self.say(f"job {job.id}{number}: {job.state} -> {state}{words}")


class _ChangedMeanwhileError(RuntimeError):
    """Somebody wished something in this very moment; the next round sees it."""


def newest_sign(job_dir: Path) -> float:
    """When anything was last written by the job: events, its log, what it prints, its trials."""
    newest = 0.0
    patterns = ("events.jsonl", "job.log", "attempts/*/log/*", "trials/*/events.jsonl")
    for pattern in patterns:
        for path in job_dir.glob(pattern):
            try:
                newest = max(newest, path.stat().st_mtime)
            except OSError:
                continue
    return newest


def holder_name() -> str:
    """This process, for people who read the lease."""
    return f"{os.uname().nodename}/{os.getpid()}/{threading.get_ident()}"
