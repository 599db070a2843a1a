"""A Ray session for one command: a private one on this machine, or a cluster that runs already.

A private one is a process of its own (`cluster.ray_main`): it starts while the data is still
read, and can be ended at any moment of its start.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cluster.errors import ClusterError

ADDRESS_FILE = "address.json"
# Not 127.0.0.1, which Ray takes to mean the address that other machines see. Linux alone has more
# loopback addresses than that one; elsewhere Ray keeps 127.0.0.1.
LOOPBACK = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"

_MAX_TEMP_DIR = 40  # characters: Ray adds 65 for its sockets, and Unix allows 107
_HEAD_LOG = "head.log"
_START_S = 60.0
_END_S = 5.0

# Set before Ray is imported; Ray reads them once. What the user has set stays.
SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # 2 s by default, and worker loss waits for it
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    "RAY_worker_niceness": "0",  # 15 by default: workers starve beside anything else
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # standard output is the result's
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the record is ours
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial may end before it has measured anything
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # snapshots of what our journal has
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",  # a stopped trial gives everything back first
    "TUNE_WARN_THRESHOLD_S": "10",
}
# One machine: it goes as a whole or not at all, so nobody has to watch for nodes that will go.
_PRIVATE_SETTINGS = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


@dataclass
class RayPlace:
    """Where a command's Ray is, or is about to be."""

    address: str | None
    """Of a cluster that runs already."""
    temp_dir: Path | None = None
    """Of a private one."""
    head: subprocess.Popen[bytes] | None = None

    def wait_address(self) -> str:
        """The address of Ray, as soon as it has one.

        Raises:
            ClusterError: the private Ray did not come up.
        """
        if self.address is not None:
            return self.address
        assert self.temp_dir is not None and self.head is not None
        deadline = time.monotonic() + _START_S
        while not (self.temp_dir / ADDRESS_FILE).exists():
            if self.head.poll() is not None or time.monotonic() > deadline:
                raise ClusterError(
                    f"cannot start a private Ray on this machine: {_last_line(self.temp_dir)}"
                )
            time.sleep(0.02)
        return str(json.loads((self.temp_dir / ADDRESS_FILE).read_text()))

    def end(self, *, at_once: bool) -> None:
        """Stop what was started, if it has not been; nothing of it is left running."""
        if self.head is None or self.temp_dir is None:
            return
        if not at_once and self.head.stdin is not None:
            self.head.stdin.close()  # it ends its processes, then itself
            try:
                self.head.wait(_END_S)
            except subprocess.TimeoutExpired:
                at_once = True
        if at_once:
            _kill_with_family(self.head)
        if self.head.stdin is not None:
            self.head.stdin.close()
        shutil.rmtree(self.temp_dir, ignore_errors=True)
        self.head = None


@contextmanager
def ray_ahead(
    *, address: str | None, num_cpus: int, num_gpus: int, state_dir: Path
) -> Iterator[RayPlace]:
    """Have a private Ray started in the background; with an `address`, nothing is started."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    place = RayPlace(address)
    if address is None:
        for name, value in _PRIVATE_SETTINGS.items():
            os.environ.setdefault(name, value)
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = _private_token()
        temp_dir = private_dir(state_dir)
        place = RayPlace(None, temp_dir, _start_head(temp_dir, num_cpus, num_gpus))
    try:
        yield place
    finally:
        place.end(at_once=True)


@contextmanager
def ray_session(place: RayPlace, *, log_to_driver: bool = False) -> Iterator[None]:
    """Connect to Ray; afterwards disconnect, and end a private one.

    Raises:
        ClusterError: Ray does not answer, or could not start.
    """
    import ray

    named = place.wait_address()
    options = {} if place.address else {"_node_ip_address": LOOPBACK}
    try:
        ray.init(address=named, log_to_driver=log_to_driver, logging_level="warning", **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        place_name = place.address or "a private Ray on this machine"
        raise ClusterError(
            f"cannot reach {place_name}: {error}. "
            + ("Check RAY_ADDRESS, or unset it to run here." if place.address else "See its logs.")
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
        place.end(at_once=False)


@cache
def _private_token() -> str:
    """The same for every private Ray of this process: Ray reads it once, and never again."""
    return secrets.token_hex(32)


def _start_head(temp_dir: Path, num_cpus: int, num_gpus: int) -> subprocess.Popen[bytes]:
    # The head may run in any folder; let it find this package whence this process has it.
    source = str(Path(__file__).resolve().parent.parent)
    paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "cluster.ray_main"]
    with (temp_dir / _HEAD_LOG).open("wb") as log:
        return subprocess.Popen(
            [*command, str(temp_dir), str(num_cpus), str(num_gpus)],
            stdin=subprocess.PIPE,  # closed when this process is gone, however it went
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,  # Ctrl-C is for this process; the head hears of it from here
        )


def _kill_with_family(head: subprocess.Popen[bytes]) -> None:
    import psutil

    try:
        family = psutil.Process(head.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    head.kill()  # and the kernel what it started itself, but not the workers, who take seconds
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    head.wait()


def _last_line(temp_dir: Path) -> str:
    try:
        lines = (temp_dir / _HEAD_LOG).read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1] if lines else f"it did not answer within {_START_S:.0f} s"


def private_dir(state_dir: Path) -> Path:
    """A folder for the sockets and logs of one session, short enough for Unix sockets.

    A state folder that is not there yet is not made for it: the job may still be refused.
    """
    if state_dir.is_dir() and len(str(state_dir / "ray-12345678")) <= _MAX_TEMP_DIR:
        return Path(tempfile.mkdtemp(prefix="ray-", dir=state_dir))
    return Path(tempfile.mkdtemp(prefix="gpt2cls-ray-"))
