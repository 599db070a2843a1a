"""Tells webhooks of changes of state, by signed HTTP requests, at least once.

A delivery is a row of the store before it is sent, and stays due until the receiver answers 2xx or
its tries are used up. A reply that was lost makes a repeat: receivers tell repeats by the event's
id. The order is not promised; it is that of the ids until a try fails.
"""

import asyncio
import contextlib
import json
import logging
import os
import ssl
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cached_property
from itertools import groupby
from random import Random
from typing import Any
from urllib.parse import unquote_plus

import httpx
import sqlalchemy as sa

from gpt2cls.errors import RequestError
from jobs.lifecycle import retry_delay_s
from jobs.masking import mask
from jobs.schema import DELIVERIES, EVENTS, JOBS, WEBHOOKS
from jobs.webhooks import read_secret, signature, without_query, writing

MAX_TRIES = 20
"""About an hour with the waits between them; then a delivery is given up."""
MAX_WAIT_S = 600.0
PAUSES = {"base_s": 2.0, "cap_s": MAX_WAIT_S}
_CLAIM_S = 30.0  # longer than a try takes; after a kill in the middle it is repeated then
_BATCH = 20
_REPLY_CHARACTERS = 200
_READ_BYTES = 4096
_COLUMNS = ("webhook_id", "event_id", "num_tries", "next_unix_s")


class Notifier:
    """Sends what is due. Several may work on one store: each try is first claimed in it.

    A class because it remembers the newest event of some rounds ago. Clocks of machines that send
    at the same time must agree within `MAX_WAIT_S`, or they use up the tries early.

    Args:
        engine: of the job store.
        now: the clock.
        limit_s: for connecting and for each part of the reply; a whole try has twice as long.
        settle_s: how long a transaction that writes events may stay open.
    """

    def __init__(
        self,
        engine: sa.Engine,
        *,
        now: Callable[[], float] = time.time,
        limit_s: float = 5.0,
        settle_s: float = 300.0,
    ) -> None:
        self._engine = engine
        self._now = now
        self._limit_s = limit_s
        self._settle_s = settle_s
        self._rng = Random()
        self._newest: tuple[int, float] | None = None
        # At INFO it writes whole addresses into the log, with the tokens in their queries.
        logging.getLogger("httpx").setLevel(logging.WARNING)

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return httpx.create_ssl_context()

    def round(self) -> int:
        """Note the deliveries of new events and try what is due; gives how many arrived.

        All webhooks are told at once, and the first failure of one ends its round, so a receiver
        that hangs costs the others a few seconds. Call it from a thread without an event loop.
        """
        self._note_events()
        due = self._due()
        return asyncio.run(self._tell(due)) if due else 0

    def _note_events(self) -> None:
        """Make the missing deliveries, one for each webhook and event."""
        settled = self._settled_event()
        with self._engine.connect() as db:
            hooks = db.execute(sa.select(WEBHOOKS).order_by(WEBHOOKS.c.id)).all()
            late = [hook for hook in hooks if db.execute(_missing(hook).limit(1)).first()]
        if not late and settled is None:
            return
        # Another notifier may note the same ones first; what it did not note is for the next round.
        with contextlib.suppress(sa.exc.IntegrityError), writing(self._engine) as db:
            for hook in late:
                missing = _missing(hook, self._now())
                db.execute(DELIVERIES.insert().from_select(_COLUMNS, missing))
            if settled is not None:
                behind = WEBHOOKS.c.last_event < settled
                db.execute(WEBHOOKS.update().where(behind).values(last_event=settled))

    def _settled_event(self) -> int | None:
        """Once in a while, an event before which no other can become visible any more.

        PostgreSQL gives ids before the commit, so an event may appear after one with a higher id.
        `last_event` must not have passed it by then, or it would never be told.
        """
        if self._newest is not None and time.monotonic() < self._newest[1]:
            return None
        settled = self._newest[0] if self._newest is not None else None
        with self._engine.connect() as db:
            newest = db.execute(sa.select(sa.func.max(EVENTS.c.id))).scalar() or 0
        self._newest = (newest, time.monotonic() + self._settle_s)
        return settled

    def _due(self) -> list[sa.Row[Any]]:
        """The first ones of each webhook that are due, in the order of the events."""
        with self._engine.connect() as db:
            return list(db.execute(_due(self._now())).all())

    async def _tell(self, due: Sequence[sa.Row[Any]]) -> int:
        async with httpx.AsyncClient(
            verify=self._tls,
            timeout=self._limit_s,
            follow_redirects=False,
            limits=httpx.Limits(max_connections=None),
            headers={"User-Agent": "gpt2cls", "Accept-Encoding": "identity"},
        ) as client:
            batches = [list(rows) for _, rows in groupby(due, key=lambda row: row.webhook_id)]
            return sum(await asyncio.gather(*(self._tell_one(client, rows) for rows in batches)))

    async def _tell_one(self, client: httpx.AsyncClient, rows: Sequence[sa.Row[Any]]) -> int:
        """The events of one webhook, one after the other."""
        num_delivered, until = 0, time.monotonic() + 2 * self._limit_s
        for row in rows:
            if time.monotonic() > until:
                break
            if not self._claim(row):
                continue
            error = await self._post(client, row)
            self._write_down(row, error)
            if error is not None:
                break
            num_delivered += 1
        return num_delivered

    def _claim(self, row: sa.Row[Any]) -> bool:
        """Whether this try is ours. Whatever comes between, another one follows."""
        claim = _this(row).where(DELIVERIES.c.num_tries == row.num_tries)
        values = {"num_tries": row.num_tries + 1, "next_unix_s": self._now() + _CLAIM_S}
        with writing(self._engine) as db:
            return bool(db.execute(claim.values(**values)).rowcount == 1)

    async def _post(self, client: httpx.AsyncClient, row: sa.Row[Any]) -> str | None:
        """Make one try; gives what went wrong, without secrets."""
        hidden = _query_parts(row.url)
        try:
            secret = read_secret(row.secret_file)
            hidden.append(secret.decode(errors="replace"))
            body = _body(row)
            headers = _headers(row.event_id, secret, int(self._now()), body)
            # A receiver that drips its reply byte by byte meets no limit of httpx.
            async with (
                asyncio.timeout(2 * self._limit_s),
                client.stream("POST", row.url, content=body, headers=headers) as reply,
            ):
                return None if reply.is_success else await _refusal(reply, hidden)
        except RequestError as error:
            return str(error)
        except httpx.TimeoutException:
            return f"no answer within {self._limit_s:g} s"
        except TimeoutError:
            return f"no whole answer within {2 * self._limit_s:g} s"
        # ValueError: a name of a host that cannot be one.
        except (httpx.HTTPError, OSError, ValueError) as error:
            return f"no answer: {_harmless(_words(error), hidden)}"

    def _write_down(self, row: sa.Row[Any], error: str | None) -> None:
        num_tries, ours = row.num_tries + 1, _this(row)
        values: dict[str, Any] = {"next_unix_s": None}
        if error is None:
            values["delivered_unix_s"] = self._now()
        else:
            ours = ours.where(DELIVERIES.c.num_tries == num_tries)  # nobody claimed it since
            if num_tries >= MAX_TRIES:
                error = f"given up after {num_tries} tries; the last one: {error}"
            else:
                values["next_unix_s"] = self._now() + retry_delay_s(num_tries, self._rng, **PAUSES)
            values["last_error"] = error
        with writing(self._engine) as db:
            db.execute(ours.values(**values))


def _missing(hook: sa.Row[Any], now: float = 0.0) -> sa.Select[Any]:
    """The deliveries that a webhook has not yet, due now.

    Nothing if it was removed since. The numbers are in it twice so that PostgreSQL, which knows
    little of small tables, does not compare every event with every delivery.
    """
    log, event = DELIVERIES.c, EVENTS.c
    is_noted = sa.exists().where(
        log.webhook_id == hook.id, log.event_id == event.id, log.event_id > hook.last_event
    )
    return (
        sa.select(WEBHOOKS.c.id, event.id, sa.literal(0), sa.literal(now))
        .join_from(WEBHOOKS, EVENTS, event.id > WEBHOOKS.c.last_event)
        .where(WEBHOOKS.c.id == hook.id, event.id > hook.last_event, ~is_noted)
        .where(event.new != event.old, event.new.in_(json.loads(hook.states)))
        .order_by(event.id)  # two that insert in one order cannot deadlock
    )


def _due(now: float) -> sa.Select[Any]:
    log, event = DELIVERIES.c, EVENTS.c
    # Further away than we ever wait: somebody has set the clock.
    is_due = sa.or_(log.next_unix_s <= now, log.next_unix_s > now + MAX_WAIT_S)
    place = sa.func.row_number().over(partition_by=log.webhook_id, order_by=log.event_id)
    due = sa.select(*log, place.label("place")).where(is_due).subquery()
    told = (event.job_id, event.attempt, event.at_unix_s, event.old, event.new, event.reason)
    return (
        sa.select(*due.c, *told, JOBS.c.name, WEBHOOKS.c.url, WEBHOOKS.c.secret_file)
        .join_from(due, WEBHOOKS, WEBHOOKS.c.id == due.c.webhook_id)
        .join(EVENTS, event.id == due.c.event_id)
        .outerjoin(JOBS, JOBS.c.id == event.job_id)
        .where(due.c.place <= _BATCH)
        .order_by(due.c.webhook_id, due.c.event_id)
    )


def _this(row: sa.Row[Any]) -> sa.Update:
    log = DELIVERIES.c
    is_this = (log.webhook_id == row.webhook_id, log.event_id == row.event_id)
    return DELIVERIES.update().where(*is_this)


def _body(row: sa.Row[Any]) -> bytes:
    """The same at every try."""
    document = {
        "event_id": row.event_id,
        "job_id": row.job_id,
        "name": row.name,
        "attempt": row.attempt,
        "at": datetime.fromtimestamp(row.at_unix_s, UTC).isoformat(timespec="milliseconds"),
        "old": row.old,
        "new": row.new,
        "reason": mask(row.reason),
    }
    return json.dumps(document).encode()


def _headers(event_id: int, secret: bytes, timestamp: int, body: bytes) -> dict[str, str]:
    return {
        "Content-Type": "application/json",
        "X-Gpt2cls-Event": str(event_id),
        "X-Gpt2cls-Timestamp": str(timestamp),
        "X-Gpt2cls-Signature": signature(secret, timestamp, body),
    }


async def _refusal(reply: httpx.Response, hidden: Sequence[str]) -> str:
    if reply.has_redirect_location:
        place = _harmless(without_query(reply.headers["Location"]), hidden)
        return (
            f"answered {reply.status_code}, go to {place}; "
            "redirects are not followed: add a webhook for that address"
        )
    read = b""
    async for part in reply.aiter_raw():
        read += part
        if len(read) >= _READ_BYTES:
            break
    text = _harmless(read[:_READ_BYTES].decode(errors="replace"), hidden)
    return f"answered {reply.status_code}: {text}" if text else f"answered {reply.status_code}"


def _harmless(text: str, hidden: Sequence[str]) -> str:
    """One short line without secrets and control characters."""
    for part in sorted(hidden, key=len, reverse=True):
        text = text.replace(part, "***")
    printable = "".join(c if c.isprintable() else " " for c in text)
    return mask(" ".join(printable.split()))[:_REPLY_CHARACTERS]


def _query_parts(url: str) -> list[str]:
    """What of an address no log may repeat; short values give nothing away."""
    query = url.partition("?")[2]
    values = [pair.partition("=")[2] for pair in query.split("&")]
    return [part for part in {query, *values, *map(unquote_plus, values)} if len(part) >= 6]


def _words(error: BaseException) -> str:
    """What the system said, below the layers that say it in vaguer words."""
    words, inner = str(error) or type(error).__name__, error.__cause__ or error.__context__
    while inner is not None:
        if isinstance(inner, BaseExceptionGroup):  # a name with several addresses
            inner = inner.exceptions[0]
        if isinstance(inner, OSError):
            code = inner.errno if isinstance(inner, ConnectionError) else None
            words = os.strerror(code) if code is not None else str(inner) or words
        inner = inner.__cause__ or inner.__context__
    return words
