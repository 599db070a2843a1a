"""The files in which an attempt of the queue says where it runs and how it ended.

They lie in the job's folder, which the controller sees, so the truth does not hang on Ray.
"""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster.processes import birth_of, host_name, num_oom_kills
from jobs.lifecycle import End
from jobs.rank_files import RANK_NODES
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
    started = {"pid": pid, "born": birth_of(pid), "host": host_name()}
    started |= {"oom_kills": num_oom_kills(), "ray": os.environ.get("RAY_ADDRESS")}
    write_json(folder / _STARTED, started)


def say_end(folder: Path, end: End) -> bool:
    """Write down how the attempt ended; False: that is written already, and counts."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f"{_END}.{os.getpid()}.{threading.get_ident()}"
    write_json(aside, asdict(end))
    try:
        os.link(aside, folder / _END)  # unlike a rename it replaces nothing
    except FileExistsError:
        return False
    finally:
        aside.unlink()
    return True


def read_end(folder: Path) -> End | None:
    """What the attempt wrote down about its end."""
    values = _read(folder / _END)
    try:
        return End(**(values | {"state": State(values["state"])})) if values else None
    except (KeyError, TypeError, ValueError):  # the job may write there, too
        return None


def process_of(folder: Path) -> dict[str, Any] | None:
    """`{pid, born, host, ray}` of the attempt; None: it has not begun."""
    return _read(folder / _STARTED)


def gcs_address_of(folder: Path) -> str | None:
    """Where the control service of its cluster is, as the attempt was told."""
    return str((process_of(folder) or {}).get("ray") or "") or None


def nodes_of_ranks(job_dir: Path) -> set[str]:
    """The ids of the Ray nodes that the job's workers were last started on."""
    return {path.read_text() for path in (job_dir / RANK_NODES).glob("*")}


def is_gone(folder: Path) -> bool:
    """Whether the process of the attempt ran on this machine and is no more."""
    process = process_of(folder)
    if process is None or process.get("host") != host_name() or not process.get("born"):
        return False
    return birth_of(int(process["pid"])) != str(process["born"])


def is_alive(folder: Path) -> bool:
    """Whether the process of the attempt runs on this machine."""
    process = process_of(folder)
    if process is None or process.get("host") != host_name() or not process.get("born"):
        return False
    return birth_of(int(process["pid"])) == str(process["born"])


def send_signal(folder: Path, number: int) -> None:
    """To the process of the attempt, if it runs on this machine."""
    process = process_of(folder)
    if process is not None and is_alive(folder):
        with suppress(ProcessLookupError):
            os.kill(int(process["pid"]), number)


def memory_ran_out(folder: Path) -> bool:
    """Whether the kernel of this machine has ended processes for want of memory since it began."""
    process = process_of(folder)
    if process is None or process.get("host") != host_name() or process.get("oom_kills") is None:
        return False
    return (num_oom_kills() or 0) > int(process["oom_kills"])


def sign_of_life(job_dir: Path) -> int:
    """Changes whenever the job writes: events, its log, what it prints, its trials.

    Not the newest time: after the clock was set back that would not change for a while.
    """
    signs = []
    parts = ("trials/*/events.jsonl", "stages/*/events.jsonl")
    for pattern in ("events.jsonl", "job.log", "attempts/*/log/*", *parts):
        for path in job_dir.glob(pattern):
            with suppress(OSError):
                seen = path.stat()
                signs.append((str(path), seen.st_mtime_ns, seen.st_size))
    return hash(tuple(sorted(signs)))


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
