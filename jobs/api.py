"""The controller's HTTP face: writes wishes, and tells what is. Acts on nothing itself."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import sqlalchemy as sa
from fastapi import Depends, FastAPI, Query, Request
from fastapi.responses import JSONResponse
from pydantic import Field, ValidationError

from cluster.home import Home, Surroundings
from gpt2cls.config import Block
from gpt2cls.errors import RequestError
from jobs import access, queue_store, webhooks
from jobs.access import Act, Role, User
from jobs.asks import ask_of, dump_ask
from jobs.clock import SteadyClock
from jobs.guard import Refused, error_response, install_error_handlers
from jobs.log_reader import read_lines
from jobs.masking import unmask_value
from jobs.names import JOB_ID_PATTERN, check_job_id
from jobs.queue_config import QueueConfig
from jobs.queue_store import KeyTakenError, QueueStore
from jobs.schedule import Node, never_fits
from jobs.spec import KINDS, AnyJob, dump
from jobs.states import FINAL
from jobs.store import Job
from jobs.views import job_document, row_of

_Seconds = Annotated[float, Field(gt=0, le=10**9)] | None
_MAX_LISTED = 1000


class Parent(Block):
    """A job that comes first."""

    job: str = Field(pattern=JOB_ID_PATTERN)
    on: Literal["success", "end"] = "success"


class Submission(Block):
    """A wish for a job."""

    key: str = Field(min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$")
    text: str = Field(max_length=2**21)
    spec: dict[str, Any]
    base_dir: str = Field(min_length=1, max_length=4096)
    queue: str = Field("default", max_length=63)
    priority: int = Field(0, ge=-1000, le=1000)
    after: list[Parent] = Field(default_factory=list, max_length=100)
    start_within_s: _Seconds = None
    run_within_s: _Seconds = None
    origin: str | None = Field(None, pattern=JOB_ID_PATTERN)


class NewPriority(Block):
    priority: int = Field(ge=-1000, le=1000)


class NewToken(Block):
    user: str
    role: Annotated[Role, Field(strict=False)]
    expires_unix_s: float | None = None


class NewWebhook(Block):
    url: str
    secret_file: str
    states: list[str] = Field(default_factory=lambda: sorted(str(state) for state in FINAL))


@dataclass(frozen=True)
class Context:
    """What the answers are made from."""

    surroundings: Surroundings
    queue: QueueStore
    config: QueueConfig
    clock: SteadyClock
    nodes: Callable[[], list[Node]]
    why: Callable[[], dict[str, str]]
    status: Callable[[], dict[str, Any]]
    drain: Callable[[], None]
    cores: float
    """Of a node, while no cluster has answered yet."""

    @property
    def home(self) -> Home:
        return self.surroundings.home

    @property
    def engine(self) -> sa.Engine:
        return self.queue.store.engine()


def user_of(request: Request) -> User:
    user = request.state.user
    assert isinstance(user, User)
    return user


Caller = Annotated[User, Depends(user_of)]


def make_app(context: Context) -> FastAPI:
    """The application; `jobs.guard` stands before it."""
    app = FastAPI(title="gpt2cls controller", docs_url=None, redoc_url=None, openapi_url=None)
    install_error_handlers(app)
    app.add_exception_handler(KeyTakenError, _say_key_taken)
    app.add_exception_handler(Refused, _say_refused)
    _add_health(app, context)
    _add_jobs(app, context)
    _add_wishes(app, context)
    _add_administration(app, context)
    _add_records(app, context)
    return app


def _say_key_taken(_request: Request, error: Exception) -> JSONResponse:
    return error_response(409, str(error))


def _say_refused(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused)
    return error_response(error.status, error.message)


def _allow(context: Context, user: User, act: Act, owner: str | None, target: str) -> None:
    if not access.may(user, act, owner):
        access.note(context.engine, user.name, f"{act} refused", target)
        raise Refused(403, f"user {user.name} ({user.role}) may not {act} {target}".strip())


def _add_health(app: FastAPI, context: Context) -> None:
    @app.get("/health")
    def health() -> dict[str, Any]:
        return {"status": "ok"}

    @app.get("/api/status")
    def status(user: Caller) -> dict[str, Any]:
        return context.status() | {"user": user.name, "role": str(user.role)}


def _add_jobs(app: FastAPI, context: Context) -> None:
    store = context.queue.store

    @app.get("/api/jobs")
    def jobs(_user: Caller, limit: Annotated[int, Query(ge=1, le=100_000)] = _MAX_LISTED) -> Any:
        why = context.why()
        # A response of our own: FastAPI would walk through every value of every job first.
        return JSONResponse({"jobs": [row_of(job, why) for job in store.jobs(limit=limit)]})

    @app.get("/api/jobs/{job_id}")
    def show(job_id: str, _user: Caller) -> dict[str, Any]:
        job = _find(context, job_id)
        return job_document(job, context.queue, context.surroundings, context.why())

    @app.get("/api/jobs/{job_id}/logs")
    def logs(
        job_id: str,
        _user: Caller,
        after: str | None = None,
        attempt: Annotated[int | None, Query(ge=1)] = None,
        grep: Annotated[str | None, Query(max_length=1000)] = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
        tail: Annotated[int | None, Query(ge=0, le=10_000)] = None,
    ) -> dict[str, Any]:
        job = _find(context, job_id)
        folder = context.home.job_dir(job.id)
        lines = read_lines(folder, after=after, attempt=attempt, grep=grep, limit=limit, tail=tail)
        return {"job_id": job.id, "state": job.state, "lines": [asdict(line) for line in lines]}

    @app.post("/api/jobs", status_code=201)
    def submit(wish: Submission, user: Caller) -> dict[str, Any]:
        _allow(context, user, Act.SUBMIT, None, "jobs")
        job, is_new = context.queue.accept(
            _request(wish, user, context), now_unix_s=context.clock.unix_s()
        )
        access.note(context.engine, user.name, "submit" if is_new else "submit again", job.id)
        return {"job_id": job.id, "state": job.state, "is_new": is_new}


def _add_wishes(app: FastAPI, context: Context) -> None:
    queue = context.queue

    def of_user(job_id: str, user: User, action: str) -> Job:
        job = _find(context, job_id)
        _allow(context, user, Act.CHANGE, job.user, f"job {job.id}")
        if job.request is None:
            raise RequestError(
                f"job {job.id} was made by `gpt2cls run`; the queue has no part in it"
            )
        access.note(context.engine, user.name, action, job.id)
        return job

    @app.post("/api/jobs/{job_id}/stop")
    def stop(job_id: str, user: Caller) -> dict[str, Any]:
        job = of_user(job_id, user, "stop")
        now = context.clock.unix_s()
        return row_of(queue.wish_to_stop(job.id, by_whom=user.name, now_unix_s=now))

    @app.post("/api/jobs/{job_id}/resume")
    def resume(job_id: str, user: Caller) -> dict[str, Any]:
        job = of_user(job_id, user, "resume")
        now = context.clock.unix_s()
        return row_of(queue.resume(job.id, by_whom=user.name, now_unix_s=now))

    @app.post("/api/jobs/{job_id}/priority")
    def priority(job_id: str, wish: NewPriority, user: Caller) -> dict[str, Any]:
        job = of_user(job_id, user, f"priority {wish.priority}")
        now = context.clock.unix_s()
        changed = queue.set_priority(job.id, wish.priority, by_whom=user.name, now_unix_s=now)
        return row_of(changed)


def _add_administration(app: FastAPI, context: Context) -> None:
    @app.get("/api/usage")
    def usage(_user: Caller) -> dict[str, Any]:
        return {"usage": context.queue.usage()}

    @app.post("/api/drain")
    def drain(user: Caller) -> dict[str, Any]:
        _allow(context, user, Act.ADMINISTRATE, None, "the queue")
        access.note(context.engine, user.name, "drain", "queue")
        context.drain()
        return {"draining": True}

    @app.get("/api/tokens")
    def tokens(user: Caller) -> dict[str, Any]:
        _allow(context, user, Act.ADMINISTRATE, None, "tokens")
        return {"tokens": access.tokens(context.engine)}

    @app.post("/api/tokens", status_code=201)
    def new_token(wish: NewToken, user: Caller) -> dict[str, Any]:
        _allow(context, user, Act.ADMINISTRATE, None, "tokens")
        token = access.new_token(
            context.engine, user=wish.user, role=wish.role, expires_unix_s=wish.expires_unix_s
        )
        access.note(context.engine, user.name, f"new token, role {wish.role}", wish.user)
        return {"user": wish.user, "role": wish.role, "token": token}

    @app.delete("/api/tokens/{token_id}")
    def revoke(token_id: int, user: Caller) -> dict[str, Any]:
        _allow(context, user, Act.ADMINISTRATE, None, "tokens")
        if not access.revoke(context.engine, token_id):
            raise Refused(404, f"token {token_id}: there is none, or it was revoked")
        access.note(context.engine, user.name, "revoke token", str(token_id))
        return {"revoked": token_id}


def _add_records(app: FastAPI, context: Context) -> None:
    @app.get("/api/audit")
    def audit(user: Caller, limit: Annotated[int, Query(ge=1, le=10_000)] = 100) -> dict[str, Any]:
        _allow(context, user, Act.ADMINISTRATE, None, "the audit log")
        return {"audit": access.audit(context.engine, limit)}

    @app.get("/api/webhooks")
    def hooks(user: Caller) -> dict[str, Any]:
        _allow(context, user, Act.ADMINISTRATE, None, "webhooks")
        return {"webhooks": webhooks.webhooks(context.engine)}

    @app.post("/api/webhooks", status_code=201)
    def add_hook(wish: NewWebhook, user: Caller) -> dict[str, Any]:
        _allow(context, user, Act.ADMINISTRATE, None, "webhooks")
        number = webhooks.add_webhook(
            context.engine,
            url=wish.url,
            secret_file=wish.secret_file,
            states=wish.states,
            by_whom=user.name,
        )
        access.note(context.engine, user.name, "new webhook", str(number))
        return {"webhook_id": number}

    @app.delete("/api/webhooks/{webhook_id}")
    def remove_hook(webhook_id: int, user: Caller) -> dict[str, Any]:
        _allow(context, user, Act.ADMINISTRATE, None, "webhooks")
        webhooks.remove_webhook(context.engine, webhook_id)
        access.note(context.engine, user.name, "remove webhook", str(webhook_id))
        return {"removed": webhook_id}

    @app.get("/api/webhooks/{webhook_id}/deliveries")
    def deliveries(webhook_id: int, user: Caller) -> dict[str, Any]:
        _allow(context, user, Act.ADMINISTRATE, None, "webhooks")
        return {"deliveries": webhooks.deliveries(context.engine, webhook_id)}


def _find(context: Context, reference: str) -> Job:
    try:
        return context.queue.store.get(check_job_id(reference))
    except RequestError as error:
        raise Refused(404, str(error)) from error


def _request(wish: Submission, user: User, context: Context) -> queue_store.Request:
    """The wish, checked against what is there.

    Raises:
        RequestError: the queue does not exist, a parent neither, or no node could ever hold it.
    """
    if wish.queue not in context.config.queues:
        there = ", ".join(context.config.queues)
        raise RequestError(f"queue = {wish.queue}: must be one of {there}")
    parents = [(context.queue.store.get(parent.job).id, parent.on) for parent in wish.after]
    job = _job(_with_secrets(wish, user, context))
    nodes = context.nodes()
    cores = max((node.cpus for node in nodes), default=context.cores)
    ask = ask_of(job, cores)
    if words := never_fits(ask, nodes):
        raise RequestError(f"{words}; ask for less in the block `cluster` of the job file")
    limits = {"start_within_s": wish.start_within_s, "run_within_s": wish.run_within_s}
    cluster = getattr(job, "cluster", None)
    return queue_store.Request(
        key=wish.key,
        user=user.name,
        name=job.name,
        kind=job.kind,
        spec=dump(job),
        ask=dump_ask(ask),
        text=wish.text,
        base_dir=wish.base_dir,
        queue=wish.queue,
        priority=wish.priority,
        limits=limits | {"retries": cluster.retries if cluster else 3},
        after=tuple({"job": job_id, "on": on} for job_id, on in parents),
        origin=wish.origin,
    )


def _with_secrets(wish: Submission, user: User, context: Context) -> dict[str, Any]:
    """The spec, with what was hidden when its maker was shown the job that it is made from."""
    if wish.origin is None:
        return wish.spec
    origin = context.queue.store.get(wish.origin)
    if not access.may(user, Act.CHANGE, origin.user):
        return wish.spec
    return dict(unmask_value(wish.spec, origin.spec))


def _job(spec: dict[str, Any]) -> AnyJob:
    kind = KINDS.get(str(spec.get("kind")))
    if kind is None:
        raise RequestError(f"spec.kind: must be one of {', '.join(KINDS)}")
    try:
        return kind.model_validate(spec)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"
            for fault in error.errors()[:5]
        )
        raise RequestError(f"spec: {faults}") from error
