"""Which webhooks there are, what they may be, and how a receiver checks a request."""

import doctest
import os

import pytest
import sqlalchemy as sa
import stores
from receivers import SECRET, happen, hook_to, secret_at

from gpt2cls.errors import RequestError
from jobs import webhooks as module
from jobs.schema import DELIVERIES, WEBHOOKS
from jobs.webhooks import (
    add_webhook,
    deliveries,
    read_secret,
    remove_webhook,
    signature,
    verify,
    webhooks,
)

engine = stores.engine
URL = "https://example.org/hook"


def log(engine, webhook_id, event_id, **columns):
    with engine.begin() as db:
        row = {"webhook_id": webhook_id, "event_id": event_id, **columns}
        db.execute(DELIVERIES.insert().values(row))


def test_a_webhook_is_told_the_final_states_unless_it_wants_others(engine, tmp_path):
    hook_to(engine, URL, tmp_path)
    hook_to(engine, URL, tmp_path, states=["RUNNING", "FAILED", "RUNNING"])
    final, chosen = webhooks(engine)
    assert final["states"] == ["FAILED", "STOPPED", "SUCCEEDED"]
    assert chosen["states"] == ["RUNNING", "FAILED"]
    assert (chosen["url"], chosen["by_whom"], chosen["id"]) == (URL, "ada", final["id"] + 1)


def test_a_webhook_begins_with_the_newest_event_of_the_moment(engine, tmp_path):
    hook_to(engine, URL, tmp_path)
    newest = [happen(engine), happen(engine)][-1]
    hook_to(engine, URL, tmp_path)
    with engine.connect() as db:
        last = db.execute(sa.select(WEBHOOKS.c.last_event).order_by(WEBHOOKS.c.id)).scalars().all()
    assert last == [0, newest]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        pytest.param("ftp://host/x", "https://host/path", id="another scheme"),
        pytest.param("file:///etc/passwd", "https://host/path", id="a file"),
        pytest.param("host/path", "https://host/path", id="no scheme"),
        pytest.param("http:///path", "https://host/path", id="no host"),
        pytest.param("http://[::1", "https://host/path", id="half an address"),
        pytest.param("http://host/\n", "https://host/path", id="a line end"),
        pytest.param("http://u:pw@host/", "no user and no password", id="a password"),
        pytest.param("http://token@host/", "no user and no password", id="a user"),
        pytest.param("http://host:99999/", "no port 99999", id="a port too high"),
        pytest.param("http://host:0/", "no port 0", id="a port too low"),
        pytest.param("http://host/" + "x" * 2048, "2,048 characters", id="too long"),
    ],
)
def test_what_is_no_address_to_post_to_is_refused(engine, tmp_path, url, words):
    with pytest.raises(RequestError, match=r"^url = ") as caught:
        hook_to(engine, url, tmp_path)
    assert words in str(caught.value)
    assert webhooks(engine) == []


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/?key=hunter2",
        "http://ada:hunter2@host/",
        "http://ada:hunt/hunter2@host/",
        "ada:hunter2@host",
        "http://ada:\nhunter2@host/?key=hunter2",
    ],
)
def test_a_refused_address_is_shown_without_its_secrets(engine, tmp_path, url):
    with pytest.raises(RequestError) as caught:
        hook_to(engine, url, tmp_path)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in str([problem.document() for problem in caught.value.problems])


def others_may_read(path):
    os.chmod(secret_at(path), 0o640)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        pytest.param(lambda path: None, "No such file", id="missing"),
        pytest.param(others_may_read, "chmod 600", id="readable by others"),
        pytest.param(lambda path: path.mkdir(), "directory", id="a folder"),
        pytest.param(lambda path: os.mkfifo(path, 0o600), "no regular file", id="a pipe"),
        pytest.param(lambda path: secret_at(path, b"x" * 15), "16 to 1,024", id="short"),
        pytest.param(lambda path: secret_at(path, b"x" * 1025), "16 to 1,024", id="long"),
        pytest.param(lambda path: secret_at(path, b"x" * 15 + b"\n"), "16", id="a short line"),
    ],
)
def test_a_file_that_cannot_keep_a_secret_is_refused(tmp_path, make, words):
    path = tmp_path / "secret"
    make(path)
    with pytest.raises(RequestError, match=r"^secret_file = ") as caught:
        read_secret(str(path))
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_the_line_end_of_a_secrets_file_is_no_part_of_the_secret(tmp_path):
    assert read_secret(secret_at(tmp_path / "secret", b" 16 bytes or more\r\n")) == (
        b" 16 bytes or more"
    )


def test_a_refusal_names_all_faults_and_adds_nothing(engine):
    with pytest.raises(RequestError) as caught:
        add_webhook(engine, url="x", secret_file="secret", states=["DONE"], by_whom="ada")
    url, secret, state = str(caught.value).splitlines()
    assert url.startswith("url = x: must be")
    assert secret.startswith("secret_file = secret: give the whole path")
    assert "'DONE'" in state or "DONE;" in state
    assert "QUEUED, STARTING, RUNNING" in state
    assert webhooks(engine) == []


def test_an_address_is_shown_without_its_query(engine, tmp_path):
    hook_to(engine, f"{URL}?key=hunter2", tmp_path)
    hook = webhooks(engine)[0]
    assert hook["url"] == f"{URL}?***"
    assert "hunter2" not in str(hook)
    assert SECRET.decode() not in str(hook)


def test_a_webhook_shows_how_its_deliveries_went(engine, tmp_path):
    hook, other = hook_to(engine, URL, tmp_path), hook_to(engine, URL, tmp_path)
    log(engine, hook, 1, delivered_unix_s=5.0, last_error="before it worked")
    log(engine, hook, 2, last_error="given up")
    log(engine, hook, 3, next_unix_s=9.0, last_error="newest")
    log(engine, hook, 4, next_unix_s=9.0)
    log(engine, other, 4, delivered_unix_s=6.0, last_error="before it worked")
    shown = [
        [hook[key] for key in ("delivered", "waiting", "failed", "last_error")]
        for hook in webhooks(engine)
    ]
    assert shown == [[1, 2, 1, "newest"], [1, 0, 0, ""]]


def test_the_delivery_log_begins_with_the_newest_event(engine, tmp_path):
    hook, other = hook_to(engine, URL, tmp_path), hook_to(engine, URL, tmp_path)
    first, second = happen(engine, "FAILED"), happen(engine, "STOPPED", job_id="tw-2")
    log(engine, hook, first, delivered_unix_s=5.0)
    log(engine, hook, second, last_error="given up")
    log(engine, other, second, next_unix_s=1.0)
    newest, oldest = deliveries(engine, hook)
    told = [newest[key] for key in ("event_id", "job_id", "new", "outcome", "last_error")]
    assert told == [second, "tw-2", "STOPPED", "failed", "given up"]
    assert (oldest["event_id"], oldest["outcome"]) == (first, "delivered")
    assert deliveries(engine, hook, limit=1) == [newest]


@pytest.mark.parametrize("act", [remove_webhook, deliveries])
def test_a_webhook_that_is_not_there_is_named(engine, act):
    with pytest.raises(RequestError, match="no webhook 7"):
        act(engine, 7)


def test_a_removed_webhook_leaves_no_log_to_the_next_one(engine, tmp_path):
    kept, hook = hook_to(engine, URL, tmp_path), hook_to(engine, URL, tmp_path)
    log(engine, kept, 1, next_unix_s=1.0)
    log(engine, hook, 1, next_unix_s=1.0)
    remove_webhook(engine, hook)
    after = hook_to(engine, URL, tmp_path)
    assert [hook["id"] for hook in webhooks(engine)] == [kept, after]
    assert deliveries(engine, after) == []
    assert len(deliveries(engine, kept)) == 1


BODY = b'{"event_id": 7}'
SIGNED = signature(SECRET, 1000, BODY)


@pytest.mark.parametrize(
    ("changed", "is_accepted"),
    [
        pytest.param({}, True, id="as it was sent"),
        pytest.param({"now": 1300.0}, True, id="at the end of the tolerance"),
        pytest.param({"now": 1300.1}, False, id="too old"),
        pytest.param({"now": 699.9}, False, id="from the future"),
        pytest.param({"secret": SECRET + b"!"}, False, id="another secret"),
        pytest.param({"body": BODY + b" "}, False, id="another body"),
        pytest.param({"timestamp": "1001"}, False, id="another time"),
        pytest.param({"timestamp": "soon"}, False, id="no time"),
        pytest.param({"timestamp": "9" * 5000}, False, id="an endless time"),
        pytest.param({"given": SIGNED.removeprefix("sha256=")}, False, id="half a signature"),
        pytest.param({"given": ""}, False, id="no signature"),
        pytest.param({"given": "sha256=\u00e9\udc80"}, False, id="a signature of strange letters"),
    ],
)
def test_a_receiver_accepts_only_what_was_signed_just_now(changed, is_accepted):
    request = {"secret": SECRET, "timestamp": "1000", "body": BODY, "given": SIGNED, "now": 1000.0}
    request |= changed
    now = request.pop("now")
    assert verify(**request, now=lambda: now) is is_accepted


def test_the_recipe_for_receivers_works_as_it_is_written():
    examples = doctest.DocTestFinder().find(verify, "verify", globs=vars(module))
    results = [doctest.DocTestRunner().run(example) for example in examples]
    assert [(result.failed, result.attempted) for result in results] == [(0, 4)]
