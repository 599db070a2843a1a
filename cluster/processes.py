"""Is the process that wrote its number down still the one that has this number?"""

import os
import signal
import socket
import time
from pathlib import Path

import psutil

_STARTED_TOLERANCE_S = 2.0  # the clock of the machine may be set between two readings


def started_unix_s(pid: int) -> float | None:
    """When process `pid` started; None: there is no such process, or it is a zombie."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def is_alive(pid: int, started: float) -> bool:
    """Whether the process that had this number at that time still runs."""
    now_started = started_unix_s(pid)
    return now_started is not None and abs(now_started - started) < _STARTED_TOLERANCE_S


def end(pid: int, started: float, *, grace_s: float) -> None:
    """Ask the process to leave, then make it; returns when it is gone."""
    for sig, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 10.0)):
        if not is_alive(pid, started):
            return
        try:
            os.kill(pid, sig)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + patience_s
        while is_alive(pid, started) and time.monotonic() < deadline:
            _reap(pid)
            time.sleep(0.05)


def _reap(pid: int) -> None:
    """A child of this very process stays a zombie until it is waited for."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def num_oom_kills() -> int | None:
    """Processes that the kernel of this machine has ended for want of memory since it started.

    Source: Linux, `oom_kill` in /proc/vmstat; None where there is none.
    """
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("oom_kill ")]
    return int(found[0]) if found else None


def host_name() -> str:
    """The machine: a process number means nothing on another one."""
    return socket.gethostname()
