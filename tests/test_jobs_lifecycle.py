from random import Random

import pytest

from cluster.ray_api import RayJob
from jobs.lifecycle import (
    Budget,
    End,
    Seen,
    cause_of,
    is_over,
    judge,
    judge_unstarted,
    retry_delay_s,
)
from jobs.states import AT_WORK, State, may_change


def ray(status, message="", *, exit_code=None, error_type=None):
    return RayJob(status, message, "node1", exit_code, error_type)


def seen(status=None, message="", *, end=None, exit_code=None, error_type=None, **values):
    """An attempt of which Ray says `status`; None: Ray answers, and does not know it."""
    said = ray(status, message, exit_code=exit_code, error_type=error_type) if status else None
    return Seen(is_reachable=True, ray=said, end=end, has_begun=True, **values)


def unseen(**values):
    """An attempt of which nothing is heard, because the cluster does not answer."""
    return Seen(is_reachable=False, has_begun=True, **values)


SUCCEEDED = End(State.SUCCEEDED, "succeeded", "")
STOPPED = End(State.STOPPED, "stopped", "checkpoint of step 7")
USER = End(State.FAILED, "user", "train.csv: no such file")
JOB = End(State.FAILED, "job", "loss became nan")
SERVICE = End(State.FAILED, "service", "MLflow does not answer")


@pytest.mark.parametrize(
    ("expected", "attempt"),
    [
        pytest.param(False, unseen(), id="cannot be seen is not dead"),
        pytest.param(False, unseen(is_confirmed=False), id="nor is what was never seen"),
        pytest.param(False, unseen(end=SUCCEEDED), id="it tidies up after its end was written"),
        pytest.param(True, unseen(is_gone=True), id="its process is gone, whatever Ray does"),
        pytest.param(False, seen("PENDING"), id="it waits in the cluster"),
        pytest.param(False, seen("RUNNING"), id="it runs"),
        pytest.param(False, seen("RUNNING", end=SUCCEEDED), id="it runs, its end is written"),
        pytest.param(True, seen("RUNNING", is_gone=True), id="Ray has not noticed that it is gone"),
        pytest.param(True, seen("SUCCEEDED"), id="Ray says that it has ended well"),
        pytest.param(True, seen("FAILED"), id="Ray says that it has failed"),
        pytest.param(True, seen("STOPPED"), id="Ray says that it was stopped"),
        pytest.param(True, seen(), id="the cluster that knew it knows it no more"),
        pytest.param(False, seen(is_confirmed=False), id="it may not have arrived yet"),
        pytest.param(
            True, seen(is_confirmed=False, is_gone=True), id="it was never confirmed, and is gone"
        ),
    ],
)
def test_an_attempt_is_over_only_with_proof(expected, attempt):
    assert is_over(attempt) is expected


@pytest.mark.parametrize(
    ("cause", "words", "attempt"),
    [
        pytest.param("user", "no such file", seen("FAILED", end=USER), id="its own words first"),
        pytest.param("user", "no such", seen("FAILED", "OOM", end=USER), id="also against Ray's"),
        pytest.param("lost", "signal 9", seen("FAILED", exit_code=-9), id="killed"),
        pytest.param("lost", "signal 9", seen("FAILED", exit_code=137), id="killed under a shell"),
        pytest.param("lost", "without a word", seen("FAILED", exit_code=1), id="it only failed"),
        pytest.param("lost", "without a word", seen("SUCCEEDED"), id="a good end without a result"),
        pytest.param("lost", "outside", seen("STOPPED"), id="stopped by a stranger"),
        pytest.param("lost", "does not know it", seen(), id="forgotten by the cluster"),
        pytest.param("lost", "process died", unseen(is_gone=True), id="gone while Ray is away"),
        pytest.param(
            "setup",
            "No matching distribution found for nope",
            seen(
                "FAILED",
                "pip install failed\nNo matching distribution found for nope\n",
                error_type="RUNTIME_ENV_SETUP_FAILURE",
            ),
            id="its environment cannot be made, with the last line of pip",
        ),
        pytest.param("memory", "memory", seen("FAILED", "killed: out of memory"), id="memory"),
        pytest.param(
            "memory", "memory", seen("FAILED", "ray.exceptions.OutOfMemoryError: x"), id="Ray's"
        ),
        pytest.param("memory", "memory", seen("FAILED", "killed by OOM."), id="memory, in short"),
        pytest.param("lost", "", seen("FAILED", "no room left"), id="room is no out-of-memory"),
        pytest.param(
            "memory",
            "memory was exhausted",
            seen("FAILED", exit_code=-9, is_gone=True, memory_ran_out=True),
            id="the kernel killed it for want of memory",
        ),
        pytest.param(
            "lost",
            "signal 15",
            seen("FAILED", exit_code=-15, is_gone=True, memory_ran_out=True),
            id="the kernel killed another one",
        ),
        pytest.param(
            "lost",
            "without a word",
            seen("FAILED", exit_code=1, is_gone=True, memory_ran_out=True),
            id="the kernel killed another one before it failed by itself",
        ),
        pytest.param(
            "memory",
            "memory was exhausted",
            unseen(is_gone=True, memory_ran_out=True),
            id="the kernel killed processes, and nobody knows how this one died",
        ),
    ],
)
def test_the_cause_of_an_end_that_nobody_wished(cause, words, attempt):
    found, reason = cause_of(attempt, None)
    assert found == cause
    assert words in reason


@pytest.mark.parametrize(
    ("state", "cause", "attempt", "wish"),
    [
        pytest.param(None, None, unseen(), None, id="cannot be seen is not dead"),
        pytest.param(None, None, unseen(), "stop", id="nor is it when it was asked to stop"),
        pytest.param(None, None, seen("RUNNING"), "stop", id="it is given its time to leave"),
        pytest.param(None, None, seen("RUNNING", end=STOPPED), "stop", id="and to tidy up"),
        pytest.param("SUCCEEDED", "succeeded", seen("SUCCEEDED", end=SUCCEEDED), None, id="done"),
        pytest.param(
            "SUCCEEDED",
            "succeeded",
            seen("STOPPED", end=SUCCEEDED),
            "stop",
            id="a result that came before the stop stands",
        ),
        pytest.param(
            "SUCCEEDED",
            "succeeded",
            seen("FAILED", end=SUCCEEDED, exit_code=-9),
            "preempt",
            id="and before a preemption",
        ),
        pytest.param(
            "SUCCEEDED",
            "succeeded",
            unseen(end=SUCCEEDED, is_gone=True),
            None,
            id="a result counts though Ray is away",
        ),
        pytest.param(
            "SUCCEEDED",
            "succeeded",
            seen(end=SUCCEEDED),
            None,
            id="a result counts after a new head",
        ),
        pytest.param("STOPPED", "stopped", seen("STOPPED", end=STOPPED), "stop", id="it stopped"),
        pytest.param("STOPPED", "stopped", seen("STOPPED"), "stop", id="it had to be killed"),
        pytest.param("STOPPED", "stopped", seen(), "stop", id="it was lost while it stopped"),
        pytest.param(
            "STOPPED", "stopped", seen("FAILED", end=SERVICE), "stop", id="no retry after a stop"
        ),
        pytest.param(
            "FAILED", "user", seen("FAILED", end=USER), "stop", id="a failure of its own stands"
        ),
        pytest.param(
            "QUEUED", "preempted", seen("STOPPED", end=STOPPED), "preempt", id="preempted"
        ),
        pytest.param("QUEUED", "preempted", seen("STOPPED"), "preempt", id="preempted by a kill"),
        pytest.param(
            "FAILED", "job", seen("FAILED", end=JOB), "preempt", id="it failed before it left"
        ),
        pytest.param(
            "FAILED", "time_limit", seen("STOPPED", end=STOPPED), "time_limit", id="out of time"
        ),
        pytest.param(
            "FAILED", "time_limit", seen("STOPPED"), "time_limit", id="killed out of time"
        ),
        pytest.param(
            "RETRYING", "no_progress", seen("STOPPED"), "no_progress", id="it hung and was killed"
        ),
        pytest.param(
            "RETRYING",
            "no_progress",
            seen("STOPPED", end=STOPPED),
            "no_progress",
            id="it hung, and woke up to leave",
        ),
        pytest.param("RETRYING", "lost", seen("FAILED", exit_code=-9), None, id="killed"),
        pytest.param("RETRYING", "lost", seen(), None, id="the cluster is a new one"),
        pytest.param("RETRYING", "lost", unseen(is_gone=True), None, id="its process is gone"),
        pytest.param("RETRYING", "service", seen("FAILED", end=SERVICE), None, id="MLflow is away"),
        pytest.param(
            "RETRYING", "lost", seen("STOPPED", end=STOPPED), None, id="sent away by its node"
        ),
        pytest.param("FAILED", "user", seen("FAILED", end=USER), None, id="no retry of a mistake"),
        pytest.param("FAILED", "job", seen("FAILED", end=JOB), None, id="no retry of its failure"),
        pytest.param(
            "FAILED",
            "setup",
            seen("FAILED", "pip", error_type="RUNTIME_ENV_SETUP_FAILURE"),
            None,
            id="no retry of a setup that cannot work",
        ),
        pytest.param(
            "FAILED",
            "memory",
            seen("FAILED", "out of memory"),
            None,
            id="no retry of the same size",
        ),
    ],
)
def test_what_follows_for_a_job(state, cause, attempt, wish):
    verdict = judge(attempt, wish, Budget(num_lost=0, retries=3))
    assert (verdict and (verdict.state, verdict.cause)) == (state and (State(state), cause))


@pytest.mark.parametrize(
    ("num_lost", "state", "now_lost"),
    [(0, State.RETRYING, 1), (1, State.RETRYING, 2), (2, State.FAILED, 3)],
)
def test_a_job_survives_as_many_losses_as_it_may(num_lost, state, now_lost):
    verdict = judge(seen("FAILED", exit_code=-9), None, Budget(num_lost, retries=2))
    assert (verdict.state, verdict.num_lost) == (state, now_lost)
    assert "2" in verdict.reason


def test_a_job_without_retries_fails_with_its_first_loss():
    assert judge(seen(), None, Budget(0, retries=0)).state is State.FAILED


def test_workers_that_an_attempt_lost_are_losses_too():
    end = End(State.FAILED, "service", "MLflow is away", workers_lost=2)
    assert judge(seen("FAILED", end=end), None, Budget(1, 3)).num_lost == 4
    assert judge(seen("FAILED", end=end), None, Budget(1, 3)).state is State.FAILED


def test_a_preemption_is_no_loss_but_the_workers_lost_before_it_are():
    end = End(State.STOPPED, "stopped", "", workers_lost=1)
    assert judge(seen("STOPPED", end=STOPPED), "preempt", Budget(1, 3)).num_lost == 1
    assert judge(seen("STOPPED", end=end), "preempt", Budget(1, 3)).num_lost == 2


@pytest.mark.parametrize("wish", [None, "stop", "preempt", "time_limit", "no_progress"])
@pytest.mark.parametrize("end", [None, SUCCEEDED, STOPPED, USER, JOB, SERVICE])
@pytest.mark.parametrize("attempt", ["FAILED", "STOPPED", "SUCCEEDED", None])
def test_every_verdict_may_follow_on_every_state_at_work(attempt, end, wish):
    verdict = judge(seen(attempt, end=end), wish, Budget(0, 3))
    assert all(may_change(state, verdict.state) for state in AT_WORK)
    is_good = end is SUCCEEDED
    assert (verdict.state is State.SUCCEEDED) is is_good
    if wish == "stop":
        assert verdict.state not in (State.QUEUED, State.RETRYING)


@pytest.mark.parametrize(
    ("state", "cause", "wish"),
    [
        pytest.param("STOPPED", "stopped", "stop", id="stopped before the cluster had it"),
        pytest.param("STOPPED", "service", "stop", id="stopped while the cluster was at fault"),
        pytest.param("QUEUED", "stopped", "preempt", id="preempted before the cluster had it"),
        pytest.param("FAILED", "setup", None, id="the cluster refuses it for good"),
        pytest.param("FAILED", "internal", None, id="a fault of ours"),
        pytest.param("RETRYING", "service", None, id="the cluster is at fault, for now"),
    ],
)
def test_what_follows_for_a_job_that_was_never_handed_over(state, cause, wish):
    verdict = judge_unstarted(cause, "refused", wish, Budget(0, 3))
    assert verdict.state is State(state)
    assert verdict.num_lost == (1 if state == "RETRYING" else 0)


def test_pauses_grow_up_to_a_minute_and_are_drawn_evenly():
    longest = [
        max(retry_delay_s(num, Random(i)) for i in range(300)) for num in (1, 2, 4, 7, 1000, 5000)
    ]
    assert [round(value) for value in longest] == [1, 2, 8, 60, 60, 60]
    assert min(retry_delay_s(7, Random(i)) for i in range(300)) < 2
