"""Which jobs there are, in what state, and who owns them.

A change of state names the state it starts from, so of two that race exactly one is made.
"""

import getpass
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from cluster.home import Home
from cluster.processes import birth_of, host_name, is_alive
from gpt2cls.errors import RequestError
from jobs.database import open_database
from jobs.schema import JOBS as _JOBS
from jobs.schema import PROMOTIONS as _PROMOTIONS
from jobs.states import LIVE, State, may_change

LISTED = [column for column in _JOBS.c if column.name not in ("spec", "text", "base_dir")]


@dataclass(frozen=True)
class Job:
    """One row of the store."""

    id: str
    name: str
    kind: str
    state: State
    reason: str
    created_unix_s: float
    started_unix_s: float | None
    ended_unix_s: float | None
    owner_pid: int | None
    owner_birth: str | None
    owner_host: str | None
    run_id: str | None
    num_attempts: int
    spec: dict[str, Any]
    """The resolved job file; empty where jobs are listed."""
    request: int | None = None
    """None: `gpt2cls run` works on it, not the queue."""
    text: str = ""
    base_dir: str = ""
    user: str = ""
    queue: str = "default"
    priority: int = 0
    ask: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)
    after: list[dict[str, str]] = field(default_factory=list)
    origin: str | None = None
    wish: str | None = None
    num_lost: int = 0
    num_passed: int = 0
    not_before_unix_s: float | None = None
    unseen_since_unix_s: float | None = None

    @property
    def is_orphan(self) -> bool:
        """Its process is gone, so nothing will ever end it."""
        return (
            self.state in LIVE
            and self.owner_pid is not None
            and self.owner_host == host_name()
            and not is_alive(self.owner_pid, self.owner_birth)
        )


@dataclass(frozen=True)
class Promotion:
    """The alias `champion` was moved."""

    registry: str
    model: str
    action: str
    """`gate`, `promote` or `rollback`."""
    old_version: int | None
    new_version: int | None
    by_whom: str
    reason: str
    at_unix_s: float


class Store:
    """The job store of one state folder. Reading never creates it."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._engine: sa.Engine | None = None

    def create(self, *, name: str, kind: str, spec: dict[str, Any]) -> Job:
        """Write a new job down, STARTING, owned by this process."""
        row: dict[str, Any] = {"name": name, "kind": kind, "state": State.STARTING, "reason": ""}
        row |= {"created_unix_s": time.time(), "num_attempts": 0, **_this_process()}
        for job_id in new_ids(name):
            try:
                with self.write() as db:
                    db.execute(_JOBS.insert().values(id=job_id, spec=json.dumps(spec), **row))
            except sa.exc.IntegrityError:
                continue  # another command of this very second
            return self.get(job_id)
        raise AssertionError("ids never end")

    def start(self, job_id: str, *, by_resume: bool = False, extends: bool = False) -> Job:
        """Make this process the owner of one more attempt; `extends`: of one that has succeeded.

        Raises:
            RequestError: the job may not start now; the text says why and what to do.
        """
        job = self.get(job_id)
        more = extends and job.state is State.SUCCEEDED
        if not more and not may_change(job.state, State.RUNNING, by_resume=by_resume):
            raise RequestError(why_not_started(job))
        values = {"state": State.RUNNING, "reason": "", "ended_unix_s": None, **_this_process()}
        values |= {"num_attempts": job.num_attempts + 1}
        values |= {"started_unix_s": job.started_unix_s or time.time()}
        if not self._change(job, values):
            raise RequestError(why_not_started(self.get(job_id)))
        return self.get(job_id)

    def finish(self, job_id: str, state: State, reason: str = "") -> bool:
        """End a job; False if it has ended already, whose state then stays as it is."""
        job = self.get(job_id)
        values = {"state": state, "reason": reason, "ended_unix_s": time.time()}
        return may_change(job.state, state) and self._change(job, values)

    def set_run_id(self, job_id: str, run_id: str) -> None:
        with self.write() as db:
            db.execute(_JOBS.update().where(_JOBS.c.id == job_id).values(run_id=run_id))

    def get(self, reference: str) -> Job:
        """The job of this id, of this unique beginning of an id, or `last`.

        Raises:
            RequestError: there is none, or there are several.
        """
        newest = _JOBS.c.created_unix_s.desc()
        if reference == "last":
            found = self._select(sa.select(_JOBS).order_by(newest).limit(1))
        else:
            found = self._select(sa.select(_JOBS).where(_JOBS.c.id == reference))
        if not found and reference != "last":
            is_prefix = _JOBS.c.id.startswith(reference, autoescape=True)
            found = self._select(sa.select(_JOBS).where(is_prefix).order_by(newest).limit(20))
        if len(found) == 1 and reference:
            return found[0]
        if found:
            names = ", ".join(job.id for job in found[:5])
            raise RequestError(f"job {reference!r} could be {names}; write more of the id")
        raise RequestError(
            f"job {reference!r}: no such job in {self._home.root}; `gpt2cls jobs` lists them"
            if reference != "last"
            else f"there is no job in {self._home.root} yet; `gpt2cls run JOB` makes one"
        )

    def jobs(self, *, limit: int | None = None) -> list[Job]:
        """Newest first, without their specs."""
        return self._select(sa.select(*LISTED).order_by(_JOBS.c.created_unix_s.desc()).limit(limit))

    def live_jobs(self) -> list[Job]:
        """Those that have not ended, without their specs."""
        return self._select(sa.select(*LISTED).where(_JOBS.c.state.in_([*LIVE])))

    def add_promotion(
        self,
        *,
        registry: str,
        model: str,
        action: str,
        old: int | None,
        new: int | None,
        reason: str,
    ) -> None:
        """Remember that the champion changed, by the user of this process."""
        with self.write() as db:
            db.execute(
                _PROMOTIONS.insert().values(
                    registry=registry,
                    model=model,
                    action=action,
                    old_version=old,
                    new_version=new,
                    by_whom=f"{_user()}@{host_name()}",
                    reason=reason,
                    at_unix_s=time.time(),
                )
            )

    def promotions(self, *, registry: str, model: str) -> list[Promotion]:
        """Newest first."""
        is_of_model = (_PROMOTIONS.c.registry == registry) & (_PROMOTIONS.c.model == model)
        query = sa.select(_PROMOTIONS).where(is_of_model).order_by(_PROMOTIONS.c.id.desc())
        return [
            Promotion(**{k: v for k, v in row.items() if k != "id"}) for row in self.rows(query)
        ]

    def _change(self, job: Job, values: dict[str, Any]) -> bool:
        """Change a job if it is still as it was seen."""
        seen = (_JOBS.c.id == job.id) & (_JOBS.c.state == job.state)
        seen &= _JOBS.c.num_attempts == job.num_attempts
        with self.write() as db:
            return db.execute(_JOBS.update().where(seen).values(**values)).rowcount == 1

    def _select(self, query: sa.Select[Any]) -> list[Job]:
        return [job_of(row) for row in self.rows(query)]

    def rows(self, query: sa.Select[Any]) -> list[dict[str, Any]]:
        """What a query finds; a store that is not there yet holds nothing."""
        home = self._home
        if self._engine is None and home.database_url is None and not home.jobs_db.exists():
            return []
        with self.engine().connect() as db:
            found = db.execute(query)
            names = [*found.keys()]  # mappings() would take twice as long for thousands of rows
            return [dict(zip(names, row, strict=True)) for row in found]

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction, which waits for its turn to write."""
        with self.engine().connect().execution_options(writes=True) as db, db.begin():
            yield db

    def engine(self) -> sa.Engine:
        if self._engine is None:
            self._engine = open_database(self._home)
        return self._engine


_SMALL_JSON = ("ask", "limits", "after")


def job_of(row: dict[str, Any]) -> Job:
    """A row of the table as a job."""
    values = row | {name: _parsed(row[name]) for name in _SMALL_JSON}
    values["spec"] = json.loads(row["spec"]) if "spec" in row else {}
    values["state"] = State(row["state"])
    return Job(**values)


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Any:
    """Few texts are in thousands of rows; what is given is shared, and never changed."""
    return json.loads(text)


def new_ids(name: str) -> Iterator[str]:
    """Ids that sort by time: the name, the day, and its second in four characters."""
    now = datetime.now(UTC)
    second = now.hour * 3600 + now.minute * 60 + now.second
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    code = "".join(digits[second // 36**i % 36] for i in (3, 2, 1, 0))
    job_id = f"{name}-{now:%Y%m%d}-{code}"
    yield job_id
    while True:
        yield f"{job_id}-{secrets.token_hex(2)}"


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {"owner_pid": pid, "owner_birth": birth_of(pid), "owner_host": host_name()}


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return str(os.getuid())


def why_not_started(job: Job) -> str:
    if job.state in LIVE:
        return (
            f"job {job.id} is {job.state} (process {job.owner_pid} on {job.owner_host}); "
            "stop that process first, or wait for it"
        )
    if job.state is State.SUCCEEDED:
        return f"job {job.id} has SUCCEEDED; there is nothing to resume. Run its job file again."
    return f"job {job.id} is {job.state}; `gpt2cls resume {job.id}` continues it"
