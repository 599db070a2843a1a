"""Verbs of the local services: cluster status, cluster down."""

from typing import TYPE_CHECKING, Any

import typer

from cluster.home import Surroundings, from_environment
from jobs.console import Answer
from jobs.masking import mask
from jobs.verb import Debug, Json, verb

if TYPE_CHECKING:
    from rich.console import Console

group = typer.Typer(help="The services that jobs talk to.", rich_markup_mode=None)


@group.command()
@verb
def status(json: Json = False, debug: Debug = False) -> Answer:
    """Show which services run, and where."""
    surroundings = from_environment()
    document = {"ray": _ray(surroundings), "mlflow": _mlflow(surroundings), "controller": None}
    return Answer(document, lambda out: _show_status(document, out))


@group.command()
@verb
def down(json: Json = False, debug: Debug = False) -> Answer:
    """Stop the services that were started for you."""
    from cluster.leftovers import stop_sessions
    from cluster.tracking_server import stop_server

    home = from_environment().home
    document = {"mlflow": stop_server(home), "ray": stop_sessions(home)}
    return Answer(document, lambda out: _show_down(document, out))


def _ray(surroundings: Surroundings) -> dict[str, Any] | None:
    """The cluster that was named; an embedded one lives only as long as its job."""
    address = surroundings.ray_address
    return {"address": mask(address), "embedded": False} if address else None


def _mlflow(surroundings: Surroundings) -> dict[str, Any] | None:
    from cluster.tracking_server import answers, find_server

    if uri := surroundings.tracking_uri:
        return {"uri": mask(uri), "answers": answers(uri), "embedded": False}
    server = find_server(surroundings.home)
    if server is None:
        return None
    answering = answers(server.uri)
    return {"uri": server.uri, "answers": answering, "embedded": True, "pid": server.pid}


def _show_status(document: dict[str, Any], out: "Console") -> None:
    not_running = {
        "mlflow": "not running; the next job starts it, and so does `gpt2cls models`",
        "ray": "not running; a job with several workers starts its own",
    }
    for name, words in not_running.items():
        if service := document[name]:
            words = str(service.get("uri") or service["address"])
            words += "" if service.get("answers", True) else ", which does not answer"
        out.print(f"{name}: {words}")


def _show_down(document: dict[str, Any], out: "Console") -> None:
    out.print("MLflow server stopped" if document["mlflow"] else "no MLflow server was running")
    if document["ray"]:
        out.print(f"{document['ray']} Ray session(s) stopped")
