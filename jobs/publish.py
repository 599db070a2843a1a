"""From a measured model to a version in the registry: gate, package, reload, compare, register."""

from typing import TYPE_CHECKING, Any

from cluster.errors import TrackingError
from cluster.home import Surroundings
from cluster.tracking_server import ensure_tracking
from gpt2cls.data.prepare import Prepared
from gpt2cls.model.backbone import AutoBackbone
from jobs.errors import JobFailed
from jobs.joblog import JobLog
from jobs.masking import mask
from jobs.outcome import Outcome, numbers
from jobs.package import requirements, store_package, verify_in_fresh_process
from jobs.record import Record
from jobs.registry import register
from jobs.spec import FinetuneJob
from jobs.tracking import connect

if TYPE_CHECKING:
    import pandas as pd

_SERVER_WAIT_S = 120.0
_SIGNATURE_ROWS = 3


def publish(
    job: FinetuneJob,
    job_id: str,
    outcome: Outcome,
    prepared: Prepared,
    record: Record,
    surroundings: Surroundings,
    log: JobLog,
) -> dict[str, Any]:
    """Register the model if the job asks for it and the gate lets it through.

    Returns:
        `{model: {name, version, alias} | None, gate: {passed, reason} | None}`.

    Raises:
        JobFailed: the package does not reproduce the trainer's predictions, or MLflow is away.
    """
    name, gate = job.registration.model, job.registration.gate
    if name is None:
        return {"model": None, "gate": None}
    value = numbers(outcome.table).get(gate.metric)
    if value is None or (gate.min is not None and value < gate.min):
        shown = "was not measured" if value is None else f"is {value:.4f}, below {gate.min:g}"
        reason = f"register.gate: {outcome.split} {gate.metric} {shown}; not registered"
        log.say(reason)
        return {"model": None, "gate": {"passed": False, "reason": reason}}
    run_id, uri = _run_on_server(record, surroundings)
    frame = _frame(outcome)
    example = frame.head(_SIGNATURE_ROWS)
    model_uri = store_package(
        connect(uri),
        run_id=run_id,
        model_folder=outcome.model_folder,
        example=example,
        example_output=outcome.predictor.predict_frame(example),
        pip_requirements=requirements(
            is_generic=isinstance(outcome.predictor.model.backbone, AutoBackbone)
        ),
    )
    difference = verify_in_fresh_process(
        model_uri,
        tracking_uri=uri,
        frame=frame,
        expected_probs_NC=outcome.example_probs_NC,
        tolerance=outcome.predictor.tolerance,
    )
    log.say(
        f"reloaded in a fresh process: {len(frame)} predictions differ by {difference:.1e} at most"
    )
    registered = register(
        surroundings,
        tracking_uri=uri,
        name=name,
        model_uri=model_uri,
        run_id=run_id,
        job_id=job_id,
        metrics=numbers(outcome.table),
        split=outcome.split,
        data_fingerprint=prepared.fingerprint,
        gate_metric=gate.metric,
        minimum=gate.min,
        beats_champion=gate.beats is not None,
    )
    log.say(f"{name} version {registered.version}: {registered.alias} ({registered.reason})")
    return {
        "model": {"name": name, "version": registered.version, "alias": registered.alias},
        "gate": {"passed": True, "reason": registered.reason},
    }


def _run_on_server(record: Record, surroundings: Surroundings) -> tuple[str, str]:
    """The id of the job's run and the server that has it, once both are there."""
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


def _frame(outcome: Outcome) -> "pd.DataFrame":
    import pandas as pd

    columns = outcome.predictor.text_columns
    texts = [outcome.example.texts, outcome.example.pairs]
    return pd.DataFrame({c: t.to_pylist() for c, t in zip(columns, texts, strict=False)})
