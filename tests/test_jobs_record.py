"""The record while no server is there; with one: tests/system/test_record.py."""

import json
import sqlite3
import time

from cluster.home import Home, Surroundings
from jobs.record import Record, deliver_pending, end_left_over
from jobs.settle import settle
from jobs.spool import Position, Spool
from jobs.states import State
from jobs.store import Store


def open_record(tmp_path, job_id="j-1"):
    # Port 9 is `discard`: nobody answers there.
    surroundings = Surroundings(Home(tmp_path), "http://127.0.0.1:9", None, None)
    job_dir = surroundings.home.job_dir(job_id)
    record = Record(job_dir, surroundings, job_id=job_id, experiment="e", with_usage=False)
    return record, surroundings, job_dir


def test_recording_takes_no_time_while_mlflow_is_away(tmp_path):
    record, _, _ = open_record(tmp_path)
    start = time.monotonic()
    for step in range(1000):
        record.metrics({"train/loss": 1.0}, step=step)
    assert time.monotonic() - start < 0.5
    record.close()


def test_what_is_not_delivered_is_counted(tmp_path):
    record, _, job_dir = open_record(tmp_path)
    events = [{"step": s, "time_ms": s, "metrics": {"a": 1.0, "b": 2.0}} for s in range(10)]
    (job_dir / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    record.metrics({"c": 1.0}, step=0)
    record.close()
    spool = Spool(job_dir)
    assert spool.num_points_left() == 21
    spool.set_position(Position(events=spool.events_path.stat().st_size))
    assert spool.num_points_left() == 1


def test_an_end_that_could_not_be_told_says_so_and_waits(tmp_path):
    record, surroundings, job_dir = open_record(tmp_path)
    assert not record.finish("FINISHED", timeout_s=0.5)
    assert not Spool(job_dir).is_delivered()
    assert "no answer" in deliver_pending(surroundings)["j-1"]


def test_a_job_that_never_recorded_leaves_nothing_to_tell(tmp_path):
    assert end_left_over(tmp_path / "jobs" / "j-2", "FAILED") is None
    assert not (tmp_path / "jobs").exists()


def test_a_record_that_is_opened_again_goes_on_with_the_same_run(tmp_path):
    first, _, job_dir = open_record(tmp_path)
    first.params({"a": 1})
    first.close()
    head = Spool(job_dir).head()
    second, _, _ = open_record(tmp_path)
    second.close()
    assert Spool(job_dir).head() == head | {"ended": None}
    assert Spool(job_dir).path.read_text().splitlines()[-1] == '{"op":"reopen"}'


def test_a_job_that_died_just_before_the_end_of_its_run_is_ended_by_the_next_look(tmp_path):
    surroundings = Surroundings(Home(tmp_path), "http://127.0.0.1:9", None, None)
    store = Store(surroundings.home)
    job = store.start(store.create(name="bbc", kind="finetune", spec={}).id)
    spool = Spool(surroundings.home.job_dir(job.id))
    spool.set_head(job_id=job.id, experiment="bbc", run_name=job.id, start_ms=1, run_id="r1")
    store.finish(job.id, State.SUCCEEDED)
    settle(store, surroundings)
    assert spool.head().get("ended") is None  # this very process owns it and may still tell
    with sqlite3.connect(surroundings.home.jobs_db) as db:
        db.execute("UPDATE jobs SET owner_birth = 'another'")
    settle(store, surroundings)
    settle(store, surroundings)
    assert spool.head()["ended"] == "FINISHED"
    assert spool.path.read_text().count("FINISHED") == 1
    assert store.get(job.id).run_id == "r1"
