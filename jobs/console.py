"""What a command says: its result on standard output, all else on standard error."""

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from jobs.faults import BadRequestError, Problem, plain
from jobs.masking import mask

if TYPE_CHECKING:
    from rich.console import Console

WIDTH_OFF_A_TERMINAL = 200
"""Characters: wide enough that no id or value of a table is cut in two."""

OK, FAILED, BAD_REQUEST, NO_SERVICE, INTERRUPTED = 0, 1, 2, 3, 130


@dataclass(frozen=True)
class Answer:
    """The result of a verb, for a program and for a person."""

    document: dict[str, Any]
    show: Callable[["Console"], None]
    exit_code: int = OK
    then: Callable[[], int] | None = None
    """What goes on after the answer was given; gives the exit code."""


def messages() -> "Console":
    """Where progress and remarks go."""
    return console_of(sys.stderr)


def console_of(stream: IO[str]) -> "Console":
    """Writes to a stream: as wide as the terminal, or wide enough for every table."""
    from rich.console import Console

    width = None if stream.isatty() else WIDTH_OFF_A_TERMINAL
    return Console(file=stream, width=width, highlight=False, markup=False, soft_wrap=True)


@contextlib.contextmanager
def result_stream() -> Iterator[IO[str]]:
    """Standard output for the result alone; meanwhile whatever else writes there goes to stderr.

    On the level of file descriptors, because libraries and child processes print too.
    """
    if not _is_process_stdout(sys.stdout):  # somebody in this process collects the output
        out = sys.stdout
        with contextlib.redirect_stdout(sys.stderr):
            yield out
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        # backslashreplace: half a character, as in a damaged file name, is shown and not an error
        with open(kept, "w", encoding="utf-8", errors="backslashreplace", closefd=False) as stream:
            yield stream
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _is_process_stdout(stream: Any) -> bool:
    try:
        return int(stream.fileno()) == 1
    except (AttributeError, ValueError, io.UnsupportedOperation):
        return False


def write_answer(answer: Answer, stream: IO[str], *, as_json: bool) -> None:
    if as_json:
        write_json(answer.document, stream)
    else:
        answer.show(console_of(stream))
        stream.flush()


def write_json(document: dict[str, Any], stream: IO[str]) -> None:
    """One JSON document; NaN and infinity, which JSON does not have, are null."""
    json.dump(plain(document, not_finite=None), stream, indent=2, ensure_ascii=False)
    stream.write("\n")
    stream.flush()


def error_document(kind: str, message: str, problems: list[Problem]) -> dict[str, Any]:
    return {
        "error": {
            "kind": kind,
            "message": mask(message),
            "problems": [problem.document() for problem in problems],
        }
    }


def show_error(error: BaseException, kind: str, stream: IO[str], *, as_json: bool) -> None:
    """The error on stdout for a program, on stderr for a person."""
    problems = error.problems if isinstance(error, BadRequestError) else []
    text = mask(str(error)) or type(error).__name__
    if as_json:
        write_json(error_document(kind, text, problems), stream)
        return
    lines = text.splitlines() if problems else [f"gpt2cls: {text}"]
    print("\n".join(lines), file=sys.stderr)
