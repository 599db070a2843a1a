import os
import re
import subprocess
import sys
import threading

import pytest
import sqlalchemy as sa

from cluster.home import Home
from gpt2cls.errors import RequestError
from jobs.states import State
from jobs.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(Home(tmp_path / "home"))


def new_job(store, name="bbc"):
    return store.create(name=name, kind="finetune", spec={"train": {"lr": 0.1}})


def test_looking_into_a_store_that_is_not_there_creates_nothing(store, tmp_path):
    assert store.jobs() == []
    with pytest.raises(RequestError, match="no job"):
        store.get("last")
    assert not (tmp_path / "home").exists()


def test_a_job_comes_back_as_it_was_written(store):
    job = new_job(store)
    assert re.fullmatch(r"bbc-[0-9]{8}-[0-9a-z]{4}", job.id)
    assert (job.state, job.spec, job.num_attempts) == (State.STARTING, {"train": {"lr": 0.1}}, 0)
    assert job.owner_pid == os.getpid()


def test_jobs_of_one_second_get_different_ids_and_last_is_the_newest(store):
    jobs = [new_job(store) for _ in range(3)]
    assert len({job.id for job in jobs}) == 3
    assert store.get("last").id == jobs[-1].id
    assert [job.id for job in store.jobs()] == [job.id for job in reversed(jobs)]


def test_the_beginning_of_an_id_will_do_unless_two_jobs_begin_so(store):
    one, _, _ = new_job(store, "alone"), new_job(store, "twin-a"), new_job(store, "twin-b")
    assert store.get("alo").id == one.id
    with pytest.raises(RequestError, match=r"could be twin-b-.*, twin-a-"):
        store.get("twin")


@pytest.mark.parametrize("reference", ["nope", "%", "_", "' OR 1=1 --", "../x"])
def test_an_unknown_id_is_refused_in_words(store, reference):
    new_job(store)
    with pytest.raises(RequestError, match="no such job"):
        store.get(reference)


def test_the_first_end_of_a_job_stands(store):
    job = new_job(store)
    store.start(job.id)
    assert store.finish(job.id, State.STOPPED, "asked to")
    assert not store.finish(job.id, State.SUCCEEDED)
    assert (store.get(job.id).state, store.get(job.id).reason) == (State.STOPPED, "asked to")


def test_of_many_that_end_a_job_at_once_exactly_one_does(store):
    job = new_job(store)
    store.start(job.id)
    ends = [State.SUCCEEDED, State.FAILED, State.STOPPED] * 3
    won = []

    def finish(state):
        if store.finish(job.id, state):
            won.append(state)

    threads = [threading.Thread(target=finish, args=(state,)) for state in ends]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [store.get(job.id).state]


@pytest.mark.parametrize(
    ("end", "words"),
    [
        pytest.param(None, "is RUNNING", id="running"),
        pytest.param(State.SUCCEEDED, "nothing to resume", id="succeeded"),
    ],
)
def test_resuming_says_why_it_cannot(store, end, words):
    job = new_job(store)
    store.start(job.id)
    if end:
        store.finish(job.id, end)
    with pytest.raises(RequestError, match=words):
        store.start(job.id, by_resume=True)


def test_a_failed_job_is_resumed_as_its_next_attempt(store):
    job = new_job(store)
    first = store.start(job.id)
    store.finish(job.id, State.FAILED, "lost")
    again = store.start(job.id, by_resume=True)
    assert (again.state, again.reason, again.num_attempts) == (State.RUNNING, "", 2)
    assert (again.started_unix_s, again.ended_unix_s) == (first.started_unix_s, None)


def test_a_job_whose_process_died_is_an_orphan(store):
    job = new_job(store)
    store.start(job.id)
    assert not store.get(job.id).is_orphan
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with store.write() as db:
        db.execute(sa.text(f"UPDATE jobs SET owner_pid = {ended.pid}"))
    assert store.get(job.id).is_orphan


def test_moves_of_the_champion_are_kept_newest_first(store):
    for version in (1, 2):
        store.add_promotion(
            registry="embedded", model="m", action="gate", old=None, new=version, reason="won"
        )
    store.add_promotion(registry="other", model="m", action="gate", old=None, new=9, reason="")
    moves = store.promotions(registry="embedded", model="m")
    assert [move.new_version for move in moves] == [2, 1]
    assert "@" in moves[0].by_whom
