"""One deploy job: a model is measured, packaged, tried out as it will be served, and registered."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cluster.home import Surroundings
from gpt2cls.data.forms import columns_of_rows
from gpt2cls.data.tasks import Split
from gpt2cls.errors import RequestError
from gpt2cls.predict import Predictor
from jobs.attempt import Attempt, Stopwatch, Tell, new_job, run_work
from jobs.errors import JobFailed
from jobs.evaluate import fingerprint_for, measured, rows_for
from jobs.models import MODEL_ID_TAG, find_version, model_folder, open_registry, parse_model
from jobs.outcome import numbers
from jobs.package import content_of, requirements, store_package, verify_in_fresh_process
from jobs.registry import Registered, register, run_on_server, version_with
from jobs.serve import difference_when_served
from jobs.spec_uses import DeployJob
from jobs.spool import write_json
from jobs.tables import metrics_table
from jobs.tracking import connect, patiently

if TYPE_CHECKING:
    import pandas as pd

_EXAMPLE_ROWS = 64
_SIGNATURE_ROWS = 3


def run_deploy(
    text: str, job: DeployJob, base_dir: Path, surroundings: Surroundings, console: Console
) -> dict[str, Any]:
    """Run a job to its end; the document of `gpt2cls run --json`.

    Raises:
        RequestError: the model or the data cannot be used.
        JobFailed: it is not good enough, or does not work; it is not registered.
    """
    job_id = new_job(text, job, base_dir, surroundings)
    return attempt_deploy(job_id, job, surroundings, console)


def attempt_deploy(
    job_id: str,
    job: DeployJob,
    surroundings: Surroundings,
    console: Console,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Begin a job that is written down, or go on with it."""
    return run_work(
        job_id,
        job,
        lambda attempt: deploy(attempt, job),
        surroundings=surroundings,
        console=console,
        ray=None,
        watch=Stopwatch(),
        tell=tell,
    )


def deploy(attempt: Attempt, job: DeployJob) -> dict[str, Any]:
    """The whole work of a deploy job, in the folder of the attempt."""
    folder = model_folder(job.model, attempt.surroundings, base_dir=attempt.base_dir)
    predictor = Predictor.load(folder)
    split = rows_for(predictor.info, job.data, attempt.base_dir)
    with attempt.watch.stage("test"):
        table = measured(predictor, split)
    attempt.log.show(
        metrics_table(table, {}, f"{job.name}: {len(split):,} rows of {job.data.test}")
    )
    attempt.record.metrics({f"test/{k}": v for k, v in numbers(table).items()}, step=0)
    _refuse_below(job, table)
    with attempt.watch.stage("register"):
        registered, difference = _register(attempt, job, folder, predictor, split, table)
    name, version = registered.name, registered.version
    attempt.log.say(f"{name} version {version}: {registered.alias} ({registered.reason})")
    document = {
        "job_id": attempt.job_id,
        "test": table,
        "model": {"name": name, "version": version, "alias": registered.alias},
        "gate": {"passed": True, "reason": registered.reason},
        "served": {"largest_difference": difference},
        "seconds": attempt.watch.seconds,
    }
    write_json(attempt.dir / "result.json", document)
    return document


def why_gone(document: Mapping[str, Any], surroundings: Surroundings) -> str | None:
    """Why the version that a deploy job made is not in the registry any more; None: it is."""
    model = document["model"]
    address = f"models:/{model['name']}/{model['version']}"
    try:
        find_version(open_registry(surroundings), parse_model(address, base_dir=Path()))
    except RequestError as error:
        return str(error)
    return None


def _refuse_below(job: DeployJob, table: Mapping[str, Any]) -> None:
    gate = job.registration.gate
    value = numbers(table).get(gate.metric)
    if value is None:
        raise JobFailed(f"register.gate.metric = {gate.metric}: was not measured; not deployed")
    if gate.min is not None and value < gate.min:
        raise JobFailed(
            f"register.gate: {gate.metric} is {value:.4f} on {job.data.test}, below {gate.min:g}; "
            "not deployed"
        )


def _register(
    attempt: Attempt,
    job: DeployJob,
    folder: Path,
    predictor: Predictor,
    split: Split,
    table: Mapping[str, Any],
) -> tuple[Registered, float]:
    """The version of the model, made where there is none, and how exactly it is served."""
    surroundings, name, gate = attempt.surroundings, job.registration.model, job.registration.gate
    run_id, uri = run_on_server(attempt.record, surroundings)
    client, content = connect(uri), content_of(folder)
    frame = _frame(predictor, split)
    probs_NC = predictor.ask([frame[name].tolist() for name in predictor.text_columns])
    known = patiently(lambda: version_with(client, name, content))
    if known is not None:
        attempt.log.say(f"{name} version {known.version} is this very model already")
        model_uri = f"models:/{known.tags[MODEL_ID_TAG]}"
    else:
        example = frame.head(_SIGNATURE_ROWS)
        model_uri = store_package(
            client,
            run_id=run_id,
            model_folder=folder,
            example=example,
            example_output=predictor.predict_frame(example),
            pip_requirements=requirements(is_generic=predictor.needs_transformers),
        )
        verify_in_fresh_process(
            model_uri,
            tracking_uri=uri,
            frame=frame,
            expected_probs_NC=probs_NC,
            tolerance=predictor.tolerance,
        )
    difference = difference_when_served(
        model_folder(model_uri, surroundings, base_dir=attempt.base_dir),
        frame,
        probs_NC,
        tolerance=predictor.tolerance,
        surroundings=surroundings,
    )
    attempt.log.say(
        f"loaded as it is served: {len(frame)} predictions differ by {difference:.1e} at most"
    )
    registered = register(
        surroundings,
        tracking_uri=uri,
        name=name,
        model_uri=model_uri,
        run_id=run_id,
        job_id=attempt.job_id,
        metrics=numbers(table),
        split="test",
        data_fingerprint=fingerprint_for(predictor.info, split),
        content=content,
        gate_metric=gate.metric,
        minimum=gate.min,
        beats_champion=gate.beats is not None,
    )
    return registered, difference


def _frame(predictor: Predictor, split: Split) -> "pd.DataFrame":
    """The first rows, as a caller would send them."""
    import pandas as pd

    names, texts = predictor.text_columns, split.texts[:_EXAMPLE_ROWS].to_pylist()
    pairs = None if split.pairs is None else split.pairs[:_EXAMPLE_ROWS].to_pylist()
    columns = columns_of_rows(texts, pairs, len(names))
    return pd.DataFrame(dict(zip(names, columns, strict=True)))
