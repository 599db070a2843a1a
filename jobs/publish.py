"""From a measured model to a version in the registry: gate, package, reload, compare, register."""

from typing import TYPE_CHECKING, Any

from cluster.home import Surroundings
from gpt2cls.data.forms import columns_of_rows
from jobs.joblog import JobLog
from jobs.outcome import Outcome, numbers
from jobs.package import content_of, requirements, store_package, verify_in_fresh_process
from jobs.record import Record
from jobs.registry import register, run_on_server
from jobs.spec import FinetuneJob
from jobs.spec_uses import EnsembleJob
from jobs.tracking import connect

if TYPE_CHECKING:
    import pandas as pd

_SIGNATURE_ROWS = 3


def publish(
    job: FinetuneJob | EnsembleJob,
    job_id: str,
    outcome: Outcome,
    data_fingerprint: str,
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
    run_id, uri = run_on_server(record, surroundings)
    frame = _frame(outcome)
    example = frame.head(_SIGNATURE_ROWS)
    model_uri = store_package(
        connect(uri),
        run_id=run_id,
        model_folder=outcome.model_folder,
        example=example,
        example_output=outcome.predictor.predict_frame(example),
        pip_requirements=requirements(is_generic=outcome.predictor.needs_transformers),
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
        data_fingerprint=data_fingerprint,
        content=content_of(outcome.model_folder),
        gate_metric=gate.metric,
        minimum=gate.min,
        beats_champion=gate.beats is not None,
    )
    log.say(f"{name} version {registered.version}: {registered.alias} ({registered.reason})")
    return {
        "model": {"name": name, "version": registered.version, "alias": registered.alias},
        "gate": {"passed": True, "reason": registered.reason},
    }


def _frame(outcome: Outcome) -> "pd.DataFrame":
    import pandas as pd

    names, rows = outcome.predictor.text_columns, outcome.example
    pairs = None if rows.pairs is None else rows.pairs.to_pylist()
    columns = columns_of_rows(rows.texts.to_pylist(), pairs, len(names))
    return pd.DataFrame(dict(zip(names, columns, strict=True)))
