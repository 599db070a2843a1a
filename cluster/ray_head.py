"""A Ray head on this machine that outlives the command that started it: for the queue.

It has the dashboard, through which jobs are submitted; it listens on loopback and wants a token;
its control service keeps what it knows in RocksDB, and is started again when it dies.
"""

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from cluster.home import Home
from cluster.local import SETTINGS
from cluster.services import Service

ADDRESS_FILE = "address.json"
_TOKEN_FILE = "token"
STOP_WAIT_S = 30
"""Seconds between the request to leave and the kill, for a last checkpoint."""


@dataclass(frozen=True)
class HeadAddress:
    """Where a head is: for drivers, and its temporary files."""

    address: str
    temp_dir: str


def head_service(home: Home, *, num_cpus: float = 0, num_gpus: float = 0) -> Service:
    """The Ray head of a state folder."""
    environment = home.child_environment()
    for name in [name for name in environment if name.startswith("RAY_AUTH")]:
        del environment[name]
    environment.pop("RAY_ADDRESS", None)
    for name, value in SETTINGS.items():
        environment.setdefault(name, value)
    return Service(
        name="Ray head",
        module="cluster.head_main",
        folder=home.ray,
        health_path="/api/version",
        arguments=[str(num_cpus), str(num_gpus)],
        environment=environment
        | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(home.ray / _TOKEN_FILE),
            "RAY_gcs_storage": "rocksdb",
            "RAY_gcs_storage_path": str(home.ray / "gcs"),
            "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S),
        },
    )


def make_token(home: Home) -> None:
    """Draw the token that every process of the cluster shows, once."""
    home.ray.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        file = os.open(home.ray / _TOKEN_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(file, "w") as stream:
        stream.write(secrets.token_hex(32))


def token_of(home: Home) -> str | None:
    """The token of the head of this state folder."""
    try:
        return (home.ray / _TOKEN_FILE).read_text().strip()
    except OSError:
        return None


def head_address(folder: Path) -> HeadAddress | None:
    """What the head wrote down about itself, once it is up."""
    try:
        return HeadAddress(**json.loads((folder / ADDRESS_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None
