"""What an attempt prints goes to a log that outlives it.

Knows the attempt's side: standard output and standard error are led into a pipe, and a process
(`jobs/log_writer.py`) that nobody stops with the attempt stores what comes out of it.
"""

import fcntl
import io
import os
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOG_DIR = "log"
"""In the folder of an attempt."""
_PIPE_BYTES = 1 << 20  # what may wait while the process starts
_DRAIN_S = 2.0
_RESTART_S = 0.5
_CODE = """
import sys
sys.path.append(sys.argv[1])
from jobs.log_writer import main
main(*sys.argv[2:])
"""


@contextmanager
def captured(
    attempt_dir: Path, *, max_bytes: int = 64 << 20, file_bytes: int = 4 << 20
) -> Iterator[None]:
    """Send what this process and its children write to stdout and stderr into the rotated log.

    On the level of file descriptors 1 and 2. What was written is stored even if this process is
    killed right after. At the end it waits shortly until all is stored; not for children that go
    on, whose output is stored all the same.
    """
    folder = attempt_dir.absolute() / LOG_DIR
    folder.mkdir(parents=True, exist_ok=True)
    source, sink = os.pipe()
    with suppress(OSError):  # the user has large pipes enough
        fcntl.fcntl(sink, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    _flush()
    kept = os.dup(1), os.dup(2)
    writer = _Writer(folder, max_bytes, file_bytes, source=source, errors=kept[1])
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.close(sink)
    try:
        with _line_by_line():
            yield
    finally:
        _flush()
        writer.is_ending.set()
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        writer.thread.join(_DRAIN_S)
        os.close(kept[0])


class _Writer:
    """The process that stores, started anew if somebody kills it: the job would die of its pipe."""

    def __init__(
        self, folder: Path, max_bytes: int, file_bytes: int, *, source: int, errors: int
    ) -> None:
        root = Path(__file__).parent.parent
        # -I -S: no site, no variables of Python and nothing of the working directory; -m needs one
        python = [sys.executable, "-I", "-S", "-c", _CODE, str(root)]
        self._command = [*python, str(folder), str(max_bytes), str(file_bytes)]
        self._source, self._errors = source, errors
        self.is_ending = threading.Event()
        first = self._start()
        self.thread = threading.Thread(target=self._tend, args=first, name="log", daemon=True)
        self.thread.start()

    def _start(self) -> tuple[subprocess.Popen[bytes], int]:
        """The process, which leaves its work to one that is no child, and what ends with that."""
        ended, held = os.pipe()
        try:
            process = subprocess.Popen(
                self._command,
                stdin=self._source,
                stdout=held,
                stderr=self._errors,
                cwd="/",
                start_new_session=True,  # Ray stops the attempt by signals to its group
            )
        except OSError:
            os.close(ended)
            raise
        finally:
            os.close(held)
        return process, ended

    def _tend(self, process: subprocess.Popen[bytes], ended: int) -> None:
        _wait(process, ended)
        while not self.is_ending.wait(_RESTART_S):
            with suppress(OSError):  # no process or no memory to be had: tried again
                _wait(*self._start())
        if _num_unread_bytes(self._source):  # it was killed shortly before the end
            with suppress(OSError):
                _wait(*self._start())
        os.close(self._source)
        os.close(self._errors)


def _wait(process: subprocess.Popen[bytes], ended: int) -> None:
    process.wait()
    with open(ended, "rb") as file:
        file.read()


def _num_unread_bytes(source: int) -> int:
    answer = fcntl.ioctl(source, termios.FIONREAD, bytes(4))
    return int.from_bytes(answer, sys.byteorder)


@contextmanager
def _line_by_line() -> Iterator[None]:
    """A pipe is written in blocks otherwise, and the last one would die with the process."""
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper) or stream.line_buffering:
        yield
        return
    stream.reconfigure(line_buffering=True)
    try:
        yield
    finally:
        stream.reconfigure(line_buffering=False)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # there is none, or it was closed
            stream.flush()
