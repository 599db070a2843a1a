"""Changes to the registry: register once, judge, promote, roll back.

MLflow moves an alias without asking what it was, so of two that promote the last one would win
unseen. Here one lock of the state folder serialises them, each says what it saw before it
waited for the lock, and every move is written down.
"""

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import TrackingError
from cluster.home import Surroundings
from cluster.tracking_server import ensure_tracking
from gpt2cls.errors import RequestError
from jobs.errors import JobFailed
from jobs.gate import CHALLENGER, CHAMPION, former_champion, judge
from jobs.masking import mask
from jobs.models import CONTENT_TAG, MODEL_ID_TAG, find_version, open_registry, parse_model
from jobs.store import Promotion, Store
from jobs.tracking import (
    JOB_TAG,
    AlreadyOnServer,
    connect,
    patiently,
    sorted_faults,
)
from jobs.versions import DATA_TAG, METRIC_TAG, SPLIT_TAG, champion, number, standing

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from jobs.record import Record

_SERVER_WAIT_S = 120.0


class PromotionConflict(RequestError):
    """The champion changed between the wish to promote and its turn."""


@dataclass(frozen=True)
class Registered:
    """Where a model ended up."""

    name: str
    version: int
    alias: str | None
    reason: str


def register(
    surroundings: Surroundings,
    *,
    tracking_uri: str,
    name: str,
    model_uri: str,
    run_id: str,
    job_id: str,
    metrics: Mapping[str, float],
    split: str,
    data_fingerprint: str,
    content: str | None = None,
    gate_metric: str = "accuracy",
    minimum: float | None = None,
    beats_champion: bool = True,
) -> Registered:
    """Register a packaged model that was tried out, and give it the alias it earns.

    Asked again for the same packaged model it finds the version that is there. `content` is by
    what `version_with` finds it again.
    """
    client = connect(tracking_uri)
    tags = {
        MODEL_ID_TAG: model_uri.removeprefix("models:/"),
        JOB_TAG: job_id,
        SPLIT_TAG: split,
        DATA_TAG: data_fingerprint,
        **{f"{METRIC_TAG}{key}": repr(float(value)) for key, value in metrics.items()},
        **({} if content is None else {CONTENT_TAG: content}),
    }
    with _locked(surroundings):
        version = patiently(lambda: _ensure_version(client, name, model_uri, run_id, tags))
        rival = champion(client, name)
        verdict = judge(
            standing(version),
            standing(rival) if rival is not None else None,
            metric=gate_metric,
            minimum=minimum,
            beats_champion=beats_champion,
        )
        new = int(version.version)
        if verdict.alias == CHAMPION and number(rival) != new:
            _move_champion(client, surroundings, name, number(rival), new, "gate", verdict.reason)
        elif verdict.alias == CHALLENGER:
            patiently(lambda: _set_alias(client, name, CHALLENGER, new))
    return Registered(name, new, verdict.alias, verdict.reason)


def version_with(client: "MlflowClient", name: str, content: str) -> Any | None:
    """The version of a name that holds this very model, whichever job made it; the oldest."""
    with sorted_faults():
        found = client.search_model_versions(f"name = '{name}'")
    same = [version for version in found if version.tags.get(CONTENT_TAG) == content]
    return min(same, key=lambda version: int(version.version), default=None)


def run_on_server(record: "Record", surroundings: Surroundings) -> tuple[str, str]:
    """The id of the job's run and the server that has it, once both are there.

    Raises:
        JobFailed: the server or the run is not there in time.
    """
    try:
        uri = ensure_tracking(surroundings)
    except TrackingError as error:
        raise JobFailed(f"the model was trained but cannot be registered: {error}") from error
    run_id = record.wait_run_id(_SERVER_WAIT_S)
    if run_id is None:
        raise JobFailed(
            f"the model was trained but cannot be registered: MLflow at {mask(uri)} gave no answer "
            f"for {_SERVER_WAIT_S:.0f} s"
        )
    return run_id, uri


def promote(surroundings: Surroundings, name: str, version: int) -> Registered:
    """Make a version the champion by hand.

    Raises:
        RequestError: there is no such version, or it is the champion already.
        PromotionConflict: another promotion came between.
    """
    seen = _moves(surroundings, name)  # before anything slow: this is what the user knew
    client = open_registry(surroundings)
    with _locked(surroundings):
        _refuse_if_moved(surroundings, name, seen)
        wanted = find_version(client, _reference(name, version))
        old = number(champion(client, name))
        if old == version:
            raise RequestError(f"model {name}: version {version} is the champion already")
        reason = "by hand"
        _move_champion(client, surroundings, name, old, version, "promote", reason)
        if CHALLENGER in wanted.aliases:
            with sorted_faults():
                client.delete_registered_model_alias(name, CHALLENGER)
    was = f"version {old} was champion" if old else "there was no champion"
    return Registered(name, version, CHAMPION, was)


def rollback(surroundings: Surroundings, name: str) -> Registered:
    """Give the alias back to the champion before the present one.

    Raises:
        RequestError: no former champion is known.
        PromotionConflict: another promotion came between.
    """
    seen = _moves(surroundings, name)
    client = open_registry(surroundings)
    with _locked(surroundings):
        _refuse_if_moved(surroundings, name, seen)
        old = number(champion(client, name))
        former = former_champion([(move.action, move.new_version) for move in reversed(seen)])
        if former is None or not seen or seen[0].new_version != old:
            raise RequestError(
                f"model {name}: no champion before version {old} is known here; "
                f"`gpt2cls models promote {name} VERSION` names one"
            )
        find_version(client, _reference(name, former))
        _move_champion(client, surroundings, name, old, former, "rollback", "by hand")
    return Registered(name, former, CHAMPION, f"version {old} was champion")


def _ensure_version(
    client: "MlflowClient", name: str, model_uri: str, run_id: str, tags: dict[str, str]
) -> Any:
    """The version of this packaged model; made only if a look-up does not find it."""
    model_id = tags[MODEL_ID_TAG]
    with sorted_faults():
        _ensure_name(client, name)
        for version in client.search_model_versions(f"name = '{name}'"):
            if version.tags.get(MODEL_ID_TAG) == model_id:
                return version
        return client.create_model_version(
            name, model_uri, run_id, tags=tags, model_id=model_id, await_creation_for=0
        )


def _ensure_name(client: "MlflowClient", name: str) -> None:
    try:
        with sorted_faults():
            client.create_registered_model(name)
    except AlreadyOnServer:
        return


def _set_alias(client: "MlflowClient", name: str, alias: str, version: int) -> None:
    with sorted_faults():
        client.set_registered_model_alias(name, alias, str(version))


def _move_champion(
    client: "MlflowClient",
    surroundings: Surroundings,
    name: str,
    old: int | None,
    new: int,
    action: str,
    reason: str,
) -> None:
    patiently(lambda: _set_alias(client, name, CHAMPION, new))
    Store(surroundings.home).add_promotion(
        registry=registry_name(surroundings),
        model=name,
        action=action,
        old=old,
        new=new,
        reason=reason,
    )


def _refuse_if_moved(surroundings: Surroundings, name: str, seen: list[Promotion]) -> None:
    now = _moves(surroundings, name)
    if len(now) != len(seen):
        last = now[0]
        raise PromotionConflict(
            f"model {name}: {last.by_whom} made version {last.new_version} the champion "
            f"(was {last.old_version}) while this command waited; nothing was changed. "
            f"Look at `gpt2cls models {name}` and decide again."
        )


def _moves(surroundings: Surroundings, name: str) -> list[Promotion]:
    return Store(surroundings.home).promotions(registry=registry_name(surroundings), model=name)


def registry_name(surroundings: Surroundings) -> str:
    """The embedded server changes its port and stays the same registry."""
    return mask(surroundings.tracking_uri) if surroundings.tracking_uri else "embedded"


def _reference(name: str, version: int) -> Any:
    return parse_model(f"models:/{name}/{version}", base_dir=Path())


@contextmanager
def _locked(surroundings: Surroundings) -> Iterator[None]:
    path = surroundings.home.registry_lock
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
