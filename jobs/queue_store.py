"""What the queue remembers: requests, the jobs they made, attempts, events, and who may act.

Wishes (a new job, a stop, a priority) are written by whoever is asked; all that follows from them
only by the holder of the lease.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from gpt2cls.errors import RequestError
from jobs.schema import ATTEMPTS, EVENTS, JOBS, LEASES, REQUESTS
from jobs.states import FINAL, LIVE, WAITING, State, may_change
from jobs.store import LISTED, Job, Store, job_of, new_ids

_LEASE, _RESUMED = "controller", "resumed"
_MOST_TAKEN = 1000
_IDS_AT_ONCE = 1000  # databases take some thousands of values in one query


class LeaseLostError(RuntimeError):
    """Another controller acts now; this one must not."""


class KeyTakenError(RequestError):
    """The key stands for another job."""

    def __init__(self, key: str, job_id: str, difference: str) -> None:
        super().__init__(key, job_id, difference)
        self.key, self.job_id, self.difference = key, job_id, difference

    def __str__(self) -> str:
        return (
            f"--key {self.key}: it stands for job {self.job_id}, which is another one "
            f"({self.difference}); use another key, or `gpt2cls show {self.job_id}`"
        )


@dataclass(frozen=True)
class Request:
    """One wish for a job, as it was accepted."""

    key: str
    user: str
    name: str
    kind: str
    spec: Mapping[str, Any]
    ask: Mapping[str, Any]
    text: str = ""
    base_dir: str = ""
    queue: str = "default"
    priority: int = 0
    limits: Mapping[str, Any] = field(default_factory=dict)
    after: tuple[Mapping[str, str], ...] = ()
    origin: str | None = None

    @property
    def content(self) -> dict[str, Any]:
        """What makes two requests the same."""
        return {
            "spec": dict(self.spec),
            "base_dir": self.base_dir,
            "queue": self.queue,
            "limits": dict(self.limits),
            "after": [dict(one) for one in self.after],
            "origin": self.origin,
        }

    @property
    def digest(self) -> str:
        text = json.dumps(self.content, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Attempt:
    """One life of a job on the cluster."""

    job_id: str
    number: int
    submission_id: str
    session: str | None
    node: str | None
    cause: str | None
    reason: str
    started_unix_s: float
    ended_unix_s: float | None
    seconds: float
    cpus: float
    gpus: float


class QueueStore:
    """The queue's side of the job store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._taken: set[str] = set()

    def accept(self, request: Request, *, now_unix_s: float) -> tuple[Job, bool]:
        """The job of a request, and whether it is new: the same key gives the same job.

        Raises:
            KeyTakenError: the key stands for another job already.
        """
        for job_id in new_ids(request.name):
            if job_id in self._taken:
                continue
            try:
                with self.store.write() as db:
                    number = self._add_request(db, request, job_id, now_unix_s)
                    return _add_job(db, request, job_id, number, now_unix_s), True
            except sa.exc.IntegrityError:  # the key or the id is taken
                if (found := self._by_key(request)) is not None:
                    return found, False
            self._note_taken(job_id)
        raise AssertionError("ids never end")

    def _note_taken(self, job_id: str) -> None:
        """The short id of a second, which many jobs of that second would try in vain."""
        if len(self._taken) >= _MOST_TAKEN:
            self._taken.clear()
        self._taken.add(job_id)

    def _by_key(self, request: Request) -> Job | None:
        of_key = (REQUESTS.c.user == request.user) & (REQUESTS.c.key == request.key)
        rows = self.store.rows(sa.select(REQUESTS).where(of_key))
        if not rows:
            return None
        job = self.store.get(rows[0]["job_id"])
        if rows[0]["digest"] != request.digest:
            raise KeyTakenError(request.key, job.id, _difference(job, request))
        return job

    @staticmethod
    def _add_request(db: sa.Connection, request: Request, job_id: str, now_unix_s: float) -> int:
        values = {"user": request.user, "key": request.key, "digest": request.digest}
        values |= {"job_id": job_id}
        made = db.execute(REQUESTS.insert().values(at_unix_s=now_unix_s, **values))
        assert made.inserted_primary_key is not None
        return int(made.inserted_primary_key[0])

    def of_queue(self, *, states: frozenset[State] = LIVE) -> list[Job]:
        """Jobs of the queue in these states, without their specs, in the order of requests."""
        is_queued = JOBS.c.request.is_not(None) & JOBS.c.state.in_([*states])
        query = sa.select(*LISTED).where(is_queued).order_by(JOBS.c.request)
        return [job_of(row) for row in self.store.rows(query)]

    def states_of(self, job_ids: Collection[str]) -> dict[str, State]:
        """The states of those of these jobs that are there."""
        found: dict[str, State] = {}
        ids = sorted(job_ids)
        for i in range(0, len(ids), _IDS_AT_ONCE):
            query = sa.select(JOBS.c.id, JOBS.c.state).where(
                JOBS.c.id.in_(ids[i : i + _IDS_AT_ONCE])
            )
            found |= {row["id"]: State(row["state"]) for row in self.store.rows(query)}
        return found

    def wish_to_stop(self, job_id: str, *, by_whom: str, now_unix_s: float) -> Job:
        """Ask that a job stops; what waits is stopped at once, what has ended stays as it is."""
        while True:
            job = self.store.get(job_id)
            if job.state in FINAL or job.wish == "stop":
                return job
            with self.store.write() as db:
                if job.state in WAITING:
                    words = f"stopped by {by_whom}"
                    done = move(db, job, State.STOPPED, words, by_whom, now_unix_s)
                elif done := change(db, job, wish="stop"):
                    words = f"stop asked for by {by_whom}"
                    add_event(db, job, job.state, words, by_whom, now_unix_s)
            if done:
                return self.store.get(job_id)

    def set_priority(self, job_id: str, priority: int, *, by_whom: str, now_unix_s: float) -> Job:
        """Change the priority of a job that waits.

        Raises:
            RequestError: it does not wait.
        """
        while (job := self.store.get(job_id)).state in WAITING:
            with self.store.write() as db:
                if done := change(db, job, priority=priority, num_passed=0):
                    words = f"priority {job.priority} -> {priority}"
                    add_event(db, job, job.state, words, by_whom, now_unix_s)
            if done:
                return self.store.get(job_id)
        raise RequestError(
            f"job {job_id} is {job.state}; only the priority of a job that waits can be changed"
        )

    def resume(self, job_id: str, *, by_whom: str, now_unix_s: float) -> Job:
        """Queue a job again that was stopped or failed; it goes on from what is done.

        Raises:
            RequestError: its state does not allow it.
        """
        job = self.store.get(job_id)
        if job.state is State.QUEUED and job.reason == _RESUMED:
            return job  # asked for again, because the reply was lost
        limits = json.dumps(job.limits | {"start_within_s": None})  # that was about its first start
        fresh: dict[str, Any] = {"ended_unix_s": None, "not_before_unix_s": None, "wish": None}
        fresh |= {"num_lost": 0, "num_passed": 0, "limits": limits}
        done = False
        if may_change(job.state, State.QUEUED, by_resume=True):
            with self.store.write() as db:
                if done := change(db, job, state=State.QUEUED, reason=_RESUMED, **fresh):
                    words = f"resumed by {by_whom}"
                    add_event(db, job, State.QUEUED, words, by_whom, now_unix_s)
        if not done:
            raise RequestError(
                f"job {job_id} is {self.store.get(job_id).state}; "
                "only a job that was stopped or failed is resumed"
            )
        return self.store.get(job_id)

    def attempts(self, job_id: str) -> list[Attempt]:
        """Oldest first."""
        query = sa.select(ATTEMPTS).where(ATTEMPTS.c.job_id == job_id).order_by(ATTEMPTS.c.number)
        return [Attempt(**row) for row in self.store.rows(query)]

    def live_attempts(self) -> dict[str, Attempt]:
        """Of jobs that have one: the attempt that has not ended."""
        query = sa.select(ATTEMPTS).where(ATTEMPTS.c.ended_unix_s.is_(None))
        return {row["job_id"]: Attempt(**row) for row in self.store.rows(query)}

    def events(self, job_id: str) -> list[dict[str, Any]]:
        """Oldest first."""
        query = sa.select(EVENTS).where(EVENTS.c.job_id == job_id).order_by(EVENTS.c.id)
        return self.store.rows(query)

    def newest_event(self) -> int:
        """The number of the last change."""
        rows = self.store.rows(sa.select(sa.func.max(EVENTS.c.id).label("id")))
        return int(rows[0]["id"] or 0) if rows else 0

    def usage(self) -> list[dict[str, Any]]:
        """CPU- and GPU-seconds of all attempts by user and queue."""
        seconds = ATTEMPTS.c.seconds
        query = (
            sa.select(
                JOBS.c.user,
                JOBS.c.queue,
                sa.func.count(sa.distinct(JOBS.c.id)).label("jobs"),
                sa.func.count().label("attempts"),
                sa.func.sum(seconds * ATTEMPTS.c.cpus).label("cpu_seconds"),
                sa.func.sum(seconds * ATTEMPTS.c.gpus).label("gpu_seconds"),
            )
            .join(JOBS, JOBS.c.id == ATTEMPTS.c.job_id)
            .group_by(JOBS.c.user, JOBS.c.queue)
            .order_by(JOBS.c.user, JOBS.c.queue)
        )
        return self.store.rows(query)

    def lease(self) -> dict[str, Any] | None:
        """Who acts, as the store says."""
        rows = self.store.rows(sa.select(LEASES).where(LEASES.c.name == _LEASE))
        return rows[0] if rows else None

    def take_lease(self, holder: str, seen: Mapping[str, Any] | None) -> int | None:
        """Become the one that acts if the lease is still as it was seen; its number."""
        try:
            with self.store.write() as db:
                if seen is None:
                    db.execute(LEASES.insert().values(name=_LEASE, holder=holder, number=1, beat=0))
                    return 1
                number = int(seen["number"]) + 1
                is_same = (LEASES.c.number == seen["number"]) & (LEASES.c.beat == seen["beat"])
                taken = LEASES.update().where((LEASES.c.name == _LEASE) & is_same)
                done = db.execute(taken.values(holder=holder, number=number, beat=0)).rowcount
                return number if done == 1 else None
        except sa.exc.IntegrityError:
            return None

    def give_lease_back(self, number: int) -> None:
        """So that the next controller need not wait."""
        with self.store.write() as db:
            held = (LEASES.c.name == _LEASE) & (LEASES.c.number == number)
            db.execute(LEASES.update().where(held).values(holder="", beat=LEASES.c.beat + 1))

    @contextmanager
    def acting(self, number: int) -> Iterator[sa.Connection]:
        """A transaction of the holder of the lease; also its beat.

        Raises:
            LeaseLostError: somebody else holds it; nothing was written.
        """
        with self.store.write() as db:
            held = (LEASES.c.name == _LEASE) & (LEASES.c.number == number) & (LEASES.c.holder != "")
            beaten = db.execute(LEASES.update().where(held).values(beat=LEASES.c.beat + 1))
            if beaten.rowcount != 1:
                raise LeaseLostError("another controller acts now")
            yield db


def change(db: sa.Connection, job: Job, **values: Any) -> bool:
    """Change a job if its state, attempts and wish are still as they were seen."""
    seen = (JOBS.c.id == job.id) & (JOBS.c.state == job.state)
    seen &= JOBS.c.num_attempts == job.num_attempts
    seen &= JOBS.c.wish.is_(None) if job.wish is None else JOBS.c.wish == job.wish
    return bool(db.execute(JOBS.update().where(seen).values(**values)).rowcount == 1)


def move(
    db: sa.Connection,
    job: Job,
    state: State,
    reason: str,
    by_whom: str,
    now_unix_s: float,
    **values: Any,
) -> bool:
    """Give a job another state, with an event that says why; False: it is not as it was seen."""
    assert may_change(job.state, state), (job.id, job.state, state)
    values = {"state": state, "reason": reason[:2000]} | values
    if state in FINAL:
        values |= {"ended_unix_s": now_unix_s, "wish": None, "unseen_since_unix_s": None}
    done = change(db, job, **values)
    if done:
        add_event(db, job, state, reason, by_whom, now_unix_s)
    return done


def add_event(
    db: sa.Connection, job: Job, new: State, reason: str, by_whom: str, now_unix_s: float
) -> None:
    """Remember what happened to a job, and why."""
    values = {"job_id": job.id, "attempt": job.num_attempts or None, "old": job.state, "new": new}
    db.execute(
        EVENTS.insert().values(
            reason=reason[:2000], by_whom=by_whom, at_unix_s=now_unix_s, **values
        )
    )


def add_attempt(db: sa.Connection, job: Job, now_unix_s: float) -> None:
    """Write down that one more attempt at a job is about to be started."""
    number = job.num_attempts + 1
    db.execute(
        ATTEMPTS.insert().values(
            job_id=job.id,
            number=number,
            submission_id=f"{job.id}-a{number}",
            started_unix_s=now_unix_s,
            cpus=job.ask.get("cpus", 0.0),
            gpus=job.ask.get("gpus", 0.0),
        )
    )


def change_attempt(db: sa.Connection, attempt: Attempt, **values: Any) -> None:
    """Add to what is known of an attempt."""
    is_it = (ATTEMPTS.c.job_id == attempt.job_id) & (ATTEMPTS.c.number == attempt.number)
    db.execute(ATTEMPTS.update().where(is_it).values(**values))


def _add_job(
    db: sa.Connection, request: Request, job_id: str, number: int, now_unix_s: float
) -> Job:
    values = {
        "id": job_id,
        "state": State.QUEUED,
        "reason": "",
        "created_unix_s": now_unix_s,
        "num_attempts": 0,
        "request": number,
        "spec": json.dumps(dict(request.spec)),
        "ask": json.dumps(dict(request.ask)),
        "limits": json.dumps(dict(request.limits)),
        "after": json.dumps([dict(one) for one in request.after]),
    }
    same = ("name", "kind", "text", "base_dir", "user", "queue", "priority", "origin")
    values |= {name: getattr(request, name) for name in same}
    row = db.execute(JOBS.insert().values(**values).returning(JOBS)).mappings().one()
    event = {"job_id": job_id, "old": "", "new": State.QUEUED, "reason": "submitted"}
    db.execute(EVENTS.insert().values(by_whom=request.user, at_unix_s=now_unix_s, **event))
    return job_of(dict(row))


def _difference(job: Job, request: Request) -> str:
    """The first fields in which a job is not what is asked for."""
    old: dict[str, Any] = {
        "spec": job.spec,
        "base_dir": job.base_dir,
        "queue": job.queue,
        "limits": job.limits,
    }
    old |= {"after": job.after, "origin": job.origin}
    there, wanted = dict(_flat(old)), dict(_flat(request.content))
    names = [name for name in {**there, **wanted} if there.get(name) != wanted.get(name)]
    shown = [
        f"{name.removeprefix('spec.')} = {there.get(name)} there, {wanted.get(name)} here"
        for name in names[:5]
    ]
    return "; ".join(shown) + (f"; and {len(names) - 5} more" if len(names) > 5 else "")


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
