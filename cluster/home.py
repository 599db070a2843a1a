"""Where everything of one user lies on disk, and what the environment says.

The only file that reads environment variables. Nothing here creates a folder: whoever writes a
file makes its folder, so that a refused request leaves no trace.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from cluster.errors import ClusterError

_JOB_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,127}")


@dataclass(frozen=True)
class Home:
    """Every path under the state folder."""

    root: Path
    database_url: str | None = field(default=None, repr=False)
    """Of the job store; None: a file in the state folder. May hold a password."""

    @property
    def jobs_db(self) -> Path:
        return self.root / "jobs.db"

    @property
    def jobs(self) -> Path:
        return self.root / "jobs"

    def job_dir(self, job_id: str) -> Path:
        if not _JOB_ID.fullmatch(job_id):
            raise ValueError(f"job id {job_id!r}: ids hold lower-case letters, digits and dashes")
        return self.jobs / job_id

    @property
    def mlflow(self) -> Path:
        return self.root / "mlflow"

    @property
    def ray(self) -> Path:
        return self.root / "ray"

    @property
    def controller(self) -> Path:
        return self.root / "controller"

    @property
    def registry_lock(self) -> Path:
        return self.root / "registry.lock"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def models_cache(self) -> Path:
        return self.cache / "models"

    def child_environment(self) -> dict[str, str]:
        """The environment for a process of ours: as this one's, and naming this state folder."""
        return dict(os.environ) | {"GPT2CLS_HOME": str(self.root)}


@dataclass(frozen=True)
class Surroundings:
    """What the environment says, read once at the edge."""

    home: Home
    tracking_uri: str | None
    """An MLflow server that somebody else runs; None: the embedded one serves."""
    ray_address: str | None
    data_dir: Path | None
    """What `${GPT2CLS_DATA}` stands for in a job file."""
    ray_token: str | None = field(default=None, repr=False)
    """What the cluster at `ray_address` wants to be shown."""
    controller_uri: str | None = None
    """A controller that somebody else runs; None: that of the state folder."""
    controller_token: str | None = field(default=None, repr=False)
    """What to show to that controller."""


def from_environment(environ: Mapping[str, str] | None = None) -> Surroundings:
    """Read the variables that the environment may hold for us.

    Raises:
        ClusterError: MLFLOW_TRACKING_URI or GPT2CLS_CONTROLLER is not the address of a server.
    """
    values = os.environ if environ is None else environ
    root = Path(values.get("GPT2CLS_HOME") or "~/.gpt2cls").expanduser()
    data_dir = values.get("GPT2CLS_DATA")
    return Surroundings(
        # not resolve(): processes of ours are found by the very text in their environment
        home=Home(root.absolute(), values.get("GPT2CLS_DATABASE") or None),
        tracking_uri=_server_address(values.get("MLFLOW_TRACKING_URI")),
        ray_address=values.get("RAY_ADDRESS") or None,
        data_dir=Path(data_dir).expanduser().absolute() if data_dir else None,
        ray_token=_ray_token(values),
        controller_uri=_controller_address(values.get("GPT2CLS_CONTROLLER")),
        controller_token=values.get("GPT2CLS_TOKEN") or None,
    )


def refuse_if_unwritable(home: Home) -> None:
    """Say no before a job is begun whose state could not be kept.

    Raises:
        ClusterError: the state folder cannot be made, or written to.
    """
    there = next(path for path in (home.root, *home.root.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "cannot be written to" if there.is_dir() else "is not a folder"
        raise ClusterError(
            f"GPT2CLS_HOME = {home.root}: {there} {why}; name another folder for the state of jobs"
        )


def _ray_token(values: Mapping[str, str]) -> str | None:
    """As Ray itself finds it: in RAY_AUTH_TOKEN, or in the file RAY_AUTH_TOKEN_PATH."""
    if token := values.get("RAY_AUTH_TOKEN"):
        return token
    try:
        return Path(values["RAY_AUTH_TOKEN_PATH"]).read_text().strip()
    except (KeyError, OSError):
        return None


def _controller_address(uri: str | None) -> str | None:
    if not uri:
        return None
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc:
        return uri.rstrip("/")
    raise ClusterError(
        "GPT2CLS_CONTROLLER: write http://HOST:PORT or https://HOST; the token goes into "
        "GPT2CLS_TOKEN"
    )


def _server_address(uri: str | None) -> str | None:
    """Only a server takes several writers at once; files and databases are never opened here."""
    if not uri:
        return None
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https") and parts.hostname:
        return uri.rstrip("/")
    shown = uri if "@" not in uri else f"{parts.scheme}://..."
    raise ClusterError(
        f"MLFLOW_TRACKING_URI = {shown}: only the address of an MLflow server is taken "
        "(http://... or https://...), because a file or a database has one writer at a time. "
        "Start one with `mlflow server` and name it, or unset the variable: "
        "a local server is then started for you."
    )
