"""Several classifiers as one: measured beside each of them, packaged and registered as one model.

Source: Howard and Ruder 2018, section 3.3: a classifier on a forward and one on a backward language
model, their probabilities averaged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cluster.home import Surroundings
from gpt2cls.data.tasks import Split
from gpt2cls.errors import RequestError
from gpt2cls.model.folder import ModelInfo, read_info, save_ensemble
from jobs.attempt import Attempt, Stopwatch, Tell, new_job, record_page, run_work
from jobs.evaluate import fingerprint_for, rows_for
from jobs.models import model_folder
from jobs.spec_uses import EnsembleJob
from jobs.spool import write_json
from jobs.tables import metrics_table

if TYPE_CHECKING:
    from jobs.outcome import Outcome


@dataclass(frozen=True)
class Members:
    """The models of a job, and the rows to measure them on."""

    folders: list[Path]
    info: ModelInfo
    """Of the first; the others have the same labels and columns."""
    rows: Split


def run_ensemble(
    text: str, job: EnsembleJob, base_dir: Path, surroundings: Surroundings, console: Console
) -> dict[str, Any]:
    """Run a job to its end; the document of `gpt2cls run --json`.

    Raises:
        RequestError: the models or the data cannot be used, or do not fit each other.
        JobFailed: the package does not reproduce the predictions, or MLflow is away.
    """
    members = read_members(job, base_dir, surroundings)
    job_id = new_job(text, job, base_dir, surroundings)
    return _run(job_id, job, surroundings, console, members, None)


def attempt_ensemble(
    job_id: str,
    job: EnsembleJob,
    surroundings: Surroundings,
    console: Console,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Begin a job that is written down, or begin it again: nothing of it takes long."""
    return _run(job_id, job, surroundings, console, None, tell)


def _run(
    job_id: str,
    job: EnsembleJob,
    surroundings: Surroundings,
    console: Console,
    members: Members | None,
    tell: Tell | None,
) -> dict[str, Any]:
    def work(attempt: Attempt) -> dict[str, Any]:
        found = members or read_members(job, attempt.base_dir, surroundings)
        return measure_and_register(attempt, job, found)

    return run_work(
        job_id,
        job,
        work,
        surroundings=surroundings,
        console=console,
        ray=None,
        watch=Stopwatch(),
        tell=tell,
    )


def read_members(job: EnsembleJob, base_dir: Path, surroundings: Surroundings) -> Members:
    """The models and the rows of a job; creates nothing but cache files.

    Raises:
        RequestError: a model or the data cannot be used, or they do not fit each other.
    """
    folders = [model_folder(model, surroundings, base_dir=base_dir) for model in job.models]
    infos = [read_info(folder) for folder in folders]
    for model, info in zip(job.models[1:], infos[1:], strict=True):
        if (info.task, info.text) != (infos[0].task, infos[0].text):
            raise RequestError(
                f"models: {model} has other labels or columns than {job.models[0]}; models of one "
                "ensemble were trained on the same task"
            )
    return Members(folders, infos[0], rows_for(infos[0], job.data, base_dir))


def measure_and_register(attempt: Attempt, job: EnsembleJob, members: Members) -> dict[str, Any]:
    """Package the members as one model, measure it beside them, register it if the job says so."""
    from jobs.outcome import MODEL_FOLDER
    from jobs.publish import publish

    folder = attempt.dir / MODEL_FOLDER
    save_ensemble(members.folders, folder)
    with attempt.watch.stage("test"):
        outcome = _outcome(members, job.models, folder, attempt.dir)
    title = f"{job.name}: {outcome.table['rows']:,} test rows"
    attempt.log.show(metrics_table(outcome.table, outcome.baselines, title))
    attempt.record.metrics(outcome.points(), step=0)
    with attempt.watch.stage("register"):
        published = publish(
            job,
            attempt.job_id,
            outcome,
            fingerprint_for(members.info, members.rows),
            attempt.record,
            attempt.surroundings,
            attempt.log,
        )
    document = {
        "job_id": attempt.job_id,
        "test": outcome.test,
        "members": outcome.baselines,
        **published,
        "seconds": attempt.watch.seconds,
    }
    write_json(attempt.dir / "result.json", document)
    record_page(attempt)
    return document


def _outcome(members: Members, models: Sequence[str], folder: Path, job_dir: Path) -> "Outcome":
    """The table of the ensemble; in the place of baselines those of its members."""
    from gpt2cls.metrics import evaluate_probabilities
    from gpt2cls.predict import Predictor
    from jobs.outcome import Outcome, example_of

    predictor, rows = Predictor.load(folder), members.rows
    pairs = None if rows.pairs is None else rows.pairs.to_pylist()
    of_each_NC = predictor.of_each(rows.texts.to_pylist(), pairs)
    info = predictor.info

    def table(probs_NC: Any) -> dict[str, Any]:
        return evaluate_probabilities(probs_NC, rows.labels, info.task, info.thresholds)

    example = example_of(rows)
    example_pairs = None if example.pairs is None else example.pairs.to_pylist()
    return Outcome(
        step=0,
        validation={},
        test=table(sum(of_each_NC) / len(of_each_NC)),
        baselines={
            model: table(probs_NC) for model, probs_NC in zip(models, of_each_NC, strict=True)
        },
        model_folder=folder,
        figures=[],
        example=example,
        example_probs_NC=predictor.probabilities(example.texts.to_pylist(), example_pairs),
        predictor=predictor,
    )
