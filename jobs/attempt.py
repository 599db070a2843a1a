"""One process working on one job that trains: what finetune jobs and sweeps have in common.

Every stage can be repeated: data and tokens are cached by content, training goes on from its
newest checkpoint, and what MLflow and the registry have already is not made again. So resuming
a job is running it once more under its old id.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.home import Surroundings
from cluster.local import RayPlace
from gpt2cls.data.check import check
from gpt2cls.data.encode import open_tokens
from gpt2cls.data.objects import with_local_files
from gpt2cls.data.prepare import Prepared, prepare
from gpt2cls.data.tokenizer import TextTokenizer
from gpt2cls.model.head_rules import check_head
from gpt2cls.training.payload import EVENTS_FILE, RankPayload
from jobs.backbones import fetched
from jobs.data_tables import report_tables
from jobs.errors import JobFailed, JobStopped
from jobs.inputs import tokenizer_of, tokens_of
from jobs.job_folder import JOB_FILE, RESOLVED_FILE, base_dir_of, write_job_folder
from jobs.joblog import JobLog
from jobs.provenance import run_tags
from jobs.record import Record, run_page
from jobs.spec import AnyJob, FinetuneJob, PipelineJob, PretrainJob, SweepJob, dump
from jobs.spec_uses import DeployJob, EnsembleJob
from jobs.spool import write_json
from jobs.states import State
from jobs.store import Store
from jobs.tables import beside, metrics_table
from jobs.training import last_event
from jobs.trial_job import trial_job

_RECORD_WAIT_S = 60.0

Tell = Callable[[State, BaseException | None, str | None], object]
"""Takes the state in which an attempt ended, why, and the id of its MLflow run."""


@dataclass
class Stopwatch:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started_s = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(time.monotonic() - started_s, 2)


@dataclass(frozen=True)
class Ready:
    """The data of a job, and a tokenizer for it."""

    prepared: Prepared
    tokenizer: TextTokenizer


def read_data(job: FinetuneJob | SweepJob, base_dir: Path, surroundings: Surroundings) -> Ready:
    """Read and divide the data of a job; creates nothing but cache files.

    Raises:
        RequestError: the data or the model cannot be used.
    """
    data = with_local_files(job.data, surroundings.home.cache)
    prepared = prepare(data, base_dir=base_dir, seed=job.train.seed)
    for one in _at_its_ends(job):
        check_head(one.model, prepared.task, label_smoothing=one.train.label_smoothing)
    local = fetched(job, surroundings, base_dir)
    return Ready(prepared, tokenizer_of(local, prepared, surroundings, base_dir))


def _at_its_ends(job: FinetuneJob | SweepJob) -> list[FinetuneJob]:
    """The job, or those at the ends of what a sweep varies."""
    if isinstance(job, FinetuneJob):
        return [job]
    return [trial_job(job, point) for point in job.search_space.extremes(job.fixed)]


def new_job(text: str, job: AnyJob, base_dir: Path, surroundings: Surroundings) -> str:
    """Write a new job down, owned by this process; its id."""
    store = Store(surroundings.home)
    job_id = store.create(name=job.name, kind=job.kind, spec=dump(job)).id
    job_dir = surroundings.home.job_dir(job_id)
    job_dir.mkdir(parents=True)
    write_job_folder(job_dir, text=text, spec=dump(job), base_dir=str(base_dir))
    store.start(job_id)
    return job_id


@dataclass(frozen=True)
class Attempt:
    """What every stage of a job needs to know."""

    job_id: str
    base_dir: Path
    surroundings: Surroundings
    console: Console
    ray: RayPlace | None
    record: Record
    log: JobLog
    watch: Stopwatch
    part: str = ""
    """Folder of a part of the job, below the job's own, which has this work for its own."""

    @property
    def dir(self) -> Path:
        return self.surroundings.home.job_dir(self.job_id) / self.part


def run_attempt(
    job_id: str,
    job: FinetuneJob | SweepJob,
    work: Callable[[Attempt, Ready], dict[str, Any]],
    *,
    surroundings: Surroundings,
    console: Console,
    ray: RayPlace | None,
    watch: Stopwatch,
    ready: Ready | None = None,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """As `run_work`, for a job that trains; `ready`: its data, if it was read already."""

    def with_data(attempt: Attempt) -> dict[str, Any]:
        return work(attempt, ready or read_data(job, attempt.base_dir, surroundings))

    return run_work(
        job_id,
        job,
        with_data,
        surroundings=surroundings,
        console=console,
        ray=ray,
        watch=watch,
        tell=tell,
    )


def run_work(
    job_id: str,
    job: FinetuneJob | PretrainJob | SweepJob | DeployJob | EnsembleJob | PipelineJob,
    work: Callable[[Attempt], dict[str, Any]],
    *,
    surroundings: Surroundings,
    console: Console,
    ray: RayPlace | None,
    watch: Stopwatch,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Do the work of a job; whatever happens, `tell` and the record end with the truth.

    Args:
        job_id: of a job that is written down, and whose folder is there.
        job: what it says.
        work: does it; the document of its end.
        surroundings: what the environment says.
        console: where progress is shown.
        ray: where the ranks run; None: in this process.
        watch: seconds so far.
        tell: is told how the attempt ended; None: the store is.
    """
    job_dir = surroundings.home.job_dir(job_id)
    log = JobLog(job_dir / "job.log", console)
    tell = tell or partial(_tell_store, Store(surroundings.home), job_id)
    log.say(f"job {job_id}")
    record = _open_record(job_id, job, surroundings, log)
    base_dir = base_dir_of(job_dir)
    attempt = Attempt(job_id, base_dir, surroundings, console, ray, record, log, watch)
    try:
        document = work(attempt)
    except BaseException as error:
        _end_early(attempt, tell, error)
        raise
    record.artifact(log.path)
    tell(State.SUCCEEDED, None, record.run_id)
    if not record.finish("FINISHED", _RECORD_WAIT_S):
        log.say(f"MLflow did not take everything; the rest waits in {job_dir / 'record'}")
    page = run_page(job_dir, surroundings)
    return document | {"run_id": record.run_id, "status": "FINISHED", "run_page": page}


def _open_record(job_id: str, job: AnyJob, surroundings: Surroundings, log: JobLog) -> Record:
    job_dir = surroundings.home.job_dir(job_id)
    record = Record(
        job_dir,
        surroundings,
        job_id=job_id,
        experiment=job.name,
        log=log.say,
        starts_server=surroundings.tracking_uri is None,
    )
    record.params(params_of(job))
    record.tags(run_tags())
    record.artifact(job_dir / JOB_FILE)
    record.artifact(job_dir / RESOLVED_FILE)
    return record


def _tell_store(
    store: Store, job_id: str, state: State, error: BaseException | None, run_id: str | None
) -> None:
    if run_id:
        store.set_run_id(job_id, run_id)
    store.finish(job_id, state, reason_of(error))


def reason_of(error: BaseException | None) -> str:
    """Why an attempt ended, in words; empty where it succeeded."""
    return "" if error is None else (str(error) or type(error).__name__)[:2000]


def _end_early(attempt: Attempt, tell: Tell, error: BaseException) -> None:
    """Tell the truth about an attempt that did not succeed."""
    job_id, log, record = attempt.job_id, attempt.log, attempt.record
    is_stop = isinstance(error, JobStopped | KeyboardInterrupt)
    how = "stopped" if is_stop else "failed"
    log.write(f"job {job_id}: {how}: {reason_of(error)}")
    tell(State.STOPPED if is_stop else State.FAILED, error, record.run_id)
    record.artifact(log.path)
    record.finish("KILLED" if is_stop else "FAILED", _RECORD_WAIT_S / 4)
    if isinstance(error, JobFailed | JobStopped):
        log.say(f"`gpt2cls resume {job_id}` goes on from what is done")


def encode_and_check(
    attempt: Attempt, job: FinetuneJob | SweepJob, ready: Ready
) -> dict[str, Path]:
    """Tokens of every split, and the data report on screen, on disk and in the record."""
    with attempt.watch.stage("tokens"):
        tokens = tokens_of(job, ready.prepared, ready.tokenizer, attempt.surroundings)
        lengths = {name: open_tokens(path).full_lengths for name, path in tokens.items()}
        report = check(ready.prepared, full_lengths=lengths, max_length=job.data.max_length)
    write_json(attempt.dir / "data_report.json", report.model_dump(mode="json"))
    attempt.log.show(report_tables(report))
    attempt.record.tags({"gpt2cls.data_fingerprint": ready.prepared.fingerprint})
    attempt.record.artifact(attempt.dir / "data_report.json")
    return tokens


def record_page(attempt: Attempt) -> None:
    """Write the page of a job whose result is there, and give it to its run."""
    from jobs.page import write_report

    attempt.record.artifact(write_report(attempt.dir, attempt.dir / "report.html"))


def measure_and_register(
    attempt: Attempt, job: FinetuneJob, ready: Ready, payload: RankPayload
) -> dict[str, Any]:
    """Measure the best weights of a finished training, and register them if the job asks for it."""
    # What measures and registers is imported now: nobody waits for a first step any more.
    from jobs.outcome import measure
    from jobs.publish import publish

    prepared, record, log = ready.prepared, attempt.record, attempt.log
    with attempt.watch.stage("test"):
        outcome = measure(prepared, ready.tokenizer, payload, job, attempt.dir)
    rows = f"{outcome.table['rows']:,} {outcome.split} rows"
    log.show(metrics_table(outcome.table, beside(outcome.document()), f"{job.name}: {rows}"))
    record.metrics(outcome.points(), step=outcome.step)
    document = {"job_id": attempt.job_id, **outcome.document()}
    with attempt.watch.stage("register"):
        document |= publish(
            job,
            attempt.job_id,
            outcome,
            prepared.fingerprint,
            record,
            attempt.surroundings,
            log,
        )
    document["parameters"] = _parameters(attempt.dir / EVENTS_FILE)
    document["seconds"] = attempt.watch.seconds
    write_json(attempt.dir / "result.json", document)
    for figure in outcome.figures:
        record.artifact(figure, "figures")
    return document


def _parameters(events: Path) -> dict[str, int]:
    """How many numbers the model is made of, by part, and how many of them learned."""
    start = last_event(events, "start") or {}
    counts = {"total": "parameters", "trained": "trained_parameters"}
    named = {name: start[key] for name, key in counts.items() if key in start}
    return {**named, **start.get("parameters_of", {})}


def params_of(job: AnyJob) -> dict[str, Any]:
    """What a run says of its job; the settings of a stage are in the stage's own run."""
    if isinstance(job, PipelineJob):
        return {"kind": job.kind, "name": job.name, "stages": [*job.needs]}
    return _flat(dump(job))


def _flat(block: dict[str, Any], before: str = "") -> dict[str, Any]:
    """{"train": {"lr": 0.1}} as {"train.lr": 0.1}."""
    flat: dict[str, Any] = {}
    for name, value in block.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{before}{name}.")
        else:
            flat[before + name] = value
    return flat
