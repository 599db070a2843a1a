"""The states of a job, and which may follow which."""

from enum import StrEnum


class State(StrEnum):
    """Derived from nothing and stored once, in the job store."""

    QUEUED = "QUEUED"
    """Waits for its turn; never begun, or preempted."""
    STARTING = "STARTING"
    """Its process is on its way."""
    RUNNING = "RUNNING"
    RETRYING = "RETRYING"
    """An attempt was lost; another one waits for its turn."""
    STOPPING = "STOPPING"
    """Asked to write a checkpoint and leave."""
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"


FINAL = frozenset({State.SUCCEEDED, State.FAILED, State.STOPPED})
LIVE = frozenset(State) - FINAL
WAITING = frozenset({State.QUEUED, State.RETRYING})
AT_WORK = LIVE - WAITING
"""An attempt of it may hold resources."""

_NEXT = {
    State.QUEUED: frozenset({State.STARTING, State.FAILED, State.STOPPED}),
    State.STARTING: FINAL | {State.RUNNING, State.QUEUED, State.RETRYING, State.STOPPING},
    State.RUNNING: FINAL | {State.QUEUED, State.RETRYING, State.STOPPING},
    State.RETRYING: frozenset({State.STARTING, State.FAILED, State.STOPPED}),
    State.STOPPING: FINAL | {State.QUEUED, State.RETRYING},
    State.SUCCEEDED: frozenset[State](),
    State.FAILED: frozenset[State](),
    State.STOPPED: frozenset[State](),
}
_RESUMABLE = frozenset({State.FAILED, State.STOPPED})
_RESUMED = frozenset({State.QUEUED, State.RUNNING})

RUN_STATUS = {
    State.QUEUED: "SCHEDULED",
    State.STARTING: "SCHEDULED",
    State.RUNNING: "RUNNING",
    State.RETRYING: "SCHEDULED",
    State.STOPPING: "RUNNING",
    State.SUCCEEDED: "FINISHED",
    State.FAILED: "FAILED",
    State.STOPPED: "KILLED",
}
"""What the MLflow run of a job in this state says."""


def may_change(old: State, new: State, *, by_resume: bool = False) -> bool:
    """Whether a job may go from `old` to `new`; what has ended stays ended unless resumed."""
    if by_resume:
        return old in _RESUMABLE and new in _RESUMED
    return new in _NEXT[old]
