from itertools import product

import pytest

from jobs.states import FINAL, RUN_STATUS, State, may_change


@pytest.mark.parametrize(("old", "new"), list(product(FINAL, State)))
def test_what_has_ended_stays_as_it_is(old, new):
    assert not may_change(old, new)


@pytest.mark.parametrize(
    ("old", "allowed"),
    [
        (State.PENDING, {State.RUNNING, State.FAILED, State.STOPPED}),
        (State.RUNNING, {State.SUCCEEDED, State.FAILED, State.STOPPED}),
    ],
)
def test_a_live_job_can_only_go_forward(old, allowed):
    assert {new for new in State if may_change(old, new)} == allowed


def test_only_failed_and_stopped_jobs_can_be_resumed():
    resumable = {old for old in State if may_change(old, State.RUNNING, by_resume=True)}
    assert resumable == {State.FAILED, State.STOPPED}


def test_every_state_has_a_status_for_its_run():
    assert set(RUN_STATUS) == set(State)
