"""The loop that brings about what was wished: looks at the store, at Ray and at the jobs' folders.

It decides nothing itself: `jobs.schedule` says what starts, `jobs.lifecycle` what follows from what
is seen. What it decides is written before it is done, and can be done twice.
"""

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from cluster.home import Home
from cluster.ray_api import RayApi
from cluster.ray_head import STOP_WAIT_S
from jobs.asks import load_ask
from jobs.attempt_files import (
    attempt_dir,
    gcs_address_of,
    is_alive,
    is_gone,
    memory_ran_out,
    nodes_of_ranks,
    process_of,
    read_end,
    say_end,
    send_signal,
    sign_of_life,
)
from jobs.clock import SteadyClock
from jobs.launcher import Launcher
from jobs.lifecycle import (
    RETRIED,
    Budget,
    End,
    Seen,
    Verdict,
    judge,
    judge_unstarted,
    retry_delay_s,
)
from jobs.lookout import ClusterView, Lookout
from jobs.masking import mask
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
_GONE_S = 5.0  # in which Ray, which knows how a process died, may say so
_LONGEST_DELAY_S = 60.0
_SHUT_DOWN = "the cluster is shut down; it goes on when the cluster is up again"


@dataclass
class _Watch:
    """What was noticed of an attempt, by the controller's own clock."""

    counted_unix_s: float | None = None
    """Up to when its seconds are counted."""
    begun_unix_s: float | None = None
    gone_unix_s: float | None = None
    asked_unix_s: float | None = None
    """When its process was asked to leave by a signal of ours."""
    sign: int | None = None
    sign_unix_s: float = 0.0


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
        self.lease, self.clock, self.say = lease, clock, say
        self.nodes: list[Node] = []
        """As the cluster last told them."""
        self.why: dict[str, str] = {}
        """Why each job that waits does so."""
        self.seen_unix_s: float | None = None
        """When the cluster last answered."""
        self.is_draining = False
        self.lookout, self.launcher = Lookout(clock), Launcher(launch, clock)
        self._watches: dict[str, _Watch] = {}
        self._faults: dict[str, str] = {}
        self._rng = Random()
        self._next_turn_unix_s = (0.0, 0.0)
        """Where something has changed, so that requests find the processor free; where not."""
        self._turn_state: tuple[Any, ...] = ()

    def round(self) -> None:
        """Look once, and do what follows."""
        view = self._look()
        attempts = self.queue.live_attempts()
        for job in self.queue.of_queue(states=AT_WORK):
            if (attempt := attempts.get(job.id)) is not None:
                self._attend_alone(job, attempt, view)
        if self._is_turn_due(view):
            self._take_turn(view)

    def drain(self) -> None:
        """From the next round on start nothing any more, and send what runs back to the queue."""
        self.is_draining = True

    def close(self) -> None:
        self.lookout.close()
        self.launcher.close()

    def _look(self) -> ClusterView | None:
        view = self.lookout.look(self.ray)
        if view is not None:
            self.nodes, self.seen_unix_s = view.nodes, self.clock.unix_s()
        return view

    # What is at work.

    def _attend_alone(self, job: Job, attempt: Attempt, view: ClusterView | None) -> None:
        """Attend to a job so that what is wrong with its files holds up no other one."""
        try:
            self._attend(job, attempt, view)
            self._faults.pop(job.id, None)
        except _ChangedMeanwhileError:
            return
        except (OSError, ValueError, TypeError, LookupError) as error:
            words = f"job {job.id}: not attended to: {type(error).__name__}: {mask(str(error))}"
            if self._faults.get(job.id) != words:
                self.say(words)
            self._faults[job.id] = words

    def _attend(self, job: Job, attempt: Attempt, view: ClusterView | None) -> None:
        seen = self._seen(job, attempt, view)
        if (verdict := judge(seen, job.wish, _budget(job))) is not None:
            self._end(job, attempt, seen, verdict)
            return
        self._note_reach(job, view)
        if seen.ray is not None and (address := gcs_address_of(self._folder(attempt))):
            self.lookout.gcs_address = address
        if self.is_draining and job.wish is None:
            self._wish_to_leave(job, "preempt", _SHUT_DOWN)
        elif view is not None and seen.ray is None and not seen.is_alive:
            self._see_to_start(job, attempt, seen)
        elif view is not None:
            self._note_progress(job, attempt, seen, view)
            if job.wish is not None or self._must_leave(job, attempt, seen, view):
                self._ask_to_leave(attempt, seen)

    def _ask_to_leave(self, attempt: Attempt, seen: Seen) -> None:
        if seen.ray is not None and not seen.ray.is_over:
            assert self.ray is not None
            self.launcher.ask_to_leave(attempt, self.ray)
            return
        # A cluster cannot end what it does not know any more.
        watch, now = self._watch(attempt), self.clock.unix_s()
        if watch.asked_unix_s is None:
            watch.asked_unix_s = now
            send_signal(self._folder(attempt), signal.SIGTERM)
        elif now - watch.asked_unix_s > STOP_WAIT_S:
            send_signal(self._folder(attempt), signal.SIGKILL)

    def _seen(self, job: Job, attempt: Attempt, view: ClusterView | None) -> Seen:
        folder, watch = self._folder(attempt), self._watch(attempt)
        has_begun = process_of(folder) is not None
        if has_begun and watch.begun_unix_s is None:
            watch.begun_unix_s = self.clock.unix_s()
        ray = view.jobs.get(attempt.submission_id) if view else None
        end = read_end(folder)
        is_told = end is not None or ray is None or ray.is_over
        return Seen(
            is_reachable=view is not None,
            ray=ray,
            is_confirmed=attempt.session is not None or _began_before(watch, view),
            end=end,
            has_begun=has_begun,
            is_gone=is_gone(folder) and (is_told or self._gone_s(watch) > _GONE_S),
            is_alive=is_alive(folder),
            memory_ran_out=memory_ran_out(folder),
        )

    def _gone_s(self, watch: _Watch) -> float:
        if watch.gone_unix_s is None:
            watch.gone_unix_s = self.clock.unix_s()
        return self.clock.unix_s() - watch.gone_unix_s

    def _end(self, job: Job, attempt: Attempt, seen: Seen, verdict: Verdict) -> None:
        now = self.clock.unix_s()
        is_sent_back = job.wish == "preempt" and verdict.state is State.QUEUED
        reason = mask(f"{job.reason}: {verdict.reason}" if is_sent_back else verdict.reason)
        if verdict.cause in RETRIED and (gone := self._nodes_gone(attempt)):
            reason = f"node {', '.join(gone)} is gone: {reason}"
        values: dict[str, Any] = {"num_lost": verdict.num_lost, "unseen_since_unix_s": None}
        if verdict.state in WAITING:
            values["wish"] = None
        if verdict.state is State.RETRYING:
            delay_s = retry_delay_s(verdict.num_lost, self._rng, cap_s=_LONGEST_DELAY_S)
            values["not_before_unix_s"] = now + delay_s
        with self.queue.acting(self.lease) as db:
            change_attempt(
                db,
                attempt,
                ended_unix_s=now,
                seconds=self._seconds(attempt, seen),
                cause=verdict.cause,
                reason=reason[:2000],
            )
            if not move(db, job, verdict.state, reason, BY_CONTROLLER, now, **values):
                raise _ChangedMeanwhileError(job.id)
        self._watches.pop(attempt.submission_id, None)
        self.launcher.forget(attempt)
        self._say(job, verdict.state, reason)
        self._close_files(job, attempt, verdict)

    def _nodes_gone(self, attempt: Attempt) -> list[str]:
        """Nodes that the attempt used and the cluster has no more, as far as it has told."""
        alive = {node.id for node in self.nodes}
        return sorted(node[:12] for node in self._nodes_of(attempt) - alive) if alive else []

    def _nodes_of(self, attempt: Attempt) -> set[str]:
        """The ids of those it was last seen on, its workers' included."""
        ranks = nodes_of_ranks(self.home.job_dir(attempt.job_id))
        return ranks | {attempt.node} if attempt.node else ranks

    def _seconds(self, attempt: Attempt, seen: Seen) -> float:
        """How long an attempt that is over held its resources."""
        if seen.ray is None and not seen.has_begun and attempt.session is None:
            return 0.0
        counted = attempt.seconds + self._passed_s(attempt)
        return max(counted, seen.end.seconds if seen.end else 0.0)

    def _passed_s(self, attempt: Attempt) -> float:
        """Seconds that were not counted yet; also those in which the cluster did not answer."""
        watch, now = self._watch(attempt), self.clock.unix_s()
        before, watch.counted_unix_s = watch.counted_unix_s or now, now
        return now - before

    def _close_files(self, job: Job, attempt: Attempt, verdict: Verdict) -> None:
        """Whoever comes late finds that the attempt has ended; and so does MLflow."""
        from jobs.record import end_left_over

        if self._folder(attempt).exists():
            words = End(verdict.state, verdict.cause, verdict.reason)
            say_end(self._folder(attempt), words)
        if verdict.state is not State.SUCCEEDED:
            status = RUN_STATUS[verdict.state] if verdict.state in FINAL else "KILLED"
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

    def _see_to_start(self, job: Job, attempt: Attempt, seen: Seen) -> None:
        """Hand an attempt that the cluster does not know to it, unless that cannot or must not be.

        What has begun is there: this view of the cluster is only older.
        """
        if seen.has_begun or self.launcher.is_starting(attempt):
            return
        fault = self.launcher.fault_of(attempt)
        if fault is None and job.wish is not None:
            fault = "stopped", ""
        if fault is None:
            assert self.ray is not None
            self.launcher.start(self.queue.store.get(job.id), attempt, self.ray)
            return
        verdict = judge_unstarted(*fault, job.wish, _budget(job))
        # A request of ours may still be under way inside the cluster: what comes of it, leaves.
        with suppress(OSError):
            say_end(self._folder(attempt), End(State.STOPPED, "stopped", verdict.reason))
        if process_of(self._folder(attempt)) is None:
            self._end(job, attempt, seen, verdict)

    def _note_progress(self, job: Job, attempt: Attempt, seen: Seen, view: ClusterView) -> None:
        values: dict[str, Any] = {"seconds": attempt.seconds + self._passed_s(attempt)}
        node = seen.ray.node if seen.ray is not None else None
        if attempt.session is None and seen.ray is not None:
            values["session"] = view.session
        if attempt.node is None and node:
            values["node"] = node
        where = f"on node {node[:12]}" if node else ""
        with self.queue.acting(self.lease) as db:
            change_attempt(db, attempt, **values)
            if job.wish is not None and job.state is not State.STOPPING:
                self._move(db, job, State.STOPPING, _why_it_leaves(job))
            elif job.state is State.STARTING and seen.has_begun:
                started_unix_s = job.started_unix_s or self.clock.unix_s()
                self._move(db, job, State.RUNNING, where, started_unix_s=started_unix_s)

    def _move(self, db: Any, job: Job, state: State, reason: str, **values: Any) -> None:
        if move(db, job, state, reason, BY_CONTROLLER, self.clock.unix_s(), **values):
            self._say(job, state, reason)

    def _must_leave(self, job: Job, attempt: Attempt, seen: Seen, view: ClusterView) -> bool:
        """Whether its node goes or a limit is reached; the wish that follows is written down."""
        if going := sorted(self._nodes_of(attempt) & view.draining):
            return self._wish_to_leave(job, "preempt", f"node {going[0][:12]} is being drained")
        run_within_s, no_progress_s = job.limits.get("run_within_s"), self.config.no_progress_s
        if run_within_s is not None and attempt.seconds > run_within_s:
            words = f"it has run for {run_within_s:g} s, its time limit"
            return self._wish_to_leave(job, "time_limit", words)
        if seen.has_begun and no_progress_s and self._idle_s(attempt) > no_progress_s:
            words = f"no sign of progress for {no_progress_s:g} s"
            return self._wish_to_leave(job, "no_progress", words)
        return False

    def _wish_to_leave(self, job: Job, wish: str, reason: str) -> bool:
        with self.queue.acting(self.lease) as db:
            done = change(db, job, wish=wish, reason=reason)
        if done:
            self._say(job, job.state, reason)
        return done

    def _idle_s(self, attempt: Attempt) -> float:
        """Seconds since anything was last written in the job's folder."""
        watch, now = self._watch(attempt), self.clock.unix_s()
        sign = sign_of_life(self.home.job_dir(attempt.job_id))
        if watch.sign != sign:
            watch.sign, watch.sign_unix_s = sign, now
        return now - watch.sign_unix_s

    def _watch(self, attempt: Attempt) -> _Watch:
        return self._watches.setdefault(attempt.submission_id, _Watch())

    def _folder(self, attempt: Attempt) -> Path:
        return attempt_dir(self.home.job_dir(attempt.job_id), attempt.number)

    # What waits.

    def _is_turn_due(self, view: ClusterView | None) -> bool:
        """Whether anything may have changed; to weigh thousands of jobs takes its time."""
        state = (self.queue.newest_event(), view.nodes if view else None, self.is_draining)
        least_unix_s, most_unix_s = self._next_turn_unix_s
        due_unix_s = most_unix_s if state == self._turn_state else least_unix_s
        if self.clock.unix_s() < due_unix_s:
            return False
        self._turn_state = state
        return True

    def _take_turn(self, view: ClusterView | None) -> None:
        started_unix_s = self.clock.unix_s()
        jobs = self.queue.of_queue()
        parents = self._parents(jobs)
        jobs = self._end_hopeless(jobs, parents)
        if view is None or not view.nodes:
            self.why = {job.id: "no cluster answers" for job in jobs if job.state in WAITING}
        elif self.is_draining:
            self.why = {job.id: "the cluster is shut down" for job in jobs if job.state in WAITING}
        else:
            self._start(jobs, parents, view)
        now = self.clock.unix_s()
        took_s = now - started_unix_s
        self._next_turn_unix_s = now + 2 * took_s, now + max(_TURN_EVERY_S, 10 * took_s)

    def _parents(self, jobs: list[Job]) -> Mapping[str, State]:
        """The states of all jobs that others come after, all seen at once."""
        live = {job.id: job.state for job in jobs}
        wanted = {one["job"] for job in jobs if job.state in WAITING for one in job.after}
        return live | self.queue.states_of(wanted - live.keys())

    def _end_hopeless(self, jobs: list[Job], parents: Mapping[str, State]) -> list[Job]:
        """The jobs without those that can start no more: too late, or after one that failed."""
        now, left = self.clock.unix_s(), []
        for job in jobs:
            reason = self._hopeless(job, parents, now) if job.state in WAITING else ""
            if not reason:
                left.append(job)
                continue
            with self.queue.acting(self.lease) as db:
                self._move(db, job, State.FAILED, reason)
        return left

    def _hopeless(self, job: Job, parents: Mapping[str, State], now: float) -> str:
        within_s = job.limits.get("start_within_s")
        is_new = job.num_attempts == 0
        if within_s is not None and is_new and now - job.created_unix_s > within_s:
            return f"it did not start within {within_s:g} s: {self.why.get(job.id, 'its turn')}"
        for parent in job.after:
            state = parents.get(parent["job"])
            if state is None:
                return f"it comes after job {parent['job']}, which is not there"
            if parent["on"] == "success" and state in FINAL - {State.SUCCEEDED}:
                return f"it comes after job {parent['job']}, which is {state}"
        return ""

    def _start(self, jobs: list[Job], parents: Mapping[str, State], view: ClusterView) -> None:
        now = self.clock.unix_s()
        waiting = [
            _waiting(job, _blocked(job, parents, now)) for job in jobs if job.state in WAITING
        ]
        running = [_running(job) for job in jobs if job.state in AT_WORK]
        nodes = [node for node in view.nodes if node.id not in view.draining]
        turn = next_turn(waiting, running, nodes, self.config.policy())
        self.why = turn.why
        self._carry_out(turn, {job.id: job for job in jobs})

    def _carry_out(self, turn: Turn, jobs: Mapping[str, Job]) -> None:
        if turn.passed:
            with self.queue.acting(self.lease) as db:
                for job_id, num in Counter(turn.passed).items():
                    change(db, jobs[job_id], num_passed=jobs[job_id].num_passed + num)
        for job_id, for_whom in turn.preempts.items():
            self._preempt(jobs[job_id], for_whom)
        for job_id in turn.starts:
            if self.is_draining:
                return
            self._begin(jobs[job_id])

    def _preempt(self, job: Job, for_whom: str) -> None:
        reason = f"makes room for job {for_whom}"
        with self.queue.acting(self.lease) as db:
            if change(db, job, wish="preempt", reason=reason):
                add_event(db, job, job.state, reason, BY_CONTROLLER, self.clock.unix_s())

    def _begin(self, job: Job) -> None:
        """Write one more attempt down, and hand it over."""
        now, number = self.clock.unix_s(), job.num_attempts + 1
        values = {"num_attempts": number, "not_before_unix_s": None, "num_passed": 0}
        reason = f"attempt {number}"
        with self.queue.acting(self.lease) as db:
            if not move(db, job, State.STARTING, reason, BY_CONTROLLER, now, **values):
                return
            add_attempt(db, job, now)
        self._say(job, State.STARTING, reason)
        assert self.ray is not None
        attempt = self.queue.attempts(job.id)[-1]
        self.launcher.start(self.queue.store.get(job.id), attempt, self.ray)

    def _say(self, job: Job, state: State, reason: str) -> None:
        number = f" attempt {job.num_attempts}" if job.num_attempts else ""
        words = f": {reason}" if reason else ""
        self.say(f"job {job.id}{number}: {job.state} -> {state}{words}")


class _ChangedMeanwhileError(RuntimeError):
    """Somebody wished something in this very moment; the next round sees it."""


def _budget(job: Job) -> Budget:
    return Budget(job.num_lost, int(job.limits.get("retries", 0)))


def _began_before(watch: _Watch, view: ClusterView | None) -> bool:
    """Whether the cluster must have had the attempt when it was asked."""
    begun = watch.begun_unix_s
    return view is not None and begun is not None and begun < view.asked_unix_s


def _why_it_leaves(job: Job) -> str:
    return "stop asked for" if job.wish == "stop" else job.reason


def _running(job: Job) -> Running:
    return Running(
        id=job.id,
        user=job.user,
        queue=job.queue,
        priority=job.priority,
        order=job.request or 0,
        ask=load_ask(job.ask),
        is_leaving=job.wish is not None or job.state is State.STOPPING,
    )


def _waiting(job: Job, blocked: str) -> Waiting:
    return Waiting(
        id=job.id,
        user=job.user,
        queue=job.queue,
        priority=job.priority,
        order=job.request or 0,
        ask=load_ask(job.ask),
        blocked=blocked,
        num_passed=job.num_passed,
    )


def _blocked(job: Job, parents: Mapping[str, State], now: float) -> str:
    for parent in job.after:
        if parents[parent["job"]] in LIVE:
            return f"after job {parent['job']}, which is {parents[parent['job']]}"
    wait_s = (job.not_before_unix_s or 0.0) - now
    # More than any pause of ours: the clock was set meanwhile.
    return f"tried again in {wait_s:.0f} s" if 0 < wait_s <= _LONGEST_DELAY_S else ""


def holder_name() -> str:
    """This process, for people who read the lease."""
    return f"{os.uname().nodename}/{os.getpid()}/{threading.get_ident()}"
