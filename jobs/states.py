"""The states of a job, and which may follow which."""

from enum import StrEnum


class State(StrEnum):
    """Derived from nothing and stored once, in the job store."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"


LIVE = frozenset({State.PENDING, State.RUNNING})
FINAL = frozenset(State) - LIVE

_NEXT = {
    State.PENDING: frozenset({State.RUNNING, State.FAILED, State.STOPPED}),
    State.RUNNING: FINAL,
    State.SUCCEEDED: frozenset[State](),
    State.FAILED: frozenset[State](),
    State.STOPPED: frozenset[State](),
}
_RESUMABLE = frozenset({State.FAILED, State.STOPPED})

RUN_STATUS = {
    State.PENDING: "SCHEDULED",
    State.RUNNING: "RUNNING",
    State.SUCCEEDED: "FINISHED",
    State.FAILED: "FAILED",
    State.STOPPED: "KILLED",
}
"""What the MLflow run of a job in this state says."""


def may_change(old: State, new: State, *, by_resume: bool = False) -> bool:
    """Whether a job may go from `old` to `new`; what has ended stays ended unless resumed."""
    if by_resume:
        return old in _RESUMABLE and new is State.RUNNING
    return new in _NEXT[old]
