"""Verbs of the registry: models [NAME], models promote, rollback, compare."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from cluster.home import from_environment
from jobs.console import Answer
from jobs.names import check_registered_name
from jobs.verb import Debug, Json, ModelArgument, verb

if TYPE_CHECKING:
    from rich.console import Console

    from jobs.registry import Registered

_LIST = "list"

Name = Annotated[str, typer.Argument(metavar="NAME", help="A registered model.")]


class _ModelsGroup(TyperGroup):
    """`models NAME` beside `models promote ...`: what is no verb is a name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            args = [_LIST, *args]
        return super().parse_args(ctx, args)


group = typer.Typer(
    cls=_ModelsGroup,
    help="The registry: `models` lists it, `models NAME` shows one model's versions.",
    rich_markup_mode=None,
)


@group.command(_LIST, hidden=True)
@verb
def models(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]")] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """List registered models, or the versions of one."""
    from jobs.versions import list_models, model_versions

    surroundings = from_environment()
    if name is None:
        every = {"models": list_models(surroundings)}
        return Answer(every, lambda out: _show_models(every, out))
    document = model_versions(surroundings, check_registered_name(name))
    return Answer(document, lambda out: _show_versions(document, out))


@group.command()
@verb
def promote(
    name: Name,
    version: Annotated[int, typer.Argument(min=1, max=10**9)],
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Make a version the champion."""
    from jobs import registry

    return _moved(registry.promote(from_environment(), check_registered_name(name), version))


@group.command()
@verb
def rollback(name: Name, json: Json = False, debug: Debug = False) -> Answer:
    """Give the alias champion back to the version that had it before."""
    from jobs import registry

    return _moved(registry.rollback(from_environment(), check_registered_name(name)))


@group.command()
@verb
def compare(a: ModelArgument, b: ModelArgument, json: Json = False, debug: Debug = False) -> Answer:
    """Show two registered versions side by side."""
    from jobs import versions

    document = versions.compare(from_environment(), a, b)
    return Answer(document, lambda out: _show_comparison(document, out))


def _moved(moved: "Registered") -> Answer:
    from dataclasses import asdict

    words = f"{moved.name} version {moved.version} is now {moved.alias}; {moved.reason}"
    return Answer(asdict(moved), lambda out: out.print(words))


def _show_models(document: dict[str, Any], out: "Console") -> None:
    from jobs.tables import plain_table

    rows = [[m["name"], m["num_versions"], m["champion"]] for m in document["models"]]
    out.print(plain_table(["model", "versions", "champion"], rows))


def _show_versions(document: dict[str, Any], out: "Console") -> None:
    from jobs.tables import moment, plain_table

    rows = []
    for version in document["versions"]:
        metrics = version["metrics"]
        shown = "  ".join(
            f"{k} {metrics[k]:.4f}" for k in ("accuracy", "macro_f1", "pearson") if k in metrics
        )
        aliases = ", ".join(version["aliases"])
        made = moment(version.get("created_unix_s"))
        rows.append([version["version"], aliases, shown, version.get("job_id"), made])
    names = ["version", "aliases", "metrics", "job", "made (UTC)"]
    out.print(plain_table(names, rows, document["name"]))


def _show_comparison(document: dict[str, Any], out: "Console") -> None:
    from jobs.tables import plain_table

    a, b = document["a"]["model"], document["b"]["model"]
    rows = [[k, m["a"], m["b"], m["difference"]] for k, m in document["metrics"].items()]
    out.print(plain_table(["metric", a, b, "difference"], rows))
    if not document["same_data"]:
        out.print("They were measured on different data: compare with care.")
