"""Verbs of sweeps: sweep show, sweep resume."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.home import Surroundings, from_environment
from gpt2cls.errors import RequestError
from jobs.console import Answer, messages
from jobs.names import check_job_id
from jobs.verb import Debug, JobId, Json, verb

if TYPE_CHECKING:
    from rich.console import Console

    from jobs.store import Job

group = typer.Typer(
    help="Sweeps: the trials of one, the best of them; go on with one, or extend it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@group.command("show")
@verb
def show(job: JobId, json: Json = False, debug: Debug = False) -> Answer:
    """Show the trials of a sweep, the best of them, and what mattered."""
    from jobs.importance import importance
    from jobs.sweep_document import sweep_document

    surroundings = from_environment()
    found = _sweep(job, surroundings)
    folder = surroundings.home.job_dir(found.id)
    document = {"job_id": found.id, **sweep_document(folder)}
    found_importance = importance(document) if document["trials"] else None
    document |= {
        "state": str(found.state),
        "reason": found.reason,
        "importance": found_importance.shares if found_importance else None,
    }
    return Answer(document, lambda out: _show_trials(document, out))


@group.command("resume")
@verb
def resume(
    job: JobId,
    trials: Annotated[
        int | None,
        typer.Option("--trials", min=1, help="Extend the sweep to so many configurations."),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Go on with a sweep that was stopped, failed or killed; or extend one that is done."""
    surroundings = from_environment()
    found = _sweep(job, surroundings)
    document = go_on(found, surroundings, trials=trials)
    return Answer(document, lambda out: show_winner(document, out))


def go_on(found: "Job", surroundings: Surroundings, *, trials: int | None = None) -> dict[str, Any]:
    """Resume a sweep; the document of its end.

    Raises:
        RequestError: its state, its folder or the number of trials does not allow it.
    """
    _refuse_to_go_on(found, surroundings, trials)

    from jobs.sweep import resume_sweep

    return resume_sweep(found.id, surroundings, messages(), trials=trials)


def _refuse_to_go_on(found: "Job", surroundings: Surroundings, trials: int | None) -> None:
    from pydantic import ValidationError

    from jobs.search import MAX_RUNS
    from jobs.spec import SweepJob
    from jobs.states import LIVE, State
    from jobs.store import why_not_started

    folder = surroundings.home.job_dir(found.id)
    if found.state in LIVE or (found.state is State.SUCCEEDED and trials is None):
        words = why_not_started(found)
        if found.state is State.SUCCEEDED:
            words = f"{words.split(';')[0]}; extend it with `gpt2cls sweep resume ID --trials N`"
        raise RequestError(words)
    if not folder.is_dir():
        raise RequestError(f"job {found.id}: its folder {folder} is gone; run its job file again")
    try:
        job = SweepJob.model_validate(found.spec)
    except ValidationError as error:
        raise RequestError(
            f"job {found.id} was made by another version, whose settings this one does not know; "
            f"run {folder / 'job.yaml'} again"
        ) from error
    if trials is None:
        return
    from jobs.sweep_document import sweep_document

    begun = {trial["configuration"] for trial in sweep_document(folder)["trials"]}
    least, most = max(len(begun), 1), MAX_RUNS // job.search.seeds
    if job.search.searcher == "grid":
        most = job.search_space.num_points(job.fixed) or most
    if not least <= trials <= most:
        raise RequestError(
            f"--trials {trials}: must be at least {least:,}, which the sweep has begun, and at "
            f"most {most:,}"
        )


def _sweep(reference: str, surroundings: Surroundings) -> "Job":
    """The sweep of this id; `last` is the newest one.

    Raises:
        RequestError: there is none, or the job is of another kind.
    """
    from jobs.cli_jobs import settled_store

    store = settled_store(surroundings)
    if reference == "last":
        newest = next((job for job in store.jobs() if job.kind == "sweep"), None)
        if newest is None:
            raise RequestError(f"there is no sweep in {surroundings.home.root} yet")
        return store.get(newest.id)  # whole: what is listed comes without its settings
    found = store.get(check_job_id(reference))
    if found.kind != "sweep":
        raise RequestError(
            f"job {found.id} is a {found.kind}, not a sweep; `gpt2cls show {found.id}` shows it"
        )
    return found


def show_winner(document: dict[str, Any], out: "Console") -> None:
    """The end of a sweep: where the model is, and what to look at."""
    from jobs.cli_run import show_end

    show_end(document, out)
    out.print(f"trials  gpt2cls sweep show {document['job_id']}")


def _show_trials(document: dict[str, Any], out: "Console") -> None:
    from jobs.importance import importance
    from jobs.sweep_tables import importance_table, trials_table

    out.print(f"sweep {document['job_id']}: {document['state']}")
    if document["reason"]:
        out.print(f"reason: {document['reason']}")
    if not document["trials"]:
        out.print("no trial was begun")
        return
    out.print(trials_table(document, out.width))
    out.print(importance_table(importance(document)))
