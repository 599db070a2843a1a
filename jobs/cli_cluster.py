"""Verbs of the local services: cluster up, status, down, usage."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.home import from_environment, refuse_if_unwritable
from jobs.console import Answer, messages
from jobs.verb import Debug, Json, verb

if TYPE_CHECKING:
    from rich.console import Console

group = typer.Typer(help="The services that jobs talk to.", rich_markup_mode=None)


@group.command()
@verb
def up(
    cpus: Annotated[int | None, typer.Option("--cpus", help="Of this machine, for jobs.")] = None,
    gpus: Annotated[int, typer.Option("--gpus", help="Of this machine, for jobs.")] = 0,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Start a Ray head, an MLflow server and the controller of the queue."""
    from jobs.services import start_all

    surroundings = from_environment()
    refuse_if_unwritable(surroundings.home)
    document = start_all(surroundings, messages(), cpus=cpus, gpus=gpus)
    return Answer(document, lambda out: _show_status(document, out))


@group.command()
@verb
def status(json: Json = False, debug: Debug = False) -> Answer:
    """Show which services run, and where."""
    from jobs.services import status_of

    document = status_of(from_environment())
    return Answer(document, lambda out: _show_status(document, out))


@group.command()
@verb
def down(json: Json = False, debug: Debug = False) -> Answer:
    """Stop the services; jobs at work go back to the queue, with their checkpoints."""
    from jobs.services import stop_all

    document = stop_all(from_environment(), messages())
    return Answer(document, lambda out: _show_down(document, out))


@group.command()
@verb
def usage(json: Json = False, debug: Debug = False) -> Answer:
    """Show CPU- and GPU-hours by user and queue."""
    from jobs.queue_store import QueueStore
    from jobs.store import Store

    rows = QueueStore(Store(from_environment().home)).usage()
    document = {"usage": rows}
    return Answer(document, lambda out: _show_usage(rows, out))


def _show_status(document: dict[str, Any], out: "Console") -> None:
    not_running = {
        "mlflow": "not running; the next job starts it, and so does `gpt2cls models`",
        "ray": "not running; a job with several workers starts its own",
        "controller": "not running; `gpt2cls cluster up` starts one",
    }
    for name, words in not_running.items():
        if service := document[name]:
            words = str(service.get("address") or service["uri"])
            words += "" if service.get("answers", True) else ", which does not answer"
        out.print(f"{name}: {words}")


def _show_down(document: dict[str, Any], out: "Console") -> None:
    out.print("MLflow server stopped" if document["mlflow"] else "no MLflow server was running")
    if document["controller"]:
        out.print("controller stopped")
    if document["ray"]:
        out.print(f"{document['ray']} Ray session(s) stopped")


def _show_usage(rows: list[dict[str, Any]], out: "Console") -> None:
    from jobs.tables import cell, plain_table

    shown = [
        [
            row["user"],
            row["queue"],
            *(cell(row[name]) for name in ("jobs", "attempts")),
            *(f"{(row[name] or 0) / 3600:.2f}" for name in ("cpu_seconds", "gpu_seconds")),
        ]
        for row in rows
    ]
    columns = ["user", "queue", "jobs", "attempts", "CPU hours", "GPU hours"]
    out.print(plain_table(columns, shown))
