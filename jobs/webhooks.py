"""The addresses that are told of changes of state, their secrets, and the log of what was told.

What is sent, and when, is the notifier's (`jobs/notifier.py`).
"""

import hashlib
import hmac
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa

from gpt2cls.errors import RequestError
from jobs.faults import BadRequestError, Problem, shown
from jobs.masking import mask
from jobs.schema import DELIVERIES, EVENTS, WEBHOOKS
from jobs.states import FINAL, State

_SECRET_BYTES = range(16, 1025)
_URL_CHARACTERS = 2048
_WAITING = DELIVERIES.c.next_unix_s.is_not(None)
_DELIVERED = DELIVERIES.c.delivered_unix_s.is_not(None)
_OUTCOME = sa.case((_DELIVERED, "delivered"), (_WAITING, "waiting"), else_="failed")


def signature(secret: bytes, timestamp: int, body: bytes) -> str:
    """What the header X-Gpt2cls-Signature of a request says."""
    signed = f"{timestamp}.".encode() + body
    return "sha256=" + hmac.new(secret, signed, hashlib.sha256).hexdigest()


def verify(
    secret: bytes,
    timestamp: str,
    body: bytes,
    given: str,
    *,
    tolerance_s: float = 300.0,
    now: Callable[[], float] = time.time,
) -> bool:
    """Whether a request came from the holder of the secret, and not long ago.

    For receivers, to use, or to copy together with `signature`. The body is the request's raw
    bytes; `timestamp` and `given` are its headers X-Gpt2cls-Timestamp and X-Gpt2cls-Signature. The
    secret is the content of the file without the line ends at its end. An old request is refused,
    so that nobody can send a recorded one again; within the tolerance the event's id tells repeats.

    >>> secret, body = b"sixteen bytes or more", b'{"event_id": 7}'
    >>> given = signature(secret, 1000, body)
    >>> verify(secret, "1000", body, given, now=lambda: 1010.0)
    True
    >>> verify(secret, "1000", body + b" ", given, now=lambda: 1010.0)
    False
    """
    try:
        sent_unix_s = int(timestamp)
    except ValueError:
        return False
    expected = signature(secret, sent_unix_s, body)
    # Not `==`, whose time tells how much of a guess was right.
    is_signed = hmac.compare_digest(expected.encode(), given.encode(errors="replace"))
    return is_signed and abs(now() - sent_unix_s) <= tolerance_s


def read_secret(path: str) -> bytes:
    """The content of a secret's file without the line ends at its end.

    Raises:
        RequestError: it cannot be read, others may touch it, or it is too short or too long.
    """
    make_one = f"(umask 077; openssl rand -hex 32 > {path})"
    try:
        secret = _read_own_file(path)
    except OSError as error:
        raise RequestError(
            f"secret_file = {path}: {error.strerror}; the controller must be able to read it. "
            f"Make one on its machine: {make_one}"
        ) from error
    if len(secret) not in _SECRET_BYTES:
        raise RequestError(
            f"secret_file = {path}: must hold {_SECRET_BYTES[0]} to {_SECRET_BYTES[-1]:,} bytes, "
            f"line ends at its end not counted. Make a new one: {make_one}"
        )
    return secret


def _read_own_file(path: str) -> bytes:
    # Non-blocking, for opening a pipe waits for its writer.
    with open(path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK)) as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):
            raise RequestError(f"secret_file = {path}: is no regular file; name one")
        if mode & 0o077:
            raise RequestError(
                f"secret_file = {path}: others may read or change it "
                f"(mode {stat.S_IMODE(mode):04o}); chmod 600 {path}"
            )
        return file.read(_SECRET_BYTES.stop + 2).rstrip(b"\r\n")


def add_webhook(
    engine: sa.Engine,
    *,
    url: str,
    secret_file: str,
    states: Sequence[str] = (),
    by_whom: str,
) -> int:
    """Tell an address from now on when a job reaches one of the states; gives the webhook's id.

    The controller sends wherever it is told to, inside its network too, and its log shows how a
    refusal begins: let nobody add webhooks who may not reach what the controller reaches.

    Args:
        engine: of the job store.
        url: http or https. Its query is never shown again.
        secret_file: absolute path on the controller's machine. It is read at each try, so the
            secret can be changed.
        states: names of states; none: the final ones.
        by_whom: the user.

    Raises:
        BadRequestError: with all faults of the request; nothing was added.
    """
    wanted = list(dict.fromkeys(states)) or sorted(FINAL)
    if faults := [*_url_faults(url), *_secret_faults(secret_file), *_state_faults(wanted)]:
        raise BadRequestError(faults)
    newest = sa.select(sa.func.coalesce(sa.func.max(EVENTS.c.id), 0)).scalar_subquery()
    row = {"url": url, "secret_file": secret_file, "states": json.dumps(wanted)}
    with writing(engine) as db:
        made = db.execute(WEBHOOKS.insert().values(**row, by_whom=by_whom, last_event=newest))
        assert made.inserted_primary_key is not None, "an insert of one row gives its key"
        return int(made.inserted_primary_key[0])


def _url_faults(url: str) -> Iterator[Problem]:
    if (fault := _url_fault(url)) is not None:
        # A password may stand where no reader of addresses expects it.
        told = shown(re.sub(r"(:/*).*@", r"\1***@", without_query(url), flags=re.DOTALL))
        yield Problem(f"url = {told}: {fault}", field="url", value=told)


def _url_fault(url: str) -> str | None:
    if len(url) > _URL_CHARACTERS:
        return f"an address has at most {_URL_CHARACTERS:,} characters"
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        parts = httpx.URL("")
    if parts.scheme not in ("http", "https") or not parts.host:
        return "must be an address like https://host/path"
    if parts.userinfo:
        return "must hold no user and no password; the signature tells who sent it"
    if parts.port is not None and not 1 <= parts.port <= 65535:
        return f"there is no port {parts.port}; ports are 1 to 65535"
    return None


def _secret_faults(path: str) -> Iterator[Problem]:
    try:
        if not Path(path).is_absolute() or "\0" in path:
            raise RequestError(f"secret_file = {shown(path)}: give the whole path, from / on")
        read_secret(path)
    except RequestError as error:
        yield Problem(str(error), field="secret_file", value=path)


def _state_faults(states: Sequence[str]) -> Iterator[Problem]:
    allowed = ", ".join(State)
    for name in states:
        if name not in frozenset(State):
            message = f"states: no such state {shown(name)}; there are {allowed}"
            yield Problem(message, field="states", value=name, allowed=allowed)


def remove_webhook(engine: sa.Engine, webhook_id: int) -> None:
    """Tell it nothing more, and forget its delivery log.

    Raises:
        RequestError: there is no such webhook.
    """
    with writing(engine) as db:
        # The log goes too: SQLite gives the number of the last webhook to the next one.
        db.execute(DELIVERIES.delete().where(DELIVERIES.c.webhook_id == webhook_id))
        if not db.execute(WEBHOOKS.delete().where(WEBHOOKS.c.id == webhook_id)).rowcount:
            raise _no_webhook(webhook_id)


def webhooks(engine: sa.Engine) -> list[dict[str, Any]]:
    """All webhooks for display, with how many of their deliveries went how.

    `failed` counts those that were given up; `last_error` is of the newest event not delivered.
    """
    log = DELIVERIES.c
    hook_id = log.webhook_id
    counted = sa.select(hook_id, _OUTCOME, sa.func.count()).group_by(hook_id, _OUTCOME)
    wrong = sa.select(hook_id, log.last_error).where(~_DELIVERED, log.last_error != "")
    with engine.connect() as db:
        hooks = db.execute(sa.select(WEBHOOKS).order_by(WEBHOOKS.c.id)).all()
        counts = {(hook, outcome): num for hook, outcome, num in db.execute(counted)}
        errors = {hook: text for hook, text in db.execute(wrong.order_by(log.event_id))}
    return [
        {
            "id": hook.id,
            "url": without_query(hook.url),
            "states": json.loads(hook.states),
            "by_whom": hook.by_whom,
            **{way: counts.get((hook.id, way), 0) for way in ("delivered", "waiting", "failed")},
            "last_error": errors.get(hook.id, ""),
        }
        for hook in hooks
    ]


def deliveries(engine: sa.Engine, webhook_id: int, limit: int = 50) -> list[dict[str, Any]]:
    """The delivery log of one webhook, newest event first.

    Raises:
        RequestError: there is no such webhook.
    """
    event = (EVENTS.c.job_id, EVENTS.c.old, EVENTS.c.new)
    log = (
        sa.select(*DELIVERIES.c, _OUTCOME.label("outcome"), *event)
        .outerjoin_from(DELIVERIES, EVENTS, EVENTS.c.id == DELIVERIES.c.event_id)
        .where(DELIVERIES.c.webhook_id == webhook_id)
        .order_by(DELIVERIES.c.event_id.desc())
        .limit(limit)
    )
    with engine.connect() as db:
        if not db.execute(sa.select(WEBHOOKS.c.id).where(WEBHOOKS.c.id == webhook_id)).first():
            raise _no_webhook(webhook_id)
        return [dict(row) for row in db.execute(log).mappings()]


def without_query(url: str) -> str:
    """An address for display: tokens often stand in the query."""
    address, mark, _ = url.partition("?")
    return mask(address) + ("?***" if mark else "")


def writing(engine: sa.Engine) -> AbstractContextManager[sa.Connection]:
    """A transaction that takes SQLite's lock at its beginning (`jobs/database.py`)."""
    return engine.execution_options(writes=True).begin()


def _no_webhook(webhook_id: int) -> RequestError:
    return RequestError(f"there is no webhook {webhook_id}; the list of webhooks tells which exist")
