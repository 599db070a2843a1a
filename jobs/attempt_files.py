"""The files in which an attempt of the queue says where it runs and how it ended.

They lie in the job's folder, which the controller sees, so the truth does not hang on Ray.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster.processes import host_name, is_alive, started_unix_s
from jobs.lifecycle import End
from jobs.spool import write_json
from jobs.states import State

_STARTED, _END, _LOCK = "started.json", "end.json", "attempt.lock"
_PATIENCE_S = 45.0  # an attempt that was asked to leave has 30 s


class OtherAttemptError(RuntimeError):
    """Another attempt works in this folder."""


def attempt_dir(job_dir: Path, number: int) -> Path:
    return job_dir / "attempts" / str(number)


def say_started(folder: Path) -> None:
    """Write down which process works on the attempt."""
    folder.mkdir(parents=True, exist_ok=True)
    pid = os.getpid()
    write_json(
        folder / _STARTED,
        {"pid": pid, "started_unix_s": started_unix_s(pid), "host": host_name()},
    )


def say_end(folder: Path, end: End) -> None:
    """Write down how the attempt ended; only what is written first counts."""
    if not (folder / _END).exists():
        write_json(folder / _END, asdict(end))


def read_end(folder: Path) -> End | None:
    """What the attempt wrote down about its end."""
    values = _read(folder / _END)
    return End(**(values | {"state": State(values["state"])})) if values else None


def process_of(folder: Path) -> dict[str, Any] | None:
    """`{pid, started_unix_s, host}` of the attempt; None: it has not begun."""
    return _read(folder / _STARTED)


def is_gone(folder: Path) -> bool:
    """Whether the process of the attempt ran on this machine and is no more."""
    process = process_of(folder)
    if process is None or process["host"] != host_name():
        return False
    return not is_alive(process["pid"], process["started_unix_s"] or 0.0)


@contextmanager
def only_attempt(job_dir: Path) -> Iterator[None]:
    """Work in the job's folder alone, whatever anybody believes about other attempts.

    Raises:
        OtherAttemptError: another one does not leave.
    """
    import fcntl

    with (job_dir / _LOCK).open("w") as lock:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise OtherAttemptError(
                        f"another attempt still works in {job_dir}; it must end first"
                    ) from None
                time.sleep(0.2)
        yield


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return None
