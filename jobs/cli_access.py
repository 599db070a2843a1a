"""Verbs of a controller's owner: token, webhook, audit."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.home import from_environment
from jobs.console import Answer
from jobs.verb import Debug, Json, verb

if TYPE_CHECKING:
    from rich.console import Console

token_group = typer.Typer(help="Who may talk to the controller.", rich_markup_mode=None)
webhook_group = typer.Typer(help="Who is told when a job changes.", rich_markup_mode=None)

_DAY_S = 86_400.0


def _client() -> Any:
    from jobs.client import connect

    return connect(from_environment())


@token_group.command("add")
@verb
def add_token(
    user: Annotated[str, typer.Argument(metavar="USER", help="Whose it is.")],
    role: Annotated[str, typer.Option("--role", help="viewer, submitter or admin.")] = "submitter",
    days: Annotated[
        float | None, typer.Option("--days", min=0.001, help="Good for so long; else for ever.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Make a token; it is shown once, and kept nowhere."""
    import time

    expires = time.time() + days * _DAY_S if days is not None else None
    wish = {"user": user, "role": role, "expires_unix_s": expires}
    document = _client().post("/api/tokens", wish)
    return Answer(document, lambda out: out.print(document["token"]))


@token_group.command("list")
@verb
def list_tokens(json: Json = False, debug: Debug = False) -> Answer:
    """List tokens, without what they are."""
    document = _client().get("/api/tokens")
    columns = ["id", "user", "role", "created_unix_s", "expires_unix_s", "revoked_unix_s"]
    return Answer(document, lambda out: _table(document["tokens"], columns, out))


@token_group.command("revoke")
@verb
def revoke_token(
    number: Annotated[int, typer.Argument(metavar="N", help="Its id in the list.")],
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """End a token; it works for five seconds more at most."""
    document = _client().delete(f"/api/tokens/{number}")
    return Answer(document, lambda out: out.print(f"token {number} revoked"))


@webhook_group.command("add")
@verb
def add_webhook(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where a POST goes to.")],
    secret_file: Annotated[
        str, typer.Option("--secret-file", help="Signs what is sent; on the controller's machine.")
    ],
    state: Annotated[
        list[str] | None, typer.Option("--state", help="Tell of this state; else of all ends.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Have changes of state sent to an address, signed."""
    wish: dict[str, Any] = {"url": url, "secret_file": secret_file}
    document = _client().post("/api/webhooks", wish | ({"states": state} if state else {}))
    return Answer(document, lambda out: out.print(str(document["webhook_id"])))


@webhook_group.command("list")
@verb
def list_webhooks(json: Json = False, debug: Debug = False) -> Answer:
    """List webhooks, and how many deliveries wait or were given up."""
    document = _client().get("/api/webhooks")
    columns = ["id", "url", "states", "delivered", "waiting", "failed", "last_error"]
    return Answer(document, lambda out: _table(document["webhooks"], columns, out))


@webhook_group.command("remove")
@verb
def remove_webhook(
    number: Annotated[int, typer.Argument(metavar="N", help="Its id in the list.")],
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Send nothing more there."""
    document = _client().delete(f"/api/webhooks/{number}")
    return Answer(document, lambda out: out.print(f"webhook {number} removed"))


@webhook_group.command("log")
@verb
def webhook_log(
    number: Annotated[int, typer.Argument(metavar="N", help="Its id in the list.")],
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Show what was delivered, and what was not."""
    document = _client().get(f"/api/webhooks/{number}/deliveries")
    columns = ["event_id", "num_tries", "delivered_unix_s", "next_unix_s", "last_error"]
    return Answer(document, lambda out: _table(document["deliveries"], columns, out))


@verb
def audit(json: Json = False, debug: Debug = False) -> Answer:
    """Show who did what with the queue, the newest first."""
    document = _client().get("/api/audit")
    columns = ["at_unix_s", "user", "action", "target", "detail"]
    return Answer(document, lambda out: _table(document["audit"], columns, out))


def _table(rows: list[dict[str, Any]], columns: list[str], out: "Console") -> None:
    from jobs.tables import moment, plain_table

    def shown(name: str, value: Any) -> str:
        if value is None:
            return ""
        if name.endswith("unix_s"):
            return moment(value)
        return ", ".join(value) if isinstance(value, list) else str(value)

    heads = [name.removesuffix("_unix_s").replace("_", " ") for name in columns]
    cells = [[shown(name, row.get(name)) for name in columns] for row in rows]
    out.print(plain_table(heads, cells))
