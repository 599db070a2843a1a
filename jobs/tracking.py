"""A client of the MLflow server with time limits of our own, and the run of a job.

MLflow is imported inside functions: that takes two seconds, which belong to the thread that
records, not to a command that only checks its input.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from cluster.errors import TrackingError
from jobs.masking import mask

if TYPE_CHECKING:
    from mlflow import MlflowClient

_T = TypeVar("_T")
JOB_TAG = "gpt2cls.job_id"
PARENT_TAG = "mlflow.parentRunId"
"""By which MLflow shows a run under another one."""

# MLflow's own: 120 s a try and 7 tries, that is minutes during which nothing else is delivered.
# No second try below us: to ask again for a run or a version that was made would make another.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output is the result's
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_MODEL_CATALOG_URI": "",
    "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",  # else each model logged runs pip
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_IS_DELETED = "must be in the 'active' state"
_REFUSED = frozenset(
    {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE", "RESOURCE_LIMIT_EXCEEDED"}
)


class RefusedByServer(TrackingError):
    """The server answered that it will never take this."""


class RunDeleted(RefusedByServer):
    """Somebody deleted the run; it is left so."""


class NotOnServer(TrackingError):
    """The server answers, and knows no such run, experiment, model or version."""


class AlreadyOnServer(TrackingError):
    """Something of this name is there already."""


class ServerAway(TrackingError):
    """No usable answer; the same may succeed later."""


def connect(uri: str) -> "MlflowClient":
    """A client of the server at `uri`; asks it nothing yet."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def sorted_faults() -> Iterator[None]:
    """Turn MLflow's one exception into what a caller can do about it."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    try:
        yield
    except RequestException as error:
        raise ServerAway(mask(f"the MLflow server gave no answer: {error}")) from error
    except MlflowException as error:
        text = mask(str(error).split("\n")[0])
        if "HTTPConnectionPool" in text or "HTTPSConnectionPool" in text:
            text = "no answer from " + text.removeprefix("API request to ").split(" ")[0]
        family = RunDeleted if _IS_DELETED in text else _family(str(error.error_code))
        raise family(f"MLflow: {text}") from error


def patiently(act: Callable[[], _T], *, num_tries: int = 4, pause_s: float = 1.0) -> _T:
    """Do what may be done twice again while the server gives no answer."""
    for _ in range(num_tries - 1):
        try:
            return act()
        except ServerAway:
            time.sleep(pause_s)
    return act()


def _family(code: str) -> type[TrackingError]:
    if code in _REFUSED:
        return RefusedByServer
    if code == "RESOURCE_DOES_NOT_EXIST":
        return NotOnServer
    return AlreadyOnServer if code == "RESOURCE_ALREADY_EXISTS" else ServerAway


def find_or_create_run(
    client: "MlflowClient",
    *,
    experiment: str,
    job_id: str,
    run_name: str,
    start_ms: int,
    parent_run_id: str | None = None,
) -> str:
    """The id of the one run of a job, however often and by whomever this was asked before."""
    tags = {JOB_TAG: job_id} | ({PARENT_TAG: parent_run_id} if parent_run_id else {})
    with sorted_faults():
        experiment_id = _find_or_create_experiment(client, experiment)
        runs = find_runs(client, experiment_id, job_id)
        if not runs:
            client.create_run(experiment_id, start_time=start_ms, tags=tags, run_name=run_name)
            # Looked up, not taken from the answer: another process may have been faster.
            runs = find_runs(client, experiment_id, job_id)
        return runs[0]


def experiment_of(client: "MlflowClient", run_id: str) -> str:
    """The id of the experiment that a run is in."""
    with sorted_faults():
        return str(client.get_run(run_id).info.experiment_id)


def find_runs(client: "MlflowClient", experiment_id: str, job_id: str) -> list[str]:
    """The ids of the runs with the tag of this job, the one to keep first.

    Order: by start, then by id, so that all who look agree.
    """
    runs = client.search_runs([experiment_id], f"tags.`{JOB_TAG}` = '{job_id}'")
    return [
        run.info.run_id
        for run in sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))
    ]


def drop_extra_runs(client: "MlflowClient", run_id: str, job_id: str) -> None:
    """Delete runs of this job that a lost answer left behind beside the one in use."""
    with sorted_faults():
        experiment_id = client.get_run(run_id).info.experiment_id
        for other in find_runs(client, experiment_id, job_id):
            if other != run_id:
                client.delete_run(other)


def _find_or_create_experiment(client: "MlflowClient", name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            with sorted_faults():
                return str(client.create_experiment(name))
        except AlreadyOnServer:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)
