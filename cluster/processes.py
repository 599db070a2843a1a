"""Is the process that wrote its number down still the one that has this number?"""

import os
import signal
import socket
import time
from pathlib import Path

import psutil


def birth_of(pid: int) -> str | None:
    """What no other process has, ever; None: there is no such process, or it is a zombie.

    No time of day: when the machine's clock is set, a process seems to have started at another one.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None if Path("/proc/self").exists() else _birth_without_proc(pid)
    return None if state in ("Z", "X") else f"{fields[18]} ticks after boot {boot}"


def _birth_without_proc(pid: int) -> str | None:
    try:
        process = psutil.Process(pid)
        is_zombie = process.status() == psutil.STATUS_ZOMBIE
        return None if is_zombie else f"unix second {process.create_time():.0f}"
    except psutil.NoSuchProcess:
        return None


def is_alive(pid: int | None, birth: str | None) -> bool:
    """Whether the process that had this number at its birth still runs."""
    return pid is not None and birth is not None and birth_of(pid) == birth


def end(pid: int, birth: str, *, grace_s: float) -> None:
    """Ask the process to leave, then make it; returns when it is gone."""
    for sig, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 10.0)):
        if not is_alive(pid, birth):
            return
        try:
            os.kill(pid, sig)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + patience_s
        while is_alive(pid, birth) and time.monotonic() < deadline:
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
