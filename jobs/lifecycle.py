"""What follows for a job from what is seen of its attempt. Values in, a verdict out.

"Cannot be seen" is never taken for "is dead": without proof that an attempt is over, nothing is
done.
"""

import re
from dataclasses import dataclass
from random import Random

from cluster.ray_api import RayJob
from jobs.states import State

RETRIED = frozenset({"lost", "service", "no_progress"})
"""Causes that another attempt may outlive. The others are the job's own, or somebody's wish."""
_SIGKILL = 9
_OUT_OF_MEMORY = re.compile(r"out of memory|\boom\b|OutOfMemory", re.IGNORECASE)


@dataclass(frozen=True)
class End:
    """What an attempt wrote down about its end."""

    state: State
    cause: str
    reason: str
    seconds: float = 0.0
    workers_lost: int = 0


@dataclass(frozen=True)
class Seen:
    """What can be known of an attempt now."""

    is_reachable: bool
    """Whether Ray answered."""
    ray: RayJob | None = None
    """None: Ray did not answer, or does not know the attempt."""
    is_confirmed: bool = True
    """Ray has acknowledged the attempt at some time."""
    end: End | None = None
    has_begun: bool = False
    """Its process has said that it is there."""
    is_gone: bool = False
    """Its process ran on this machine, and is certainly no more."""
    is_alive: bool = False
    """Its process runs on this machine, and certainly lives, whatever Ray says."""
    memory_ran_out: bool = False
    """The kernel of that machine has ended processes for want of memory meanwhile."""


@dataclass(frozen=True)
class Budget:
    """Losses so far, and how many a job survives."""

    num_lost: int
    retries: int


@dataclass(frozen=True)
class Verdict:
    """A job's next state, and what is written down about the attempt that ended."""

    state: State
    cause: str
    reason: str
    num_lost: int


def is_over(seen: Seen) -> bool:
    """Whether an attempt has certainly ended."""
    if seen.is_alive:  # a cluster that was lost may leave its jobs at work
        return False
    if seen.is_gone:
        return True
    if not seen.is_reachable:
        return False
    if seen.ray is None:
        return seen.is_confirmed  # a cluster that has known it, or another one in its place
    return seen.ray.is_over


def cause_of(seen: Seen, wish: str | None) -> tuple[str, str]:
    """Why an attempt that is over did not succeed: a word for programs, and a sentence."""
    if seen.end is not None:
        return seen.end.cause, seen.end.reason
    if wish is not None:
        return "stopped", "it did not leave in time and was ended; its checkpoints are kept"
    ray = seen.ray
    killed = _signal(ray.exit_code) if ray is not None else None
    may_be_killed = killed == _SIGKILL or ray is None or ray.exit_code is None
    if seen.memory_ran_out and seen.is_gone and may_be_killed:
        return "memory", "the kernel ended its process: the machine's memory was exhausted"
    if ray is None:
        if seen.is_gone:
            return "lost", "its process died"
        return "lost", "the cluster does not know it any more"
    if ray.error_type and "RUNTIME_ENV" in ray.error_type.upper():
        return "setup", f"its environment could not be set up: {_tail(ray.message)}"
    if _OUT_OF_MEMORY.search(ray.message):
        return "memory", f"the node ran out of memory: {_tail(ray.message)}"
    if killed is not None:
        return "lost", f"its process was killed by signal {killed}"
    if ray.status == "STOPPED":
        return "lost", "it was stopped from outside the queue"
    return "lost", f"its process ended without a word: {_tail(ray.message)}"


def _signal(exit_code: int | None) -> int | None:
    """The signal that ended a process, as Ray tells it or as the shell between them does."""
    if exit_code is None:
        return None
    if exit_code < 0:
        return -exit_code
    return exit_code - 128 if exit_code > 128 else None


def judge(seen: Seen, wish: str | None, budget: Budget) -> Verdict | None:
    """The next state of a job at work; None: its attempt goes on, as far as is known.

    Args:
        seen: what is known of its attempt.
        wish: stop, preempt, or a cause for which the controller itself ended the attempt
            (`no_progress`, `time_limit`).
        budget: losses so far.
    """
    if not is_over(seen):
        return None
    end = seen.end
    if end is not None and end.state is State.SUCCEEDED:
        return Verdict(State.SUCCEEDED, "succeeded", "", budget.num_lost)
    cause, reason = cause_of(seen, wish)
    if end is not None and end.state is State.FAILED and cause not in RETRIED:
        return Verdict(State.FAILED, cause, reason, budget.num_lost)
    if wish == "stop":
        return Verdict(State.STOPPED, "stopped", reason, budget.num_lost)
    if wish == "preempt":
        num_lost = budget.num_lost + (end.workers_lost if end else 0)
        return Verdict(State.QUEUED, "preempted", f"preempted: {reason}", num_lost)
    if wish == "time_limit":
        words = f"its time limit is over: {reason}"
        return Verdict(State.FAILED, "time_limit", words, budget.num_lost)
    if wish == "no_progress":
        cause, reason = "no_progress", f"no sign of progress: {reason}"
    if cause == "stopped":  # by a signal that nobody here sent: its node goes
        cause = "lost"
    return _retry(cause, reason, end, budget)


def judge_unstarted(cause: str, reason: str, wish: str | None, budget: Budget) -> Verdict:
    """The next state of a job whose attempt the cluster does not have and will not get.

    Args:
        cause: `setup`, `service`, `internal`, or `stopped` where only a wish keeps it back.
        reason: in words.
        wish: as for `judge`.
        budget: losses so far.
    """
    if wish == "stop":
        return Verdict(State.STOPPED, "stopped", "stopped before it began", budget.num_lost)
    if wish == "preempt":
        words = "preempted: it had not begun"
        return Verdict(State.QUEUED, "preempted", words, budget.num_lost)
    if cause in RETRIED:
        return _retry(cause, reason, None, budget)
    return Verdict(State.FAILED, cause, reason, budget.num_lost)


def _retry(cause: str, reason: str, end: End | None, budget: Budget) -> Verdict:
    num_lost = budget.num_lost + 1 + (end.workers_lost if end else 0)
    if cause not in RETRIED:
        return Verdict(State.FAILED, cause, reason, num_lost)
    if num_lost > budget.retries:
        words = f"{reason}; loss {num_lost}, and cluster.retries = {budget.retries}"
        return Verdict(State.FAILED, cause, words, num_lost)
    words = f"{reason}; loss {num_lost} of {budget.retries} that cluster.retries allows"
    return Verdict(State.RETRYING, cause, words, num_lost)


def retry_delay_s(num: int, rng: Random, *, base_s: float = 1.0, cap_s: float = 60.0) -> float:
    """Seconds to wait after failure number `num`, which is 1 or more.

    Drawn evenly from 0 to min(cap_s, base_s * 2 ** (num - 1)), so that those who were cut off
    together do not return together.

    Source: M. Brooker, "Exponential Backoff And Jitter" (AWS, 2015), "full jitter".
    """
    doublings = min(num - 1, 100)  # more would be no float any more
    return rng.uniform(0.0, min(cap_s, base_s * 2.0**doublings))


def _tail(message: str) -> str:
    lines = [line for line in message.strip().splitlines() if line.strip()]
    return (lines[-1] if lines else "no message")[:500]
