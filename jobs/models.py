"""What MODEL means on the command line, and how it becomes a folder.

`models:/name@alias`, `models:/name/3`, `runs:/<id>`, or a folder. Nothing else: no other scheme is
ever opened, so a model cannot be fetched from an address that a request brings along.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from cluster.home import Surroundings
from cluster.services import Server
from cluster.tracking_server import ensure_server, wait_ready
from gpt2cls.errors import RequestError
from gpt2cls.pretrained import LANGUAGE_FORMAT, OUR_FORMAT
from jobs.tracking import NotOnServer, RefusedByServer, connect, patiently, sorted_faults

if TYPE_CHECKING:
    from mlflow import MlflowClient

PACKAGED_FOLDER = "artifacts/model"
"""Where the model folder lies inside a packaged model."""

MODEL_ID_TAG = "gpt2cls.model_id"
"""On a registered version: which packaged model it is."""

CONTENT_TAG = "gpt2cls.model_sha256"
"""On a packaged model and on a version: the checksum of the page that has those of its files."""

_NAME = r"(?P<name>[A-Za-z0-9_][A-Za-z0-9_.-]{0,254})"
_ALIAS = re.compile(rf"models:/{_NAME}@(?P<alias>[A-Za-z0-9_-]{{1,255}})")
_VERSION = re.compile(rf"models:/{_NAME}/(?P<version>[1-9][0-9]{{0,8}})")
_LOGGED = re.compile(r"models:/(?P<model_id>m-[0-9a-f]{32})")
_RUN = re.compile(r"runs:/(?P<run_id>[0-9a-f]{32})(/model)?")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_ALLOWED = "models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID, or a folder"


@dataclass(frozen=True)
class ModelReference:
    """A MODEL that is well formed; whether it exists is another question."""

    text: str
    folder: Path | None = None
    name: str | None = None
    alias: str | None = None
    version: int | None = None
    model_id: str | None = None
    run_id: str | None = None


def parse_model(text: str, *, base_dir: Path) -> ModelReference:
    """Read a MODEL.

    Raises:
        RequestError: it is none of the four kinds.
    """
    for pattern in (_ALIAS, _VERSION, _LOGGED, _RUN):
        if match := pattern.fullmatch(text):
            found: dict[str, Any] = match.groupdict()
            if "version" in found:
                found["version"] = int(found["version"])
            return ModelReference(text, **found)
    if _SCHEME.match(text) or not text or "\0" in text:
        raise RequestError(f"model {text!r}: not a model that can be used; give {_ALLOWED}")
    folder = base_dir / Path(text).expanduser()
    if not folder.is_dir():
        raise RequestError(f"model {text!r}: there is no folder {folder}; give {_ALLOWED}")
    return ModelReference(text, folder=folder)


def open_registry(surroundings: Surroundings) -> "MlflowClient":
    """A client of the server that holds the models; the embedded one is started if it must be.

    Raises:
        RequestError: nothing was ever recorded here, so there is no model either.
        TrackingError: the server does not start.
    """
    if surroundings.tracking_uri:
        return connect(surroundings.tracking_uri)
    home = surroundings.home
    if not (home.mlflow / "mlflow.db").exists():
        raise RequestError(f"no model is registered in {home.root}; `gpt2cls run JOB` makes one")
    server: Server = ensure_server(home)
    wait_ready(home, server)
    return connect(server.uri)


def model_folder(text: str, surroundings: Surroundings, *, base_dir: Path) -> Path:
    """The local folder of a MODEL, fetched once and kept in the cache.

    Raises:
        RequestError: there is no such model, or it was not made by this program.
    """
    reference = parse_model(text, base_dir=base_dir)
    if reference.folder is not None:
        return reference.folder
    client = open_registry(surroundings)
    model_id = logged_model_id(client, reference)
    return patiently(lambda: _fetched(client, text, model_id, surroundings.home.models_cache))


def logged_model_id(client: "MlflowClient", reference: ModelReference) -> str:
    """The id of the packaged model that a reference means now."""
    if reference.model_id:
        return reference.model_id
    if reference.run_id:
        return _model_of_run(client, reference)
    model_id = find_version(client, reference).tags.get(MODEL_ID_TAG)
    if not model_id:
        raise RequestError(f"model {reference.text!r}: it was not packaged by this program")
    return str(model_id)


def find_version(client: "MlflowClient", reference: ModelReference) -> Any:
    """The registered version that a reference with a name means."""
    try:
        with sorted_faults():
            if reference.alias:
                return client.get_model_version_by_alias(reference.name, reference.alias)
            return client.get_model_version(reference.name, str(reference.version))
    except (NotOnServer, RefusedByServer) as error:  # an alias that is not there is `refused`
        raise RequestError(
            f"model {reference.text!r}: not in the registry; "
            f"`gpt2cls models {reference.name}` lists its versions and aliases"
        ) from error


def packaged_of_run(client: "MlflowClient", run_id: str) -> list[Any]:
    """The packaged models of a run that are complete, the newest first."""
    experiment_id = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'")
    ready = [model for model in found if str(model.status) == "READY"]
    return sorted(ready, key=lambda model: -model.creation_timestamp)


def _model_of_run(client: "MlflowClient", reference: ModelReference) -> str:
    try:
        with sorted_faults():
            found = packaged_of_run(client, str(reference.run_id))
    except NotOnServer as error:
        raise RequestError(f"model {reference.text!r}: there is no such run") from error
    if not found:
        raise RequestError(f"model {reference.text!r}: this run has packaged no model")
    return str(found[0].model_id)


def _fetched(client: "MlflowClient", text: str, model_id: str, cache: Path) -> Path:
    """A packaged model never changes, so a folder under its id is right for ever."""
    folder = cache / model_id
    if folder.is_dir():
        return folder
    from mlflow.artifacts import download_artifacts

    cache.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=cache, prefix=".") as aside:
        try:
            with sorted_faults():
                location = client.get_logged_model(model_id).artifact_location
                fetched = download_artifacts(
                    artifact_uri=f"{location}/{PACKAGED_FOLDER}",
                    dst_path=aside,
                    tracking_uri=client.tracking_uri,
                )
        except NotOnServer as error:
            raise RequestError(f"model {text!r}: it is not on the server any more") from error
        if not any((Path(fetched) / page).is_file() for page in (OUR_FORMAT, LANGUAGE_FORMAT)):
            raise RequestError(f"model {text!r}: it was not packaged by this program")
        try:
            Path(fetched).rename(folder)
        except OSError:
            if not folder.is_dir():  # else another command was faster
                raise
    return folder
