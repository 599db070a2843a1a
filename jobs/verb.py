"""What all verbs share: flags, the result on standard output, and an exit code for every fault."""

import functools
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.errors import ClusterError
from cluster.home import from_environment
from gpt2cls.errors import CheckpointError, NonFiniteLoss, RequestError
from jobs import console
from jobs.console import Answer
from jobs.errors import JobFailed, JobStopped
from jobs.masking import mask

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of a fault.")]
JobPath = Annotated[Path, typer.Argument(metavar="JOB", help="A job file (YAML).")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="A job's id, or `last`.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("-s", "--set", metavar="KEY=VALUE", help="Replace a value of the job file."),
]
ModelArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="models:/name@alias, models:/name/3, runs:/id, folder."),
]
TextColumns = Annotated[
    list[str] | None, typer.Option("--text", help="Column of the text; twice for pairs.")
]

_FAULTS: tuple[tuple[type[BaseException], str, int], ...] = (
    (RequestError, "bad_request", console.BAD_REQUEST),
    (ClusterError, "service", console.NO_SERVICE),
    (JobStopped, "stopped", console.INTERRUPTED),
    (JobFailed, "job_failed", console.FAILED),
    (NonFiniteLoss, "job_failed", console.FAILED),
    (CheckpointError, "job_failed", console.FAILED),
    (KeyboardInterrupt, "interrupted", console.INTERRUPTED),
)


def verb(function: Callable[..., Answer]) -> Callable[..., int]:
    """A verb as the command line calls it: says its answer or its fault, gives the exit code."""

    @functools.wraps(function)
    def command(*, json: bool = False, debug: bool = False, **arguments: Any) -> int:
        with console.result_stream() as stream:
            try:
                answer = function(json=json, debug=debug, **arguments)
                console.write_answer(answer, stream, as_json=json)
                if answer.then is not None:
                    return answer.then()
            except BrokenPipeError:  # whoever read the result has left
                return console.FAILED
            except (Exception, KeyboardInterrupt) as error:
                return _say(error, stream, as_json=json, debug=debug)
            return answer.exit_code

    return command


def columns_of(names: Sequence[str] | None) -> str | tuple[str, str] | None:
    """The text columns that were named on the command line.

    Raises:
        RequestError: more than two.
    """
    if not names:
        return None
    if len(names) > 2:
        raise RequestError(f"--text was given {len(names)} times: one column, or two for pairs")
    return names[0] if len(names) == 1 else (names[0], names[1])


def _say(error: BaseException, stream: Any, *, as_json: bool, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    for family, kind, code in _FAULTS:
        if isinstance(error, family):
            said = error if str(error) else RuntimeError("interrupted")
            console.show_error(said, kind, stream, as_json=as_json)
            return code
    log = write_crash_log(error)
    words = f"{type(error).__name__}: {error}".splitlines()[0]
    internal = RuntimeError(f"this is a fault of gpt2cls: {words}. The traceback is in {log}")
    console.show_error(internal, "internal", stream, as_json=as_json)
    return console.FAILED


def write_crash_log(error: BaseException) -> Path:
    """Where the traceback was written: in the state folder if that can be."""
    text = f"{' '.join(sys.argv)}\n" + "".join(traceback.format_exception(error))
    name = f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**6:06d}.log"
    try:
        path = from_environment().home.root / "logs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(mask(text))
    except (OSError, ClusterError):
        path = Path(tempfile.mkdtemp(prefix="gpt2cls-")) / name
        path.write_text(mask(text))
    return path
