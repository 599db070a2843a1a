"""Ray sessions that were started for a job and outlived it, or still serve it."""

import tempfile
from pathlib import Path

import psutil

from cluster.home import Home, from_environment

_SESSION = "ray-"
_SHORT_SESSION = "gpt2cls-ray-"
_GRACE_S = 5.0


def stop_sessions(home: Home) -> int:
    """End the processes of every embedded Ray session of this state folder; how many sessions."""
    found = _sessions(home)
    processes = [process for group in found.values() for process in group]
    for process in processes:
        _signal(process, is_last=False)
    _, alive = psutil.wait_procs(processes, timeout=_GRACE_S)
    for process in alive:
        _signal(process, is_last=True)
    psutil.wait_procs(alive, timeout=_GRACE_S)
    return len(found)


def _sessions(home: Home) -> dict[str, list[psutil.Process]]:
    """Processes by the folder of their session, which stands in every one's command line."""
    prefixes = (f"{home.root}/{_SESSION}", f"{tempfile.gettempdir()}/{_SHORT_SESSION}")
    sessions: dict[str, list[psutil.Process]] = {}
    for process in psutil.process_iter():
        try:
            folder = _session_folder(process.cmdline(), prefixes)
            if folder is None or _home_of(process) != home.root:
                continue
        except psutil.Error:  # it is gone, or another user's
            continue
        sessions.setdefault(folder, []).append(process)
    return sessions


def _session_folder(command: list[str], prefixes: tuple[str, ...]) -> str | None:
    for argument in command:
        for prefix in prefixes:
            start = argument.find(prefix)
            if start >= 0 and (start == 0 or argument[start - 1] == "="):
                return argument[start:].removeprefix(prefix).partition("/")[0]
    return None


def _home_of(process: psutil.Process) -> Path:
    """The state folder of the command that started the process."""
    return from_environment(
        {k: v for k, v in process.environ().items() if k in ("GPT2CLS_HOME", "HOME")}
    ).home.root


def _signal(process: psutil.Process, *, is_last: bool) -> None:
    try:
        if is_last:
            process.kill()
        else:
            process.terminate()
    except psutil.NoSuchProcess:
        return
