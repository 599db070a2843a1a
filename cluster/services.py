"""Services of ours that outlive the command that started them: start, find again, stop.

Each has a folder with a record, `server.json`, that says where it is; a file lock lets two commands
that start at once start one. A service that finds itself struck from its record leaves.
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cluster.errors import ClusterError
from cluster.processes import birth_of, end, is_alive

_PORT_FILE = "port"  # of the last one; outlives it
_PORTS = range(21_000, 32_000)  # below those that the system hands to outgoing connections


@dataclass(frozen=True)
class Server:
    """A service that was started; it may still be on its way up."""

    uri: str
    pid: int
    birth: str
    """As `cluster.processes.birth_of` tells it."""


@dataclass(frozen=True)
class Service:
    """What is started: `python -m MODULE FOLDER PORT ARGUMENTS...`."""

    name: str
    """As a person calls it."""
    module: str
    folder: Path
    health_path: str
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    error: type[ClusterError] = ClusterError

    @property
    def record(self) -> Path:
        return self.folder / "server.json"

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    def find(self) -> Server | None:
        """The one that runs, if its process lives."""
        try:
            server = Server(**json.loads(self.record.read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return server if is_alive(server.pid, server.birth) else None

    def ensure(self) -> Server:
        """Find it or start it; does not wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._locked():
            return self.find() or self._start()

    def wait_ready(self, server: Server, *, timeout_s: float = 120.0) -> None:
        """Return as soon as it answers.

        Raises:
            ClusterError: its process ended, or it did not answer in time.
        """
        deadline = time.monotonic() + timeout_s
        while not answers(server.uri + self.health_path):
            if not is_alive(server.pid, server.birth):
                raise self.error(
                    f"the {self.name} of {self.folder.parent} ended while it was starting: "
                    f"{_cause(self.log)}. Its log is {self.log}."
                )
            if time.monotonic() > deadline:
                raise self.error(
                    f"the {self.name} at {server.uri} did not answer within {timeout_s:.0f} s. "
                    f"Its log is {self.log}; `gpt2cls cluster down` ends it."
                )
            time.sleep(0.1)

    def stop(self, *, grace_s: float = 8.0) -> bool:
        """End it; True if there was one. Nothing of it is left running."""
        if not self.record.exists():
            return False
        with self._locked():
            server = self.find()
            if server is not None:
                end(server.pid, server.birth, grace_s=grace_s)
            self.record.unlink(missing_ok=True)
        return server is not None

    def _start(self) -> Server:
        port = self._free_port()
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", self.module, str(self.folder), str(port), *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=self._environment(),
                start_new_session=True,
            )
        birth = birth_of(process.pid) or "it has ended already"
        server = Server(f"http://127.0.0.1:{port}", process.pid, birth)
        aside = self.record.with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps(asdict(server)))
        aside.replace(self.record)
        (self.folder / _PORT_FILE).write_text(str(port))
        process.returncode = 0  # it is meant to outlive this process: no warning about that
        return server

    def _environment(self) -> dict[str, str]:
        # The service runs in its own folder; let it find this package whence this process has it.
        source = str(Path(__file__).resolve().parent.parent)
        environment = dict(self.environment)
        paths = [source, *filter(None, [environment.get("PYTHONPATH")])]
        return environment | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}

    def _free_port(self) -> int:
        """The last one's if it gets free, so that open pages and clients stay right; else any."""
        try:
            wish = int((self.folder / _PORT_FILE).read_text())
        except (OSError, ValueError):
            wish = None
        # A process that was killed gives its port back a moment after it is gone.
        for _ in range(10 if wish else 0):
            if _is_free(wish or 0):
                return wish or 0
            time.sleep(0.1)
        for port in random.sample(_PORTS, 50):
            if _is_free(port):
                return port
        raise self.error(
            f"no port from {_PORTS.start} to {_PORTS.stop} of 127.0.0.1 is free for the "
            f"{self.name}; end programs that listen there"
        )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / "server.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def answers(uri: str, *, timeout_s: float = 3.0) -> bool:
    """Whether a GET of this address is answered as it should; a refused one answers, too."""
    try:
        with urllib.request.urlopen(uri, timeout=timeout_s) as reply:
            return int(reply.status) == 200
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)  # it is up, and wants a token
    except (urllib.error.URLError, OSError, ValueError):
        return False


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
