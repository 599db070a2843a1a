"""Verbs of the queue: submit, logs, stop, retry, clone, priority."""

import secrets
from collections.abc import Sequence
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
def submit(
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
    from jobs.spec import dump
    from jobs.spec_uses import EvaluateJob, PredictJob

    if isinstance(file.job, EvaluateJob | PredictJob):
        from jobs.cli_use import refuse_early

        refuse_early(file.job.model, file.base_dir)
    return {"text": file.text, "spec": dump(file.job), "base_dir": str(file.base_dir)}


def _parent(reference: str, surroundings: Surroundings) -> dict[str, str]:
    job_id, _, on = reference.partition(":")
    if on not in ("", "success", "end"):
        raise RequestError(f"--after {reference}: write ID, or ID:end for any end of that job")
    from jobs.sources import open_source

    found = open_source(surroundings).show(job_id)
    return {"job": found["job_id"], "on": on or "success"}


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
    from jobs.sources import open_source

    asked = {"attempt": attempt, "grep": grep, "tail": tail}
    lines = open_source(from_environment()).lines(job, asked, follow=follow)
    if json:
        return Answer({"lines": list(lines)}, lambda out: None)

    def show(out: "Console") -> None:
        for line in lines:
            rank = f" rank {line['rank']}" if line["rank"] is not None else ""
            out.file.write(f"{line['at']} attempt {line['attempt']}{rank} | {line['text']}\n")
            out.file.flush()

    return Answer({}, show)


@verb
def stop(job: JobId, json: Json = False, debug: Debug = False) -> Answer:
    """Ask a job to write a checkpoint and stop; `resume` goes on from it."""
    surroundings = from_environment()
    found = _find_run(job, surroundings)
    if found is not None:
        document = _stop_here(found, surroundings)
    else:
        from jobs.client import connect

        document = connect(surroundings).post(f"/api/jobs/{check_job_id(job)}/stop")
    is_over = document["state"] in ("STOPPED", "SUCCEEDED", "FAILED")
    words = f"is {document['state']}" if is_over else "writes a checkpoint and stops"
    return Answer(document, lambda out: out.print(f"job {document['job_id']} {words}"))


def _find_run(reference: str, surroundings: Surroundings) -> "Job | None":
    """The job if `gpt2cls run` works on it on this machine; None: it is the controller's."""
    if surroundings.controller_uri is not None:
        return None
    found = _find(reference, surroundings)
    return found if found.request is None else None


def _stop_here(found: "Job", surroundings: Surroundings) -> dict[str, Any]:
    """Ask the process of `gpt2cls run` to stop."""
    import os
    import signal

    from cluster.processes import host_name, is_alive
    from jobs.states import LIVE
    from jobs.views import row_of

    pid = found.owner_pid
    if found.state in LIVE and found.owner_host != host_name():
        raise RequestError(f"job {found.id} runs on {found.owner_host}; stop it there")
    if found.state in LIVE and pid and is_alive(pid, found.owner_birth):
        os.kill(pid, signal.SIGTERM)
    return row_of(found)


@verb
def retry(job: JobId, json: Json = False, debug: Debug = False) -> Answer:
    """Submit a job once more, from its beginning, as a new job."""
    return _again(job, (), from_environment())


@verb
def clone(
    job: JobId, settings: Settings = None, json: Json = False, debug: Debug = False
) -> Answer:
    """Submit a job once more with some values replaced, as a new job."""
    return _again(job, settings or (), from_environment())


def _again(reference: str, settings: Sequence[str], surroundings: Surroundings) -> Answer:
    """A new job with the settings of an earlier one, checked anew: some may be replaced."""
    import tempfile

    import yaml

    from jobs.read import read_job
    from jobs.sources import open_source

    found = open_source(surroundings).show(reference)
    if not found["base_dir"]:
        raise RequestError(f"job {found['job_id']}: its folder is gone; submit its file again")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.yaml"
        path.write_text(yaml.safe_dump(found["spec"], sort_keys=False, allow_unicode=True))
        base_dir = Path(found["base_dir"])
        file = read_job(path, settings, data_dir=surroundings.data_dir, base_dir=base_dir)
    wish = _wish(file, surroundings) | {"priority": found["priority"]}
    wish["queue"] = found["queue"] or "default"
    limits = {name: found["limits"].get(name) for name in ("start_within_s", "run_within_s")}
    return _submitted(wish | limits | {"origin": found["job_id"]}, surroundings)


@verb
def priority(
    job: JobId,
    number: Annotated[int, typer.Argument(metavar="N", help="Higher ones go first.")],
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Change the priority of a job that waits."""
    from jobs.client import connect

    path = f"/api/jobs/{check_job_id(job)}/priority"
    document = connect(from_environment()).post(path, {"priority": number})
    return Answer(document, lambda out: out.print(f"job {document['job_id']}: priority {number}"))


def _find(reference: str, surroundings: Surroundings) -> "Job":
    from jobs.store import Store

    return Store(surroundings.home).get(check_job_id(reference))
