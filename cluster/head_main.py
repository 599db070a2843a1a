"""The process of a Ray head that serves the queue: starts its parts and keeps them alive.

Run as `python -m cluster.head_main FOLDER PORT NUM_CPUS NUM_GPUS`; the port is that of the
dashboard. Ends with all it started on SIGTERM, or when it is struck from `server.json`.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from ray._private.node import Node
from ray._private.parameter import RayParams
from ray._private.utils import set_kill_on_parent_death_linux, write_ray_address

from cluster.local import LOOPBACK, private_dir
from cluster.ray_head import ADDRESS_FILE, head_address

_OBJECT_STORE_BYTES = 128 << 20  # nothing of ours goes through the object store
_LOOK_EVERY_S = 0.3
_ENDS_WITH_SIGNAL = (signal.SIGTERM, signal.SIGINT)


class Part:
    """A process of the head that is started again, as it was, when it has died."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        with psutil.Process(process.pid).oneshot():
            running = psutil.Process(process.pid)
            self.command, self.environment = running.cmdline(), running.environ()

    def revive(self) -> bool:
        """Start it again if it has died; whether it had."""
        if self.process.poll() is None:
            return False
        self.process = subprocess.Popen(
            self.command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            # As Ray starts it: the kernel ends it with this process, however that comes.
            preexec_fn=set_kill_on_parent_death_linux,
        )
        return True


def main(folder: Path, port: int, num_cpus: float, num_gpus: float) -> None:
    """Run a head until told to stop."""
    os.umask(0o077)
    leave: list[int] = []
    _end_leftovers(folder)
    temp_dir = private_dir(folder.parent)
    params = RayParams(
        node_ip_address=LOOPBACK,
        # A port of its own choice would be another one after a restart.
        gcs_server_port=_free_port(),
        # The usual one may be another Ray's, and then no job would ever start.
        dashboard_agent_listen_port=_free_port(),
        num_cpus=int(num_cpus),
        num_gpus=int(num_gpus),
        object_store_memory=_OBJECT_STORE_BYTES,
        temp_dir=str(temp_dir),
        include_log_monitor=False,
        no_monitor=True,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=port,
    )
    head = Node(params, head=True, shutdown_at_exit=False, spawn_reaper=True)
    # Where Ray's job service looks: without it jobs go to any Ray that this machine has.
    write_ray_address(head.gcs_address, str(temp_dir))
    for number in _ENDS_WITH_SIGNAL:
        signal.signal(number, lambda number, _frame: leave.append(number))
    aside = folder / f"{ADDRESS_FILE}.new"
    aside.write_text(json.dumps({"address": head.gcs_address, "temp_dir": str(temp_dir)}))
    aside.rename(folder / ADDRESS_FILE)
    print(f"Ray {head.gcs_address}, session {head.session_name}")
    parts = {
        name: Part(head.all_processes[name][0].process) for name in ("gcs_server", "dashboard")
    }
    raylet = head.all_processes["raylet"][0].process
    while not leave and raylet.poll() is None and _is_on_record(folder):
        for name, part in parts.items():
            if part.revive():
                print(f"the {name} had died; started again as process {part.process.pid}")
        time.sleep(_LOOK_EVERY_S)
    _end(head, parts, temp_dir)
    (folder / ADDRESS_FILE).unlink(missing_ok=True)


def _end(head: Any, parts: dict[str, Part], temp_dir: Path) -> None:
    """End every process of the head; those of the jobs are its raylet's, and go with it."""
    family = psutil.Process().children(recursive=True)
    head.kill_all_processes(check_alive=False, allow_graceful=False)
    for part in parts.values():
        with suppress(ProcessLookupError):
            part.process.kill()
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    shutil.rmtree(temp_dir, ignore_errors=True)


def _end_leftovers(folder: Path) -> None:
    """End what an earlier head left: while it lives, what Ray remembers cannot be opened."""
    earlier = head_address(folder)
    if earlier is None:
        return
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(earlier.temp_dir in word for word in process.cmdline()):
                process.kill()
                process.wait(5.0)
    shutil.rmtree(earlier.temp_dir, ignore_errors=True)
    (folder / ADDRESS_FILE).unlink(missing_ok=True)


def _is_on_record(folder: Path) -> bool:
    try:
        return f'"pid": {os.getpid()}' in (folder / "server.json").read_text()
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
