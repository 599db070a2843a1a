"""The command line: arguments in, exit code out. Imports nothing heavy; the verbs do."""

import os
import re
import sys
from collections.abc import Sequence

import typer
from typer.exceptions import TyperException

from jobs import (
    cli_access,
    cli_cluster,
    cli_data,
    cli_jobs,
    cli_models,
    cli_queue,
    cli_run,
    cli_sweep,
    cli_use,
    console,
)

app = typer.Typer(
    name="gpt2cls",
    help="Fine-tune GPT-2 text classifiers as jobs; recorded, registered and served by MLflow.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(cli_run.run)
app.command()(cli_run.validate)
app.command()(cli_run.schema)
app.add_typer(cli_data.group, name="data")
app.command()(cli_jobs.jobs)
app.command()(cli_jobs.show)
app.command()(cli_queue.submit)
app.command()(cli_queue.logs)
app.command()(cli_queue.stop)
app.command()(cli_jobs.resume)
app.command()(cli_queue.retry)
app.command()(cli_queue.clone)
app.command()(cli_queue.priority)
app.command()(cli_jobs.report)
app.add_typer(cli_sweep.group, name="sweep")
app.add_typer(cli_models.group, name="models")
app.command()(cli_use.predict)
app.command()(cli_use.evaluate)
app.command()(cli_use.serve)
app.add_typer(cli_cluster.group, name="cluster")
app.add_typer(cli_access.token_group, name="token")
app.add_typer(cli_access.webhook_group, name="webhook")
app.command()(cli_access.audit)

_USAGE_IN_WORDS = (
    (r"^Invalid value for ", ""),
    (r"Input should be a valid integer.*", "must be a whole number"),
    (r"Input should be ", "must be "),
    (r"Missing parameter: ", "Missing argument "),
)
"""The words of the command-line library, and ours."""


SPINS = 20_000
"""How often a thread of GNU OpenMP looks for work before it sleeps.

Its own 300,000 take 15 ms where a pause takes 140 cycles, and on a machine that others use too the
threads of a job then spend their time waiting for one another: beside one other process a training
step took 2 to 4 times as long, beside two from as long to 12 times. On an idle machine it costs up
to 3%, 5,000 would cost 7% (benchmarks/shared_machine.py).
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        arguments: what stands after the program's name; None: that of this process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
    try:
        code = app(given, prog_name="gpt2cls", standalone_mode=False)
    except TyperException as error:
        code = _wrong_usage(error, as_json="--json" in given)
    if arguments is None:
        os.dup2(2, 1)  # what libraries print on their way out is no result
    return int(code or 0)


def _wrong_usage(error: TyperException, *, as_json: bool) -> int:
    context = getattr(error, "ctx", None)
    words = str(getattr(error, "format_message", lambda: error)())
    for theirs, ours in _USAGE_IN_WORDS:
        words = re.sub(theirs, ours, words)
    path = context.command_path if context is not None else "gpt2cls"
    text = f"{words.rstrip('.')}. See `{path} --help`"
    console.show_error(RuntimeError(text), "usage", sys.stdout, as_json=as_json)
    return console.BAD_REQUEST
