"""A Ray session for one command: a private one on this machine, or a cluster that runs already."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.errors import ClusterError

_MAX_TEMP_DIR = 40  # characters: Ray adds 65 for its sockets, and Unix allows 107
_OBJECT_STORE_BYTES = 128 << 20  # nothing of ours goes through the object store

# Set before Ray is imported; Ray reads them once. What the user has set stays.
_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # 2 s by default, and worker loss waits for it
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    "RAY_worker_niceness": "0",  # 15 by default: workers starve beside anything else
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextmanager
def ray_session(
    *,
    address: str | None,
    num_cpus: int,
    num_gpus: int,
    state_dir: Path,
    log_to_driver: bool = False,
) -> Iterator[None]:
    """Connect to `address`, or start a private Ray on the loopback interface and stop it again.

    Raises:
        ClusterError: Ray does not answer at `address`, or could not start.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    temp_dir = None if address else _private_dir(state_dir)
    if temp_dir is not None:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    import ray

    try:
        if temp_dir is None:
            ray.init(address=address, log_to_driver=log_to_driver, logging_level="warning")
        else:
            ray.init(
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                log_to_driver=log_to_driver,
                logging_level="warning",
                _node_ip_address="127.0.0.1",
                _temp_dir=str(temp_dir),
            )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        place = address or "a private Ray on this machine"
        raise ClusterError(
            f"cannot reach {place}: {error}. "
            + ("Check RAY_ADDRESS, or unset it to run here." if address else "See its logs.")
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
        if temp_dir is not None:
            shutil.rmtree(temp_dir, ignore_errors=True)


def _private_dir(state_dir: Path) -> Path:
    """A folder for the sockets and logs of one session, short enough for Unix sockets."""
    if len(str(state_dir / "ray-12345678")) <= _MAX_TEMP_DIR:
        state_dir.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="ray-", dir=state_dir))
    return Path(tempfile.mkdtemp(prefix="gpt2cls-ray-"))
