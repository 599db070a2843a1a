"""Verbs of the queue: submit, logs, stop, retry, clone, priority."""

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.home import Surroundings, from_environment
from gpt2cls.errors import RequestError
from jobs.console import Answer, messages
from jobs.names import check_job_id
from jobs.verb import Debug, JobId, JobPath, Json, Settings, verb

if TYPE_CHECKING:
    from rich.console import Console

    from jobs.read import JobFile
    from jobs.store import Job

_FOLLOW_POLL_S = 0.4

Priority = Annotated[int, typer.Option("--priority", help="Higher ones go first.")]
Key = Annotated[
    str | None,
    typer.Option("--key", help="The same key gives the same job, however often it is submitted."),
]
After = Annotated[
    list[str] | None,
    typer.Option("--after", metavar="ID[:end]", help="Wait for its success, or for any end."),
]
Queue = Annotated[str, typer.Option("--queue", help="One of those in controller.yaml.")]
StartWithin = Annotated[
    float | None, typer.Option("--start-within", metavar="S", help="Give up if it waits longer.")
]
RunWithin = Annotated[
    float | None,
    typer.Option("--run-within", metavar="S", help="Stop an attempt that runs longer."),
]


@verb
def submit(  # noqa: PLR0913
    job: JobPath,
    settings: Settings = None,
    priority: Priority = 0,
    key: Key = None,
    after: After = None,
    queue: Queue = "default",
    start_within: StartWithin = None,
    run_within: RunWithin = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Queue a job for the cluster; print its id."""
    from jobs.read import read_job

    surroundings = from_environment()
    file = read_job(job, settings or (), data_dir=surroundings.data_dir)
    wish = _wish(file, surroundings) | {
        "key": key,
        "priority": priority,
        "queue": queue,
        "after": [_parent(one, surroundings) for one in after or ()],
        "start_within_s": start_within,
        "run_within_s": run_within,
    }
    return _submitted(wish, surroundings)


def _wish(file: "JobFile", surroundings: Surroundings) -> dict[str, Any]:
    from jobs.spec import EvaluateJob, PredictJob, dump

    if isinstance(file.job, EvaluateJob | PredictJob):
        from jobs.cli_use import refuse_early

        refuse_early(file.job.model, file.base_dir)
    return {"text": file.text, "spec": dump(file.job), "base_dir": str(file.base_dir)}


def _parent(reference: str, surroundings: Surroundings) -> dict[str, str]:
    job_id, _, on = reference.partition(":")
    if on not in ("", "success", "end"):
        raise RequestError(f"--after {reference}: write ID, or ID:end for any end of that job")
    found = _find(job_id, surroundings)
    return {"job": found.id, "on": on or "success"}


def _submitted(wish: dict[str, Any], surroundings: Surroundings) -> Answer:
    """Submit; the key is drawn here, so that a repeat after a lost reply makes no second job."""
    from jobs.client import connect

    wish["key"] = wish.get("key") or secrets.token_urlsafe(18)
    document = connect(surroundings).post("/api/jobs", wish)
    if not document.pop("is_new"):
        messages().print(f"the key stands for this job already; it is {document['state']}")
    return Answer(document, lambda out: out.print(document["job_id"]))


@verb
def logs(
    job: JobId,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on until the job has ended.")
    ] = False,
    attempt: Annotated[int | None, typer.Option("--attempt", help="Of this attempt only.")] = None,
    grep: Annotated[str | None, typer.Option("--grep", help="Lines that hold this text.")] = None,
    tail: Annotated[int | None, typer.Option("--tail", help="Only the last so many.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Print what a job has said, all its attempts in order."""
    from dataclasses import asdict

    surroundings = from_environment()
    found = _find(check_job_id(job), surroundings)
    asked = {"attempt": attempt, "grep": grep, "tail": tail}
    if json:
        lines = [asdict(line) for line in _lines(found.id, surroundings, asked, follow=follow)]
        return Answer({"job_id": found.id, "lines": lines}, lambda out: None)

    def show(out: "Console") -> None:
        for line in _lines(found.id, surroundings, asked, follow=follow):
            rank = f" rank {line.rank}" if line.rank is not None else ""
            out.file.write(f"{line.at} attempt {line.attempt}{rank} | {line.text}\n")
            out.file.flush()

    return Answer({}, show)


def _lines(
    job_id: str, surroundings: Surroundings, asked: dict[str, Any], *, follow: bool
) -> Iterator[Any]:
    from jobs.log_reader import follow as followed
    from jobs.log_reader import read_lines
    from jobs.states import FINAL
    from jobs.store import Store

    folder, after, tail = surroundings.home.job_dir(job_id), None, asked["tail"]
    some = {name: asked[name] for name in ("attempt", "grep")}
    while lines := read_lines(folder, after=after, tail=tail, **some):
        yield from lines
        after, tail = lines[-1].cursor, None
    if not follow:
        return
    store = Store(surroundings.home)
    yield from followed(
        folder,
        lambda: store.get(job_id).state in FINAL,
        poll_s=_FOLLOW_POLL_S,
        after=after,
        **some,
    )


@verb
def stop(job: JobId, json: Json = False, debug: Debug = False) -> Answer:
    """Ask a job to write a checkpoint and stop; `resume` goes on from it."""
    surroundings = from_environment()
    found = _find(check_job_id(job), surroundings)
    if found.request is None:
        document = _stop_here(found, surroundings)
    else:
        from jobs.client import connect

        document = connect(surroundings).post(f"/api/jobs/{found.id}/stop")
    words = "stops" if document["state"] not in ("STOPPED", "SUCCEEDED", "FAILED") else "is"
    return Answer(
        document,
        lambda out: out.print(
            f"job {found.id} {words}" + (f" {document['state']}" if words == "is" else "")
        ),
    )


def _stop_here(found: "Job", surroundings: Surroundings) -> dict[str, Any]:
    """Ask the process of `gpt2cls run` to stop."""
    import os
    import signal

    from cluster.processes import host_name, is_alive
    from jobs.states import LIVE
    from jobs.views import row_of

    pid = found.owner_pid
    is_here = found.state in LIVE and pid is not None and found.owner_host == host_name()
    if is_here and pid is not None and is_alive(pid, found.owner_started_unix_s or 0.0):
        os.kill(pid, signal.SIGTERM)
    elif found.state in LIVE and found.owner_host != host_name():
        raise RequestError(f"job {found.id} runs on {found.owner_host}; stop it there")
    return row_of(found)


@verb
def retry(job: JobId, json: Json = False, debug: Debug = False) -> Answer:
    """Submit a job once more, from its beginning, as a new job."""
    surroundings = from_environment()
    return _again(_find(check_job_id(job), surroundings), (), surroundings)


@verb
def clone(
    job: JobId, settings: Settings = None, json: Json = False, debug: Debug = False
) -> Answer:
    """Submit a job once more with some values replaced, as a new job."""
    surroundings = from_environment()
    return _again(_find(check_job_id(job), surroundings), settings or (), surroundings)


def _again(found: "Job", settings: Any, surroundings: Surroundings) -> Answer:
    """A new job with the file of an earlier one, read anew: its values may have been overridden."""
    import tempfile

    import yaml

    from jobs.read import read_job

    base_dir = found.base_dir or _base_dir(found, surroundings)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.yaml"
        path.write_text(yaml.safe_dump(found.spec, sort_keys=False, allow_unicode=True))
        file = read_job(path, settings, data_dir=surroundings.data_dir, base_dir=Path(base_dir))
    wish = _wish(file, surroundings) | {"priority": found.priority, "queue": found.queue}
    limits = {name: found.limits.get(name) for name in ("start_within_s", "run_within_s")}
    return _submitted(wish | limits | {"origin": found.id}, surroundings)


def _base_dir(found: "Job", surroundings: Surroundings) -> str:
    from jobs.attempt import base_dir_of

    try:
        return str(base_dir_of(surroundings.home.job_dir(found.id)))
    except OSError as error:
        raise RequestError(
            f"job {found.id}: its folder is gone; submit its job file again"
        ) from error


@verb
def priority(
    job: JobId,
    number: Annotated[int, typer.Argument(metavar="N", help="Higher ones go first.")],
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Change the priority of a job that waits."""
    from jobs.client import connect

    surroundings = from_environment()
    found = _find(check_job_id(job), surroundings)
    document = connect(surroundings).post(f"/api/jobs/{found.id}/priority", {"priority": number})
    return Answer(document, lambda out: out.print(f"job {found.id}: priority {number}"))


def _find(reference: str, surroundings: Surroundings) -> "Job":
    from jobs.store import Store

    return Store(surroundings.home).get(check_job_id(reference))
