"""Verbs about jobs that are there already: jobs, show, resume, report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.home import Surroundings, from_environment
from gpt2cls.errors import RequestError
from jobs.console import Answer, messages
from jobs.names import check_job_id
from jobs.verb import Debug, JobId, Json, verb

if TYPE_CHECKING:
    from rich.console import Console

    from jobs.store import Job, Store

_MAX_SHOWN = 50


@verb
def jobs(json: Json = False, debug: Debug = False) -> Answer:
    """List the jobs, the newest first."""
    from jobs.sources import open_source

    document = open_source(from_environment()).jobs()
    return Answer(document, lambda out: _show_jobs(document, out))


@verb
def show(job: JobId, json: Json = False, debug: Debug = False) -> Answer:
    """Show one job: state, reason, attempts, result."""
    from jobs.sources import open_source

    document = open_source(from_environment()).show(job)
    return Answer(document, lambda out: _show_job(document, out))


@verb
def resume(job: JobId, json: Json = False, debug: Debug = False) -> Answer:
    """Go on with a job that was stopped, failed or killed."""
    from jobs.cli_run import show_end, show_pipeline

    surroundings = from_environment()
    if surroundings.controller_uri is not None:
        return _queue_again(check_job_id(job), surroundings)
    found = settled_store(surroundings).get(check_job_id(job))
    if found.request is not None:
        return _queue_again(found.id, surroundings)
    if found.kind == "sweep":
        from jobs.cli_sweep import go_on, show_winner

        ended = go_on(found, surroundings)
        return Answer(ended, lambda out: show_winner(ended, out))
    _refuse_to_resume(found, surroundings.home.job_dir(found.id))

    from jobs.attempts import resume as go_on_with

    document = go_on_with(found, surroundings)
    shown = show_pipeline if found.kind == "pipeline" else show_end
    return Answer(document, lambda out: shown(document, out))


@verb
def report(
    job: JobId,
    output: Annotated[Path, typer.Option("-o", "--output", help="The page to write.")] = Path(
        "report.html"
    ),
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Write one self-contained HTML page about a job."""
    from jobs.store import Store

    surroundings = from_environment()
    found = Store(surroundings.home).get(check_job_id(job))
    folder = surroundings.home.job_dir(found.id)
    if not folder.is_dir():
        raise RequestError(f"job {found.id}: its folder {folder} is gone, and with it the report")
    is_other = output.exists() and not output.is_file()  # a folder, a device, a pipe
    if is_other or not output.absolute().parent.is_dir():
        raise RequestError(f"-o {output}: name a file in a folder that exists")

    if found.kind == "pipeline":
        pages = folder / "stages" / "STAGE" / "report.html"
        raise RequestError(
            f"job {found.id} is a pipeline, which has no page of its own; each stage that trained "
            f"has one: {pages}, also in its run in MLflow"
        )
    if found.kind == "deploy":
        raise RequestError(
            f"job {found.id} is of kind {found.kind}, which has no page in this version; its run "
            "is in MLflow, and `gpt2cls show` has its result"
        )
    if found.kind == "sweep":
        from jobs.sweep_document import write_sweep_document
        from jobs.sweep_page import write_sweep_page

        write_sweep_document(folder, str(found.state))
        write_sweep_page(folder, output)
    else:
        from jobs.page import write_report

        write_report(folder, output)
    document = {"job_id": found.id, "output": str(output)}
    return Answer(document, lambda out: out.print(f"report of {found.id}: {output}"))


def settled_store(surroundings: Surroundings) -> "Store":
    """The store, with jobs whose process is gone given their true end."""
    from jobs.settle import settle
    from jobs.store import Store

    store = Store(surroundings.home)
    for job in settle(store, surroundings):
        messages().print(f"job {job.id}: RUNNING -> {job.state}, {job.reason}")
    return store


def _refuse_to_resume(job: "Job", folder: Path) -> None:
    """Say no before anything heavy is imported.

    Raises:
        RequestError: the job's state, kind, folder or settings do not allow it.
    """
    from pydantic import ValidationError

    from jobs.attempts import RESUMED
    from jobs.spec import KINDS
    from jobs.states import State, may_change
    from jobs.store import why_not_started

    if job.kind not in RESUMED:
        raise RequestError(f"job {job.id} is of kind {job.kind}, which starts anew: run it again")
    if not may_change(job.state, State.RUNNING, by_resume=True):
        raise RequestError(why_not_started(job))
    if not folder.is_dir():
        raise RequestError(f"job {job.id}: its folder {folder} is gone; run its job file again")
    try:
        KINDS[job.kind].model_validate(job.spec)
    except ValidationError as error:
        raise RequestError(
            f"job {job.id} was made by another version, whose settings this one does not know; "
            f"run {folder / 'job.yaml'} again"
        ) from error


def _queue_again(job_id: str, surroundings: Surroundings) -> Answer:
    from jobs.client import connect

    document = connect(surroundings).post(f"/api/jobs/{job_id}/resume")
    words = f"job {document['job_id']} is {document['state']} again"
    return Answer(document, lambda out: out.print(words))


def _show_jobs(document: dict[str, Any], out: "Console") -> None:
    from jobs.tables import moment, plain_table

    rows = [
        [job["job_id"], job["kind"], _state(job), moment(job["created_unix_s"]), job["reason"]]
        for job in document["jobs"][:_MAX_SHOWN]
    ]
    out.print(plain_table(["job", "kind", "state", "made (UTC)", "reason"], rows))
    if len(document["jobs"]) > _MAX_SHOWN:
        out.print(f"{len(document['jobs']) - _MAX_SHOWN:,} older jobs: --json lists all")


def _state(row: dict[str, Any]) -> str:
    from jobs.tables import moment

    if since := row["unknown_since_unix_s"]:
        return f"UNKNOWN since {moment(since)} (was {row['state']})"
    return str(row["state"])


def _show_job(document: dict[str, Any], out: "Console") -> None:
    from jobs.cli_run import show_result
    from jobs.tables import moment

    out.print(f"job {document['job_id']} ({document['kind']}): {document['state']}")
    if document["reason"]:
        out.print(f"reason: {document['reason']}")
    if since := document["unknown_since_unix_s"]:
        out.print(f"UNKNOWN since {moment(since)} UTC: its cluster does not answer")
    out.print(f"attempts: {len(document['attempts'])}")
    for attempt in document["attempts"]:
        if attempt.get("cause"):
            words = ": ".join(filter(None, [attempt["cause"], attempt["reason"]]))
            out.print(f"  {attempt['attempt']}: {words}")
    if lag := document["record_lag"]:
        out.print(f"record: {lag:,} points are still on their way to MLflow")
    for lost in (document["attempts"] or [{}])[-1].get("lost", []):
        out.print(f"workers lost: {lost['lost']}")
    out.print(f"made {moment(document['created_unix_s'])} UTC, folder {document['folder']}")
    if stages := document.get("stages"):
        from jobs.pipeline_document import stages_table

        out.print(stages_table(stages))
        if page := document["run_page"]:
            out.print(f"MLflow  {page}")
    elif document["result"]:
        show_result(document["result"] | {"run_page": document["run_page"]}, out)
