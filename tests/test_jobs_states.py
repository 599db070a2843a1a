from itertools import product

import pytest

from jobs.states import AT_WORK, FINAL, RUN_STATUS, WAITING, State, may_change


@pytest.mark.parametrize(("old", "new"), list(product(FINAL, State)))
def test_what_has_ended_stays_as_it_is(old, new):
    assert not may_change(old, new)


_ENDS = {State.SUCCEEDED, State.FAILED, State.STOPPED}
_WAITS_AGAIN = {State.QUEUED, State.RETRYING}


@pytest.mark.parametrize(
    ("old", "allowed"),
    [
        (State.QUEUED, {State.STARTING, State.FAILED, State.STOPPED}),
        (State.RETRYING, {State.STARTING, State.FAILED, State.STOPPED}),
        (State.STARTING, _ENDS | _WAITS_AGAIN | {State.RUNNING, State.STOPPING}),
        (State.RUNNING, _ENDS | _WAITS_AGAIN | {State.STOPPING}),
        (State.STOPPING, _ENDS | _WAITS_AGAIN),
    ],
)
def test_a_live_job_goes_forward_or_waits_again(old, allowed):
    assert {new for new in State if may_change(old, new)} == allowed


def test_every_state_is_final_or_waits_or_works():
    assert {*State} == FINAL | WAITING | AT_WORK
    assert len(State) == len(FINAL) + len(WAITING) + len(AT_WORK)


@pytest.mark.parametrize("new", [State.RUNNING, State.QUEUED])
def test_only_failed_and_stopped_jobs_can_be_resumed(new):
    resumable = {old for old in State if may_change(old, new, by_resume=True)}
    assert resumable == {State.FAILED, State.STOPPED}


def test_every_state_has_a_status_for_its_run():
    assert set(RUN_STATUS) == set(State)
