"""Registered models that a job builds on, in `model.backbone` and `model.tokenizer`.

An alias moves, so it is turned into the version that it means before the job is written down: a
job that goes on builds on the same weights.
"""

import json
from pathlib import Path
from typing import Any, TypeVar

from cluster.home import Surroundings
from jobs.names import is_registered
from jobs.spec import FinetuneJob, PretrainJob, SweepJob
from jobs.spool import write_json

PINS_FILE = "models.json"
_FIELDS = ("backbone", "tokenizer")

J = TypeVar("J", bound=FinetuneJob | PretrainJob | SweepJob)


def pinned(job: J, surroundings: Surroundings, job_dir: Path | None = None) -> J:
    """The job with versions in the place of aliases; the same ones whenever it is asked again.

    Args:
        job: as it was given.
        surroundings: what the environment says.
        job_dir: remembers what an alias meant; None: the job is not written down yet.

    Raises:
        RequestError: there is no such model.
    """
    asked = {value for field in _FIELDS if _is_alias(value := getattr(job.model, field))}
    if not asked:
        return job
    pins: dict[str, str] = {}
    if job_dir is not None and (job_dir / PINS_FILE).exists():
        pins = json.loads((job_dir / PINS_FILE).read_text())
    if new := asked - set(pins):
        pins |= {address: _version_of(address, surroundings) for address in sorted(new)}
        if job_dir is not None:
            write_json(job_dir / PINS_FILE, pins)
    return _with_models(job, pins)


def fetched(job: J, surroundings: Surroundings, base_dir: Path) -> J:
    """The job with folders on this machine in the place of registered models.

    Raises:
        RequestError: there is no such model, or it was not made by this program.
    """
    asked = {value for field in _FIELDS if is_registered(value := getattr(job.model, field))}
    if not asked:
        return job
    from jobs.models import model_folder

    folders = {a: str(model_folder(a, surroundings, base_dir=base_dir)) for a in sorted(asked)}
    return _with_models(job, folders)


def _is_alias(value: Any) -> bool:
    return is_registered(value) and "@" in value


def _version_of(address: str, surroundings: Surroundings) -> str:
    from jobs.models import find_version, open_registry, parse_model

    reference = parse_model(address, base_dir=Path())
    version = find_version(open_registry(surroundings), reference)
    return f"models:/{reference.name}/{version.version}"


def _with_models(job: J, names: dict[str, str]) -> J:
    found = {field: getattr(job.model, field) for field in _FIELDS}
    new = {k: names.get(v, v) if isinstance(v, str) else v for k, v in found.items()}
    model = job.model.model_copy(update=new)
    return job.model_copy(update={"model": model})  # type: ignore[return-value]
