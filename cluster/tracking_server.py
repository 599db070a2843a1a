"""The embedded MLflow server: start it in the background, find it again, stop it.

Nobody but the server opens its database. One record, `server.json`, says where it is; a file
lock lets two commands that start at once start one server.
"""

import fcntl
import json
import os
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.errors import TrackingError
from cluster.home import Home, Surroundings
from cluster.processes import end, is_alive, started_unix_s

IDLE_S = 30 * 60.0
_PORT_FILE = "port"  # of the last server; outlives it
_PORTS = range(21_000, 32_000)  # below those that the system hands to outgoing connections


@dataclass(frozen=True)
class Server:
    """A server that was started; it may still be on its way up."""

    uri: str
    pid: int
    started_unix_s: float


def find_server(home: Home) -> Server | None:
    """The server of this state folder, if its process lives."""
    try:
        server = Server(**json.loads(home.server_record.read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return server if is_alive(server.pid, server.started_unix_s) else None


def tracking_uri(surroundings: Surroundings) -> str | None:
    """Where the record goes now; None: nowhere yet. Starts nothing."""
    if surroundings.tracking_uri:
        return surroundings.tracking_uri
    server = find_server(surroundings.home)
    return server.uri if server else None


def ensure_server(home: Home, *, idle_s: float = IDLE_S) -> Server:
    """Find the server or start it; does not wait until it answers."""
    home.mlflow.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(home):
        server = find_server(home)
        if server is None:
            server = _start(home, idle_s)
        return server


def ensure_tracking(surroundings: Surroundings) -> str:
    """The address of the server that serves here; the embedded one is started if it must be."""
    return surroundings.tracking_uri or ensure_server(surroundings.home).uri


def wait_ready(home: Home, server: Server, *, timeout_s: float = 120.0) -> None:
    """Return as soon as the server answers.

    Raises:
        TrackingError: its process ended, or it did not answer in time.
    """
    deadline = time.monotonic() + timeout_s
    while not answers(server.uri):
        if not is_alive(server.pid, server.started_unix_s):
            raise TrackingError(
                f"the MLflow server of {home.root} ended while it was starting: "
                f"{_cause(home.server_log)}. Its log is {home.server_log}."
            )
        if time.monotonic() > deadline:
            raise TrackingError(
                f"the MLflow server at {server.uri} did not answer within {timeout_s:.0f} s. "
                f"Its log is {home.server_log}; `gpt2cls cluster down` ends it."
            )
        time.sleep(0.1)


def answers(uri: str, *, timeout_s: float = 3.0) -> bool:
    """Whether an MLflow server answers at `uri`."""
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=timeout_s) as reply:
            return int(reply.status) == 200
    except (urllib.error.URLError, OSError, ValueError):
        return False


def stop_server(home: Home) -> bool:
    """End the server; True if there was one. Nothing of it is left running."""
    if not home.server_record.exists():
        return False
    with _locked(home):
        server = find_server(home)
        if server is not None:
            end(server.pid, server.started_unix_s, grace_s=8.0)
        home.server_record.unlink(missing_ok=True)
    return server is not None


def _start(home: Home, idle_s: float) -> Server:
    port = _free_port(_last_port(home))
    command = [sys.executable, "-m", "cluster.tracking_main"]
    command += [str(home.mlflow), str(port), str(idle_s)]
    with home.server_log.open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=home.mlflow,
            env=_environment(home),
            start_new_session=True,
        )
    started = started_unix_s(process.pid)
    server = Server(f"http://127.0.0.1:{port}", process.pid, started or time.time())
    aside = home.server_record.with_suffix(f".{os.getpid()}")
    aside.write_text(json.dumps(asdict(server)))
    aside.replace(home.server_record)
    (home.mlflow / _PORT_FILE).write_text(str(port))
    process.returncode = 0  # it is meant to outlive this process: no warning about that
    return server


def _environment(home: Home) -> dict[str, str]:
    """Of this process, less what would point MLflow or its helpers elsewhere."""
    environment = home.child_environment()
    for name in [name for name in environment if name.startswith(("MLFLOW_", "_MLFLOW_"))]:
        del environment[name]
    # The server runs in its own folder; let it find this package whence this process has it.
    source = str(Path(__file__).resolve().parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(
        [source, *filter(None, [environment.get("PYTHONPATH")])]
    )
    return environment | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}


def _last_port(home: Home) -> int | None:
    try:
        return int((home.mlflow / _PORT_FILE).read_text())
    except (OSError, ValueError):
        return None


def _free_port(wish: int | None) -> int:
    """The wished port if it gets free, so that open pages and clients stay right; else any."""
    # A process that was killed gives its port back a moment after it is gone.
    for _ in range(10 if wish else 0):
        if _is_free(wish or 0):
            return wish or 0
        time.sleep(0.1)
    for port in random.sample(_PORTS, 50):
        if _is_free(port):
            return port
    raise TrackingError(
        f"no port from {_PORTS.start} to {_PORTS.stop} of 127.0.0.1 is free for the MLflow "
        "server; end programs that listen there"
    )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _cause(log: Path) -> str:
    """The line of the log that says most: the last one with an error, else the last."""
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    faults = [line for line in lines if "Error" in line and not line.startswith(" ")]
    return [*(lines or ["it wrote no log"]), *faults][-1].strip()


@contextmanager
def _locked(home: Home) -> Iterator[None]:
    with (home.mlflow / "server.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
