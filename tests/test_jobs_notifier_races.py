"""No change of state is lost between notifiers, transactions and clocks (promise F30)."""

import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import receivers
import sqlalchemy as sa
import stores
from receivers import PATIENT_S, hang, happen, hook_to, in_turn, status, try_again

from jobs.notifier import Notifier
from jobs.schema import DELIVERIES, WEBHOOKS
from jobs.webhooks import deliveries

engine = stores.engine
clock, notifier, receiver = receivers.clock, receivers.notifier, receivers.receiver


def last_events(engine):
    with engine.connect() as db:
        return db.execute(sa.select(WEBHOOKS.c.last_event)).scalars().all()


def test_two_notifiers_at_once_lose_nothing_and_repeat_nothing(engine, receiver, tmp_path):
    hooks = [hook_to(engine, receiver.url, tmp_path) for _ in range(2)]
    events, stop = [], threading.Event()

    def notify():
        own = stores.making_engine(engine.url)
        notifier = Notifier(own, limit_s=PATIENT_S)
        while notifier.round() or not stop.is_set():
            pass
        own.dispose()

    threads = [threading.Thread(target=notify) for _ in range(2)]
    for thread in threads:
        thread.start()
    events = [happen(engine) for _ in range(15)]
    stop.set()
    for thread in threads:
        thread.join()
    Notifier(engine, limit_s=PATIENT_S).round()  # both may have looked before the last event
    assert sorted(receiver.event_ids) == sorted(events * 2)
    outcomes = [row["outcome"] for hook in hooks for row in deliveries(engine, hook)]
    assert outcomes == ["delivered"] * 30


def test_an_event_that_another_notifier_is_noting_is_told_once(
    engine, receiver, notifier, clock, tmp_path
):
    hook = hook_to(engine, receiver.url, tmp_path)
    event_id = happen(engine)
    row = {"webhook_id": hook, "event_id": event_id, "next_unix_s": clock()}
    with ThreadPoolExecutor() as pool:
        with engine.begin() as db:
            db.execute(DELIVERIES.insert().values(row))
            round_ = pool.submit(notifier.round)
            time.sleep(0.3)  # it meets the row that is not committed yet
        assert round_.result() == 1
    assert receiver.event_ids == [event_id]


def test_what_another_notifier_took_meanwhile_is_left_to_it(
    engine, receiver, notifier, clock, tmp_path
):
    hook_to(engine, receiver.url, tmp_path)
    events = [happen(engine) for _ in range(3)]
    other = Notifier(engine, now=clock, limit_s=PATIENT_S)

    def while_the_first_one_waits(handler, request):
        receiver.answer = status(204)
        assert other.round() == 2
        status(204)(handler, request)

    receiver.answer = while_the_first_one_waits
    assert notifier.round() == 1
    assert receiver.event_ids == events


def test_a_try_that_ended_late_does_not_undo_a_newer_one(
    engine, receiver, notifier, clock, tmp_path
):
    hook = hook_to(engine, receiver.url, tmp_path)
    other = Notifier(engine, now=clock, limit_s=PATIENT_S)
    happen(engine)

    def while_the_first_one_waits(handler, request):
        receiver.answer = status(500, b"newer")
        clock.unix_s += 60
        assert other.round() == 0
        newer.extend(deliveries(engine, hook))
        status(500, b"older")(handler, request)

    newer: list[dict] = []
    receiver.answer = while_the_first_one_waits
    notifier.round()
    assert deliveries(engine, hook) == newer
    assert (newer[0]["num_tries"], newer[0]["last_error"]) == (2, "answered 500: newer")


def test_a_notifier_killed_in_the_middle_of_a_try_loses_nothing(
    engine, receiver, notifier, clock, tmp_path
):
    hook = hook_to(engine, receiver.url, tmp_path)
    receiver.answer = in_turn(hang, status(204))
    event_id = happen(engine)

    def notify():
        Notifier(stores.making_engine(engine.url), now=clock, limit_s=PATIENT_S).round()

    other = multiprocessing.get_context("fork").Process(target=notify)
    other.start()
    while not receiver.requests:
        time.sleep(0.01)
    other.kill()
    other.join()
    assert notifier.round() == 0  # it might still be alive
    assert try_again(notifier, clock) == 1
    assert receiver.event_ids == [event_id, event_id]
    assert [delivery["outcome"] for delivery in deliveries(engine, hook)] == ["delivered"]


def test_a_clock_that_was_set_back_does_not_stop_deliveries(
    engine, receiver, notifier, clock, tmp_path
):
    hook_to(engine, receiver.url, tmp_path)
    receiver.answer = in_turn(status(500), status(204))
    happen(engine)
    notifier.round()
    clock.unix_s -= 3600
    assert notifier.round() == 1


def test_an_event_that_appears_after_a_later_one_is_told_too(engine, receiver, clock, tmp_path):
    hook_to(engine, receiver.url, tmp_path)
    notifiers = [Notifier(engine, now=clock, limit_s=PATIENT_S) for _ in range(2)]
    happen(engine, id=12)
    assert [notifier.round() for notifier in notifiers] == [1, 0]
    happen(engine, id=11)
    assert [notifier.round() for notifier in notifiers] == [1, 0]
    assert receiver.event_ids == [12, 11]


def test_events_that_were_noted_long_ago_are_not_looked_at_again(engine, receiver, tmp_path):
    hook_to(engine, receiver.url, tmp_path)
    notifier = Notifier(engine, limit_s=PATIENT_S, settle_s=0.0)
    happen(engine, "RUNNING")
    newest = happen(engine)
    assert notifier.round() == 1
    assert last_events(engine) == [0]
    assert notifier.round() == 0
    assert last_events(engine) == [newest]
