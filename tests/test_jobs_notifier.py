"""Changes of state reach their receivers, whatever these do (promise F30)."""

import hashlib
import json
import logging
import threading
import time
from random import Random

import pytest
import receivers
import stores
from receivers import (
    LONGEST_S,
    SECRET,
    Receiver,
    drip,
    flood,
    hang,
    happen,
    hook_to,
    in_turn,
    no_answer,
    secret_at,
    status,
    try_again,
)

from jobs.lifecycle import retry_delay_s
from jobs.notifier import MAX_TRIES, PAUSES, Notifier
from jobs.schema import DELIVERIES, JOBS
from jobs.webhooks import deliveries, remove_webhook, webhooks

engine = stores.engine
clock, notifier, receiver = receivers.clock, receivers.notifier, receivers.receiver


def hmac_sha256(key, message):
    """RFC 2104, for keys of up to one block."""
    key = key.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in key) + message).digest()
    return hashlib.sha256(bytes(byte ^ 0x5C for byte in key) + inner).hexdigest()


def test_a_change_of_state_is_told_once(engine, receiver, notifier, tmp_path):
    hook_to(engine, receiver.url, tmp_path)
    job = {"id": "tw-1", "name": "tweets", "kind": "finetune", "state": "FAILED", "spec": "{}"}
    with engine.begin() as db:
        db.execute(JOBS.insert().values(**job, created_unix_s=1.0))
    event_id = happen(engine, "FAILED", reason="out of memory")
    assert [notifier.round(), notifier.round()] == [1, 0]
    [request] = receiver.requests
    assert json.loads(request.body) == {
        "event_id": event_id,
        "job_id": "tw-1",
        "name": "tweets",
        "attempt": 1,
        "at": "2023-11-14T22:13:20.250+00:00",
        "old": "RUNNING",
        "new": "FAILED",
        "reason": "out of memory",
    }
    assert request.headers["X-Gpt2cls-Event"] == str(event_id)
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["User-Agent"] == "gpt2cls"


def test_a_request_is_signed_with_the_secret_and_the_time(
    engine, receiver, notifier, clock, tmp_path
):
    hook_to(engine, receiver.url, tmp_path)
    happen(engine)
    notifier.round()
    [request] = receiver.requests
    stamp = request.headers["X-Gpt2cls-Timestamp"]
    assert stamp == str(int(clock()))
    expected = hmac_sha256(SECRET, stamp.encode() + b"." + request.body)
    assert request.headers["X-Gpt2cls-Signature"] == f"sha256={expected}"


def test_only_new_changes_to_the_wanted_states_are_told(engine, receiver, notifier, tmp_path):
    happen(engine, "FAILED")
    hook_to(engine, receiver.url, tmp_path, states=["RUNNING", "FAILED"])
    happen(engine, "SUCCEEDED")
    happen(engine, "RUNNING", old="RUNNING", reason="priority changed")
    wanted = [happen(engine, "FAILED"), happen(engine, "RUNNING", old="STARTING")]
    assert notifier.round() == 2
    assert receiver.event_ids == wanted


def test_each_webhook_is_told_what_it_wants(engine, receiver, notifier, tmp_path):
    failures, starts = (
        hook_to(engine, receiver.url, tmp_path, states=[state]) for state in ("FAILED", "RUNNING")
    )
    failed, started = happen(engine, "FAILED"), happen(engine, "RUNNING", old="STARTING")
    assert notifier.round() == 2
    told = [[row["event_id"] for row in deliveries(engine, hook)] for hook in (failures, starts)]
    assert told == [[failed], [started]]


def test_what_waits_is_sent_in_the_order_of_the_events(engine, receiver, notifier, tmp_path):
    hook_to(engine, receiver.url, tmp_path)
    events = [happen(engine) for _ in range(25)]
    assert [notifier.round(), notifier.round()] == [20, 5]  # a round is bounded
    assert receiver.event_ids == events


def test_a_receiver_that_was_down_is_told_when_it_is_up(
    engine, receiver, notifier, clock, tmp_path
):
    hook = hook_to(engine, receiver.url, tmp_path)
    receiver.go_down()
    event_id = happen(engine)
    assert [notifier.round(), try_again(notifier, clock)] == [0, 0]
    [waiting] = deliveries(engine, hook)
    assert (waiting["outcome"], waiting["num_tries"]) == ("waiting", 2)
    assert waiting["last_error"] == "no answer: Connection refused"
    receiver.come_up()
    assert [try_again(notifier, clock), try_again(notifier, clock)] == [1, 0]
    [done] = deliveries(engine, hook)
    assert (done["outcome"], done["num_tries"], done["next_unix_s"]) == ("delivered", 3, None)
    assert done["delivered_unix_s"] == clock() - 600
    assert receiver.event_ids == [event_id]


def test_a_repeat_has_the_same_event_id_and_body(engine, receiver, notifier, clock, tmp_path):
    hook = hook_to(engine, receiver.url, tmp_path)
    receiver.answer = in_turn(no_answer, status(500), status(204))
    happen(engine)
    assert [notifier.round(), try_again(notifier, clock), try_again(notifier, clock)] == [0, 0, 1]
    assert len(receiver.requests) == 3
    assert len({request.body for request in receiver.requests}) == 1
    assert len({request.headers["X-Gpt2cls-Event"] for request in receiver.requests}) == 1
    assert len({request.headers["X-Gpt2cls-Signature"] for request in receiver.requests}) == 3
    assert [delivery["num_tries"] for delivery in deliveries(engine, hook)] == [3]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        pytest.param(status(500, b"<b>broken</b>"), "answered 500: <b>broken</b>", id="500"),
        pytest.param(status(404), "answered 404", id="404"),
        pytest.param(status(304), "answered 304", id="304"),
        pytest.param(no_answer, "no answer: Server disconnected", id="closes"),
        pytest.param(status(500, b"\0\x1b[31mred\r\n"), "answered 500: [31mred", id="escapes"),
    ],
)
def test_what_is_no_delivery_waits_for_another_try(
    engine, receiver, notifier, clock, tmp_path, answer, error
):
    hook = hook_to(engine, receiver.url, tmp_path)
    receiver.answer = answer
    happen(engine)
    assert notifier.round() == 0
    [delivery] = deliveries(engine, hook)
    assert delivery["outcome"] == "waiting"
    assert clock() < delivery["next_unix_s"] <= clock() + 2
    assert delivery["last_error"].startswith(error)
    assert len(delivery["last_error"]) <= len("answered 500: ") + 200
    assert delivery["last_error"].isprintable()


@pytest.mark.parametrize(
    ("answer", "error"), [(hang, "no answer within 0.3 s"), (drip, "answer within 0.")]
)
def test_a_receiver_that_keeps_others_waiting_is_left(engine, receiver, tmp_path, answer, error):
    hook = hook_to(engine, receiver.url, tmp_path)
    receiver.answer = answer
    happen(engine)
    started = time.monotonic()
    assert Notifier(engine, limit_s=0.3).round() == 0
    assert time.monotonic() - started < LONGEST_S / 2
    assert error in deliveries(engine, hook)[0]["last_error"]


def test_an_endless_answer_is_not_read_to_its_end(engine, receiver, notifier, tmp_path):
    hook = hook_to(engine, receiver.url, tmp_path)
    receiver.answer = flood
    happen(engine)
    started = time.monotonic()
    assert notifier.round() == 0
    assert time.monotonic() - started < LONGEST_S / 2
    assert deliveries(engine, hook)[0]["last_error"] == "answered 500: " + ("no " * 67)[:200]


def test_a_slow_receiver_gets_a_bounded_time_of_a_round(engine, receiver, tmp_path):
    hook_to(engine, receiver.url, tmp_path)
    receiver.answer = lambda *args: receiver.nap(0.2) or status(204)(*args)
    for _ in range(20):
        happen(engine)
    Notifier(engine, limit_s=0.4).round()
    assert 1 <= len(receiver.requests) <= 5


def test_a_redirect_is_not_followed(engine, receiver, notifier, tmp_path):
    hook = hook_to(engine, receiver.url, tmp_path)
    target = receiver.url.replace("/hook", "/other?key=hunter2")
    receiver.answer = status(307, Location=target)
    happen(engine)
    assert notifier.round() == 0
    assert [request.path for request in receiver.requests] == ["/hook"]
    [delivery] = deliveries(engine, hook)
    assert f"answered 307, go to {target.partition('?')[0]}?***; " in delivery["last_error"]


def test_nothing_is_tried_again_before_its_time(engine, receiver, notifier, clock, tmp_path):
    hook = hook_to(engine, receiver.url, tmp_path)
    receiver.answer = status(500)
    happen(engine)
    notifier.round()
    clock.unix_s = deliveries(engine, hook)[0]["next_unix_s"] - 0.001
    notifier.round()
    assert len(receiver.requests) == 1
    clock.unix_s += 0.002
    notifier.round()
    assert len(receiver.requests) == 2


@pytest.mark.parametrize(
    ("num_tries", "longest_s"), [(1, 2), (2, 4), (9, 512), (10, 600), (19, 600)]
)
def test_waits_grow_to_ten_minutes_and_are_spread_evenly(num_tries, longest_s):
    rng = Random(0)
    waits_s = [retry_delay_s(num_tries, rng, **PAUSES) for _ in range(1000)]
    assert 0 <= min(waits_s) < 0.01 * longest_s
    assert 0.99 * longest_s < max(waits_s) <= longest_s
    assert sum(waits_s) / 1000 == pytest.approx(longest_s / 2, rel=0.06)  # three deviations


def test_a_delivery_is_given_up_after_its_last_try_and_says_so(
    engine, receiver, notifier, clock, tmp_path
):
    hook = hook_to(engine, receiver.url, tmp_path)
    receiver.answer = status(500, b"no")
    event_id = happen(engine)
    notifier.round()
    with engine.begin() as db:
        db.execute(DELIVERIES.update().values(num_tries=MAX_TRIES - 2))
    try_again(notifier, clock)
    assert deliveries(engine, hook)[0]["outcome"] == "waiting"
    assert [try_again(notifier, clock) for _ in range(2)] == [0, 0]
    assert receiver.event_ids == [event_id] * 3
    [shown] = webhooks(engine)
    assert (shown["waiting"], shown["failed"]) == (0, 1)
    assert shown["last_error"] == "given up after 20 tries; the last one: answered 500: no"


def test_an_event_that_is_refused_does_not_block_the_next_ones(
    engine, receiver, notifier, tmp_path
):
    hook_to(engine, receiver.url, tmp_path)
    refused, second, third = (happen(engine) for _ in range(3))

    def picky(handler, request):
        status(400 if request.event_id == refused else 204)(handler, request)

    receiver.answer = picky
    assert [notifier.round(), notifier.round()] == [0, 2]
    assert receiver.event_ids == [refused, second, third]


def test_a_receiver_that_is_down_costs_one_try_a_round(engine, receiver, notifier, tmp_path):
    hook = hook_to(engine, receiver.url, tmp_path)
    receiver.answer = no_answer
    for _ in range(5):
        happen(engine)
    assert notifier.round() == 0
    assert [delivery["num_tries"] for delivery in deliveries(engine, hook)] == [0, 0, 0, 0, 1]


def test_a_slow_receiver_does_not_hold_up_another(engine, receiver, notifier, tmp_path):
    slow = hook_to(engine, receiver.url, tmp_path)
    all_told = threading.Event()
    receiver.answer = lambda *args: all_told.wait(LONGEST_S) and status(204)(*args)
    with Receiver() as other:
        hook_to(engine, other.url, tmp_path)
        events = [happen(engine) for _ in range(3)]
        other.answer = lambda *args: (
            (all_told.set() if len(other.requests) == 3 else None) or (status(204)(*args))
        )
        assert notifier.round() == 6
        assert other.event_ids == receiver.event_ids == events
    assert {delivery["num_tries"] for delivery in deliveries(engine, slow)} == {1}


def test_no_secret_comes_back_from_a_receiver_that_repeats_everything(
    engine, receiver, notifier, tmp_path, caplog
):
    caplog.set_level(logging.INFO)
    hook = hook_to(engine, f"{receiver.url}?key=hunter2%2F%2B&x=1", tmp_path)

    def repeat(handler, request):
        text = f"{request.path} key: hunter2/+ {SECRET.decode()} Bearer abcdefghijk"
        status(403, text.encode())(handler, request)

    receiver.answer = repeat
    happen(engine)
    notifier.round()
    assert receiver.requests[0].path == "/hook?key=hunter2%2F%2B&x=1"
    told = f"{webhooks(engine)} {deliveries(engine, hook)} {caplog.text}"
    assert "answered 403: /hook?*** key: *** *** Bearer ***" in told
    assert not [word for word in ("hunter2", SECRET.decode(), "abcdefghijk") if word in told]


def test_a_secret_in_a_reason_is_not_told(engine, receiver, notifier, tmp_path):
    hook_to(engine, receiver.url, tmp_path)
    happen(engine, "FAILED", reason="pip: https://ada:hunter2@host/simple")
    notifier.round()
    assert json.loads(receiver.requests[0].body)["reason"] == "pip: https://***@host/simple"


def test_a_long_answer_is_cut_short(engine, receiver, notifier, tmp_path):
    hook = hook_to(engine, receiver.url, tmp_path)
    receiver.answer = status(500, b"x" * 150 + " \u00fc".encode() * 1000)
    happen(engine)
    notifier.round()
    error = deliveries(engine, hook)[0]["last_error"]
    assert error == "answered 500: " + "x" * 150 + " \u00fc" * 25


def test_a_secret_that_was_lost_is_said_and_a_new_one_is_used(
    engine, receiver, notifier, clock, tmp_path
):
    hook = hook_to(engine, receiver.url, tmp_path)
    (tmp_path / "secret").unlink()
    happen(engine)
    assert notifier.round() == 0
    error = deliveries(engine, hook)[0]["last_error"]
    assert error.startswith(f"secret_file = {tmp_path}/secret: No such file")
    assert receiver.requests == []
    secret_at(tmp_path / "secret", b"another secret of the tests")
    assert try_again(notifier, clock) == 1
    [request] = receiver.requests
    signed = request.headers["X-Gpt2cls-Timestamp"].encode() + b"." + request.body
    expected = hmac_sha256(b"another secret of the tests", signed)
    assert request.headers["X-Gpt2cls-Signature"] == f"sha256={expected}"


def test_a_host_that_cannot_be_one_does_not_disturb_the_others(
    engine, receiver, notifier, tmp_path
):
    wrong = hook_to(engine, "http://..", tmp_path)
    hook_to(engine, receiver.url, tmp_path)
    happen(engine)
    assert notifier.round() == 1
    assert "not known" in deliveries(engine, wrong)[0]["last_error"]


def test_a_removed_webhook_is_told_nothing_more(engine, receiver, notifier, clock, tmp_path):
    hook = hook_to(engine, receiver.url, tmp_path)
    receiver.answer = status(500)
    happen(engine)
    notifier.round()
    remove_webhook(engine, hook)
    happen(engine)
    assert try_again(notifier, clock) == 0
    assert len(receiver.requests) == 1
