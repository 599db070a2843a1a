"""What the registry holds: names, versions, what was measured of them. Changes nothing."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.home import Surroundings
from gpt2cls.errors import RequestError
from jobs.gate import CHAMPION, Standing
from jobs.models import find_version, open_registry, parse_model
from jobs.tracking import JOB_TAG, NotOnServer, RefusedByServer, sorted_faults

if TYPE_CHECKING:
    from mlflow import MlflowClient

# On a version, so that they stay when its run is deleted.
METRIC_TAG = "gpt2cls.metric."
SPLIT_TAG = "gpt2cls.split"
DATA_TAG = "gpt2cls.data_fingerprint"


def list_models(surroundings: Surroundings) -> list[dict[str, Any]]:
    """All registered models: `{name, num_versions, champion}`."""
    client = open_registry(surroundings)
    with sorted_faults():
        names = sorted(model.name for model in client.search_registered_models())
        return [_summary(client, name) for name in names]


def model_versions(surroundings: Surroundings, name: str) -> dict[str, Any]:
    """`{name, versions: [{version, run_id, job_id, aliases, metrics, split}]}`, newest first.

    Raises:
        RequestError: there is no such model.
    """
    client = open_registry(surroundings)
    aliases = _aliases(client, name)
    rows = [
        {
            "version": int(version.version),
            "run_id": version.run_id,
            "job_id": version.tags.get(JOB_TAG),
            "created_unix_s": version.creation_timestamp / 1000,
            "aliases": sorted(a for a, v in aliases.items() if v == int(version.version)),
            "metrics": dict(standing(version).metrics),
            "split": standing(version).split,
        }
        for version in _versions(client, name)
    ]
    return {"name": name, "versions": rows}


def compare(surroundings: Surroundings, a: str, b: str) -> dict[str, Any]:
    """Two registered versions side by side: `{a, b, metrics: {key: {a, b, difference}}, note}`."""
    client = open_registry(surroundings)
    both = []
    for text in (a, b):
        reference = parse_model(text, base_dir=Path.cwd())
        if reference.name is None:
            raise RequestError(f"model {text!r}: only registered versions can be compared")
        both.append(standing(find_version(client, reference)))
    first, second = both
    keys = [key for key in first.metrics if key in second.metrics]
    return {
        "a": {"model": a, "version": first.version, "split": first.split},
        "b": {"model": b, "version": second.version, "split": second.split},
        "metrics": {
            key: {
                "a": first.metrics[key],
                "b": second.metrics[key],
                "difference": second.metrics[key] - first.metrics[key],
            }
            for key in keys
        },
        "same_data": first.data_fingerprint == second.data_fingerprint
        and first.split == second.split,
    }


def champion(client: "MlflowClient", name: str) -> Any | None:
    try:
        with sorted_faults():
            return client.get_model_version_by_alias(name, CHAMPION)
    except (NotOnServer, RefusedByServer):
        return None


def number(version: Any | None) -> int | None:
    return int(version.version) if version is not None else None


def standing(version: Any) -> Standing:
    tags = version.tags
    metrics = {
        key.removeprefix(METRIC_TAG): float(value)
        for key, value in tags.items()
        if key.startswith(METRIC_TAG)
    }
    split, data = tags.get(SPLIT_TAG, ""), tags.get(DATA_TAG, "")
    return Standing(int(version.version), metrics, split, data)


def _versions(client: "MlflowClient", name: str) -> list[Any]:
    with sorted_faults():
        found = client.search_model_versions(f"name = '{name}'")
    return sorted(found, key=lambda version: -int(version.version))


def _aliases(client: "MlflowClient", name: str) -> dict[str, int]:
    if not name or "'" in name:
        raise RequestError(f"model {name!r}: no such name in the registry")
    try:
        with sorted_faults():
            found = client.get_registered_model(name).aliases
    except NotOnServer as error:
        raise RequestError(
            f"model {name!r}: no such name in the registry; `gpt2cls models` lists them"
        ) from error
    return {alias: int(version) for alias, version in found.items()}


def _summary(client: "MlflowClient", name: str) -> dict[str, Any]:
    return {
        "name": name,
        "num_versions": len(_versions(client, name)),
        "champion": _aliases(client, name).get(CHAMPION),
    }
