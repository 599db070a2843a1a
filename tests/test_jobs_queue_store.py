import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from stores import home, store  # noqa: F401

from cluster.errors import ClusterError
from cluster.home import Home
from gpt2cls.errors import RequestError
from jobs.queue_store import (
    KeyTakenError,
    LeaseLostError,
    QueueStore,
    Request,
    add_attempt,
    change,
    change_attempt,
    move,
)
from jobs.schema import EVENTS, JOBS, META, REQUESTS
from jobs.states import AT_WORK, FINAL, State
from jobs.store import Store

ASK = {"workers": 2, "cpus_per_worker": 1.0, "gpus_per_worker": 0.5, "driver_cpus": 0.0}
ASK |= {"cpus": 2.0, "gpus": 1.0}


@pytest.fixture
def queue(store):  # noqa: F811
    return QueueStore(store)


def request(key="k1", /, *, user="ada", lr=0.1, **values):
    spec = {"kind": "finetune", "name": "bbc", "train": {"lr": lr}}
    return Request(key=key, user=user, name="bbc", kind="finetune", spec=spec, ask=ASK, **values)


def accepted(queue, key="k1", /, **values):
    job, _ = queue.accept(request(key, **values), now_unix_s=1000.0)
    return job


def put(queue, job, **values):
    """Give a job what only time would give it."""
    with queue.store.write() as db:
        db.execute(JOBS.update().where(JOBS.c.id == job.id).values(**values))
    return queue.store.get(job.id)


def num_rows(queue, table):
    return queue.store.rows(sa.select(sa.func.count().label("n")).select_from(table))[0]["n"]


# Requests.


def test_the_same_key_gives_the_same_job(queue):
    first, is_new = queue.accept(request(), now_unix_s=1000.0)
    again, is_new_again = queue.accept(request(), now_unix_s=2000.0)
    assert (is_new, is_new_again) == (True, False)
    assert again == first
    assert (first.state, first.user, first.created_unix_s) == (State.QUEUED, "ada", 1000.0)
    assert [num_rows(queue, table) for table in (JOBS, REQUESTS, EVENTS)] == [1, 1, 1]


def test_a_key_that_stands_for_another_job_is_refused_with_the_difference(queue):
    job = accepted(queue)
    with pytest.raises(KeyTakenError, match=r"train\.lr = 0\.1 there, 0\.5 here") as refused:
        accepted(queue, lr=0.5)
    assert job.id in str(refused.value)
    assert num_rows(queue, JOBS) == num_rows(queue, REQUESTS) == 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"queue": "night"}, "queue = default there, night here"),
        ({"base_dir": "/data"}, "base_dir =  there, /data here"),
        ({"limits": {"retries": 1}}, r"limits\.retries = None there, 1 here"),
        ({"after": ({"job": "a", "on": "end"},)}, r"after = \[\] there"),
        ({"origin": "bbc-1"}, "origin = None there, bbc-1 here"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_whatever_makes_a_job_another_one_is_told(queue, values, words):
    accepted(queue)
    with pytest.raises(KeyTakenError, match=words):
        accepted(queue, **values)


def test_a_key_is_the_users_own(queue):
    assert accepted(queue, user="ada").id != accepted(queue, user="bob", lr=0.5).id


def test_a_repeat_with_another_priority_is_a_repeat(queue):
    assert accepted(queue).id == accepted(queue, priority=7).id


@pytest.mark.parametrize("num_keys", [1, 50])
def test_fifty_at_once_make_one_job_per_key_in_the_order_of_their_requests(queue, num_keys):
    start = threading.Barrier(50)

    def submit(i):
        start.wait()
        return accepted(queue, f"k{i % num_keys}").id

    with ThreadPoolExecutor(50) as pool:
        ids = list(pool.map(submit, range(50)))
    jobs = queue.of_queue()
    assert sorted({*ids}) == sorted(job.id for job in jobs)
    assert len(jobs) == num_rows(queue, REQUESTS) == num_keys
    numbers = [job.request for job in jobs]
    assert numbers == sorted(set(numbers))


def test_the_order_of_the_queue_is_that_of_the_requests(queue):
    ids = [accepted(queue, f"k{i}").id for i in range(5)]
    assert [job.id for job in queue.of_queue()] == ids
    assert queue.of_queue(states=FINAL) == []


# Wishes.


def test_a_job_that_waits_is_stopped_at_once(queue):
    for state in (State.QUEUED, State.RETRYING):
        job = put(queue, accepted(queue, state), state=state)
        stopped = queue.wish_to_stop(job.id, by_whom="ada", now_unix_s=2000.0)
        assert (stopped.state, stopped.reason) == (State.STOPPED, "stopped by ada")
        assert stopped.ended_unix_s == 2000.0


@pytest.mark.parametrize("state", sorted(AT_WORK))
def test_a_job_at_work_is_wished_to_stop_once(queue, state):
    job = put(queue, accepted(queue), state=state, num_attempts=1)
    for _ in range(2):
        wished = queue.wish_to_stop(job.id, by_whom="ada", now_unix_s=2000.0)
        assert (wished.state, wished.wish) == (state, "stop")
    assert [event["reason"] for event in queue.events(job.id)] == [
        "submitted",
        "stop asked for by ada",
    ]


@pytest.mark.parametrize("state", sorted(FINAL))
def test_a_job_that_has_ended_stays_as_it_is(queue, state):
    job = put(queue, accepted(queue), state=state, reason="as it was")
    assert queue.wish_to_stop(job.id, by_whom="ada", now_unix_s=2000.0) == job
    assert len(queue.events(job.id)) == 1


def test_a_stop_takes_the_place_of_a_preemption(queue):
    job = put(queue, accepted(queue), state=State.RUNNING, wish="preempt")
    assert queue.wish_to_stop(job.id, by_whom="ada", now_unix_s=2.0).wish == "stop"


def test_many_stops_and_a_start_at_once_leave_one_of_two_truths(queue):
    """Either it never started, or it is at work and wished to stop."""
    job = accepted(queue)
    number = queue.take_lease("here", None)
    start = threading.Barrier(9)

    def begin():
        start.wait()
        with queue.acting(number) as db:
            done = move(db, job, State.STARTING, "", "controller", 2.0, num_attempts=1)
            if done:
                add_attempt(db, job, 2.0)
        return done

    def stop():
        start.wait()
        queue.wish_to_stop(job.id, by_whom="ada", now_unix_s=2.0)

    with ThreadPoolExecutor(9) as pool:
        stops = [pool.submit(stop) for _ in range(8)]
        has_begun = pool.submit(begin).result()
        for one in stops:
            one.result()
    found = queue.store.get(job.id)
    truth = (State.STARTING, "stop", 1) if has_begun else (State.STOPPED, None, 0)
    assert (found.state, found.wish, len(queue.attempts(job.id))) == truth


def test_the_priority_of_a_job_that_waits_is_changed(queue):
    job = put(queue, accepted(queue), num_passed=4)
    changed = queue.set_priority(job.id, 5, by_whom="ada", now_unix_s=2000.0)
    assert (changed.priority, changed.num_passed) == (5, 0)
    assert queue.events(job.id)[-1]["reason"] == "priority 0 -> 5"


@pytest.mark.parametrize("state", sorted({*State} - {State.QUEUED, State.RETRYING}))
def test_the_priority_of_a_job_that_does_not_wait_stays(queue, state):
    job = put(queue, accepted(queue), state=state)
    with pytest.raises(RequestError, match=f"is {state}; only"):
        queue.set_priority(job.id, 5, by_whom="ada", now_unix_s=2000.0)
    assert queue.store.get(job.id).priority == 0


@pytest.mark.parametrize("state", [State.FAILED, State.STOPPED])
def test_a_job_that_stopped_or_failed_waits_again_with_a_new_budget(queue, state):
    limits = '{"retries": 3, "start_within_s": 60.0}'
    job = put(queue, accepted(queue), state=state, num_lost=3, ended_unix_s=9.0, limits=limits)
    resumed = queue.resume(job.id, by_whom="ada", now_unix_s=2000.0)
    assert (resumed.state, resumed.num_lost, resumed.ended_unix_s) == (State.QUEUED, 0, None)
    assert resumed.limits == {"retries": 3, "start_within_s": None}  # it has started, long ago
    assert queue.events(job.id)[-1]["reason"] == "resumed by ada"


def test_a_resume_whose_reply_was_lost_may_be_asked_for_again(queue):
    job = put(queue, accepted(queue), state=State.STOPPED)
    once, again = (queue.resume(job.id, by_whom="ada", now_unix_s=2.0) for _ in range(2))
    assert once == again
    assert len(queue.events(job.id)) == 2


@pytest.mark.parametrize("state", sorted({*State} - {State.FAILED, State.STOPPED}))
def test_what_has_not_stopped_or_failed_is_not_resumed(queue, state):
    job = put(queue, accepted(queue), state=state, reason="as it was")
    with pytest.raises(RequestError, match=f"is {state}; only a job that was stopped or failed"):
        queue.resume(job.id, by_whom="ada", now_unix_s=2000.0)
    assert queue.store.get(job.id) == job


def test_what_was_seen_and_is_no_more_changes_nothing(queue):
    seen = accepted(queue)
    queue.wish_to_stop(seen.id, by_whom="ada", now_unix_s=2.0)
    with queue.store.write() as db:
        assert not change(db, seen, priority=9)
        assert not move(db, seen, State.STARTING, "", "controller", 3.0)
    assert queue.store.get(seen.id).state is State.STOPPED
    assert [event["new"] for event in queue.events(seen.id)] == ["QUEUED", "STOPPED"]


def test_a_verdict_from_before_a_stop_is_none(queue):
    seen = put(queue, accepted(queue), state=State.RUNNING, num_attempts=1)
    queue.wish_to_stop(seen.id, by_whom="ada", now_unix_s=2.0)
    with queue.store.write() as db:
        assert not move(db, seen, State.RETRYING, "", "controller", 3.0)
    assert queue.store.get(seen.id).state is State.RUNNING


def test_the_states_of_many_jobs_are_found_at_once(queue, monkeypatch):
    monkeypatch.setattr("jobs.queue_store._IDS_AT_ONCE", 2)
    ids = [accepted(queue, f"k{i}").id for i in range(5)]
    queue.wish_to_stop(ids[0], by_whom="ada", now_unix_s=2.0)
    states = queue.states_of([*ids, "nobody"])
    assert states == dict.fromkeys(ids[1:], State.QUEUED) | {ids[0]: State.STOPPED}


# The lease.


def test_one_of_two_that_see_no_lease_gets_it(queue):
    start = threading.Barrier(2)

    def take(name):
        start.wait()
        return queue.take_lease(name, None)

    with ThreadPoolExecutor(2) as pool:
        numbers = list(pool.map(take, ["one", "two"]))
    assert sorted(numbers, key=str) == [1, None]


def test_a_lease_that_beats_is_not_taken(queue):
    number = queue.take_lease("one", None)
    seen = queue.lease()
    with queue.acting(number):
        pass
    assert queue.take_lease("two", seen) is None
    assert queue.lease()["holder"] == "one"


def test_whoever_lost_the_lease_writes_nothing(queue):
    job = accepted(queue)
    old = queue.take_lease("one", None)
    new = queue.take_lease("two", queue.lease())
    assert new == old + 1
    with pytest.raises(LeaseLostError), queue.acting(old) as db:
        change(db, job, priority=9)
    assert queue.store.get(job.id).priority == 0
    with queue.acting(new) as db:
        assert change(db, job, priority=9)


def test_a_lease_that_was_given_back_is_nobodys(queue):
    number = queue.take_lease("one", None)
    queue.give_lease_back(number)
    assert queue.lease()["holder"] == ""
    with pytest.raises(LeaseLostError), queue.acting(number):
        pass
    assert queue.take_lease("two", queue.lease()) == number + 1


def test_giving_back_a_lease_that_was_lost_leaves_it_to_its_holder(queue):
    old = queue.take_lease("one", None)
    new = queue.take_lease("two", queue.lease())
    queue.give_lease_back(old)
    with queue.acting(new):
        pass
    assert queue.lease()["holder"] == "two"


# Usage.


def test_usage_is_the_sum_over_attempts_by_user_and_queue(queue):
    with_attempts = [
        (accepted(queue, "a"), [10.0, 5.0]),
        (accepted(queue, "b"), [1.0]),
        (accepted(queue, "c", user="bob", queue="night"), [2.0]),
    ]
    for job, seconds in with_attempts:
        for number, one in enumerate(seconds):
            put(queue, job, num_attempts=number)
            with queue.store.write() as db:
                add_attempt(db, queue.store.get(job.id), 1.0)
            with queue.store.write() as db:
                change_attempt(db, queue.attempts(job.id)[-1], seconds=one)
    used = {
        (row["user"], row["queue"]): (row["jobs"], row["attempts"], row["cpu_seconds"])
        for row in queue.usage()
    }
    assert used == {("ada", "default"): (2, 3, 32.0), ("bob", "night"): (1, 1, 4.0)}
    assert {row["user"]: row["gpu_seconds"] for row in queue.usage()} == {"ada": 16.0, "bob": 2.0}


# The tables.

_FIRST_TABLES = """
CREATE TABLE jobs (id TEXT NOT NULL PRIMARY KEY, name TEXT NOT NULL, kind TEXT NOT NULL,
  state TEXT NOT NULL, reason TEXT NOT NULL, created_unix_s FLOAT NOT NULL, started_unix_s FLOAT,
  ended_unix_s FLOAT, owner_pid INTEGER, owner_started_unix_s FLOAT, owner_host TEXT, run_id TEXT,
  num_attempts INTEGER NOT NULL, spec TEXT NOT NULL);
CREATE INDEX ix_jobs_created_unix_s ON jobs (created_unix_s);
CREATE TABLE promotions (id INTEGER NOT NULL PRIMARY KEY, registry TEXT NOT NULL,
  model TEXT NOT NULL, action TEXT NOT NULL, old_version INTEGER, new_version INTEGER,
  by_whom TEXT NOT NULL, reason TEXT NOT NULL, at_unix_s FLOAT NOT NULL);
CREATE INDEX ix_promotions_model ON promotions (model);
INSERT INTO jobs VALUES ('bbc-1', 'bbc', 'finetune', 'PENDING', '', 5.0, NULL, NULL, 7, 4.0,
  'there', NULL, 0, '{"kind": "finetune"}');
INSERT INTO promotions VALUES (1, 'r', 'm', 'gate', NULL, 3, 'ada', 'better', 6.0)
"""
"""As the first version made them, without migrations."""


def run_sql(home, text):  # noqa: F811
    home.root.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(home.database_url or f"sqlite:///{home.jobs_db}")
    with engine.begin() as db:
        for statement in text.strip().split(";\n"):
            db.exec_driver_sql(statement)
    engine.dispose()


def test_a_store_of_the_first_version_is_taken_over_with_its_rows(home):  # noqa: F811
    if home.database_url is not None:
        pytest.skip("the first version knew SQLite alone")
    run_sql(home, _FIRST_TABLES)
    store = Store(home)  # noqa: F811
    store.engine()
    job = store.get("bbc-1")
    assert (job.state, job.request, job.queue, job.ask) == (State.STARTING, None, "default", {})
    assert store.promotions(registry="r", model="m")[0].new_version == 3
    assert accepted(QueueStore(store)).request == 1
    assert differences(store) == []


def test_migrations_make_the_tables_of_the_schema(store):  # noqa: F811
    assert differences(store) == []


def differences(store):  # noqa: F811
    with store.engine().connect() as db:
        # SQLite gives a default of '' back as another text than it was given.
        opts = {"compare_type": True, "compare_server_default": db.dialect.name != "sqlite"}
        context = MigrationContext.configure(db, opts=opts)
        return compare_metadata(context, META)


def test_a_store_of_a_newer_version_is_refused_in_words(home):  # noqa: F811
    Store(home).engine().dispose()
    run_sql(home, "UPDATE alembic_version SET version_num = '999'")
    with pytest.raises(ClusterError, match=r"newer gpt2cls \(version 999.*upgrade"):
        Store(home).engine()


def test_a_file_that_is_no_database_is_refused_in_words(tmp_path):
    home = Home(tmp_path)  # noqa: F811
    home.jobs_db.write_text("no database " * 100)
    with pytest.raises(ClusterError, match=r"jobs\.db cannot be used: file is not a database"):
        Store(home).engine()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql+psycopg://ada:hunter2@127.0.0.1:1/x", "cannot be used"),
        ("mysql://ada:hunter2@host/x", "PostgreSQL is taken, no other"),
        ("ada:hunter2", "no address of a database"),
    ],
)
def test_a_server_that_cannot_be_used_is_named_without_its_password(tmp_path, url, words):
    with pytest.raises(ClusterError, match=words) as refused:
        Store(Home(tmp_path, url)).engine()
    assert "hunter2" not in str(refused.value)


def open_and_submit(home, key):  # noqa: F811
    return accepted(QueueStore(Store(home)), key).id


def test_processes_that_open_a_fresh_store_at_once_all_work_with_it(home):  # noqa: F811
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        ids = pool.starmap(open_and_submit, [(home, f"k{i}") for i in range(3)])
    store = Store(home)  # noqa: F811
    assert sorted(job.id for job in store.jobs()) == sorted(ids)
    assert differences(store) == []
    store.engine().dispose()
