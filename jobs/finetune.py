"""One finetune job, from its job file to a registered model.

Every stage can be repeated: data and tokens are cached by content, training goes on from its
newest checkpoint, and what MLflow and the registry have already is not made again. So resuming
a job is running it once more under its old id.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.home import Surroundings
from cluster.local import RayPlace
from gpt2cls.data.check import check
from gpt2cls.data.encode import open_tokens
from gpt2cls.data.prepare import Prepared, prepare
from gpt2cls.data.tokenizer import TextTokenizer
from jobs.data_tables import report_tables
from jobs.errors import JobFailed, JobStopped
from jobs.inputs import payload_of, tokenizer_of, tokens_of, write_labels
from jobs.joblog import JobLog
from jobs.provenance import run_tags
from jobs.record import Record, run_page
from jobs.spec import FinetuneJob, dump
from jobs.spool import write_json
from jobs.states import State
from jobs.store import Store
from jobs.tables import metrics_table
from jobs.training import ray_for, train

JOB_FILE = "job.yaml"
RESOLVED_FILE = "resolved.json"
ORIGIN_FILE = "origin.json"
_RECORD_WAIT_S = 60.0


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


def run_finetune(
    text: str,
    job: FinetuneJob,
    base_dir: Path,
    surroundings: Surroundings,
    console: Console,
    ray: RayPlace | None,
) -> dict[str, Any]:
    """Run a job to its end; the document of `gpt2cls run --json`.

    Raises:
        RequestError: the data or the model cannot be used; nothing was created.
        JobFailed, JobStopped: the job ended early; its record says so.
    """
    watch = Stopwatch()
    with watch.stage("data"):
        prepared = prepare(job.data, base_dir=base_dir, seed=job.train.seed)
        tokenizer = tokenizer_of(job, prepared, surroundings, base_dir)
    store = Store(surroundings.home)
    job_id = store.create(name=job.name, kind=job.kind, spec=dump(job)).id
    job_dir = surroundings.home.job_dir(job_id)
    job_dir.mkdir(parents=True)
    (job_dir / JOB_FILE).write_text(text, encoding="utf-8")
    write_json(job_dir / RESOLVED_FILE, dump(job))
    write_json(job_dir / ORIGIN_FILE, {"base_dir": str(base_dir)})
    store.start(job_id)
    attempt = Attempt(job_id, job, base_dir, surroundings, store, console, ray, watch)
    return attempt.run(prepared, tokenizer)


def resume_finetune(job_id: str, surroundings: Surroundings, console: Console) -> dict[str, Any]:
    """Go on with a job that was stopped, failed or killed, in the same MLflow run.

    Raises:
        RequestError: there is no such job, or its state does not allow it.
    """
    store = Store(surroundings.home)
    row = store.get(job_id)
    job = FinetuneJob.model_validate(row.spec)
    job_dir = surroundings.home.job_dir(row.id)
    base_dir = Path(json.loads((job_dir / ORIGIN_FILE).read_text())["base_dir"])
    store.start(row.id, by_resume=True)
    with ray_for(job.cluster, surroundings) as ray:
        watch = Stopwatch()
        attempt = Attempt(row.id, job, base_dir, surroundings, store, console, ray, watch)
        return attempt.run()


@dataclass(frozen=True)
class Attempt:
    """One process working on one job."""

    job_id: str
    job: FinetuneJob
    base_dir: Path
    surroundings: Surroundings
    store: Store
    console: Console
    ray: RayPlace | None
    watch: Stopwatch

    @property
    def dir(self) -> Path:
        return self.surroundings.home.job_dir(self.job_id)

    def run(
        self, prepared: Prepared | None = None, tokenizer: TextTokenizer | None = None
    ) -> dict[str, Any]:
        """All stages; whatever happens, the store and the record end with the truth."""
        log = JobLog(self.dir / "job.log", self.console)
        log.say(f"job {self.job_id}")
        record = self._open_record(log)
        try:
            if prepared is None or tokenizer is None:
                prepared = prepare(self.job.data, base_dir=self.base_dir, seed=self.job.train.seed)
                tokenizer = tokenizer_of(self.job, prepared, self.surroundings, self.base_dir)
            document = self._stages(prepared, tokenizer, record, log)
        except BaseException as error:
            self._end_early(error, record, log)
            raise
        record.artifact(log.path)
        if record.run_id:
            self.store.set_run_id(self.job_id, record.run_id)
        self.store.finish(self.job_id, State.SUCCEEDED)
        if not record.finish("FINISHED", _RECORD_WAIT_S):
            log.say(f"MLflow did not take everything; the rest waits in {self.dir / 'record'}")
        page = run_page(self.dir, self.surroundings)
        return document | {"run_id": record.run_id, "status": "FINISHED", "run_page": page}

    def _open_record(self, log: JobLog) -> Record:
        record = Record(
            self.dir,
            self.surroundings,
            job_id=self.job_id,
            experiment=self.job.name,
            log=log.say,
            starts_server=self.surroundings.tracking_uri is None,
        )
        record.params(flat_settings(dump(self.job)))
        record.tags(run_tags())
        record.artifact(self.dir / JOB_FILE)
        record.artifact(self.dir / RESOLVED_FILE)
        return record

    def _stages(
        self, prepared: Prepared, tokenizer: TextTokenizer, record: Record, log: JobLog
    ) -> dict[str, Any]:
        watch = self.watch
        with watch.stage("tokens"):
            tokens = tokens_of(self.job, prepared, tokenizer, self.surroundings)
            payload = payload_of(
                self.job,
                prepared,
                tokenizer,
                tokens,
                write_labels(prepared, self.dir),
                job_dir=self.dir,
                base_dir=self.base_dir,
                cache_dir=self.surroundings.home.cache,
            )
            report = check(
                prepared,
                full_lengths={
                    name: open_tokens(path).full_lengths for name, path in tokens.items()
                },
                max_length=self.job.data.max_length,
            )
        write_json(self.dir / "data_report.json", report.model_dump(mode="json"))
        log.show(report_tables(report))
        record.tags({"gpt2cls.data_fingerprint": prepared.fingerprint})
        record.artifact(self.dir / "data_report.json")
        with watch.stage("train"):
            train(payload, self.job.cluster, self.ray, log)
        # What measures and registers is imported now: nobody waits for a first step any more.
        from jobs.outcome import measure
        from jobs.page import write_report
        from jobs.publish import publish

        with watch.stage("test"):
            outcome = measure(prepared, tokenizer, payload, self.job, self.dir)
        rows = f"{outcome.table['rows']:,} {outcome.split} rows"
        table = metrics_table(outcome.table, outcome.baselines, f"{self.job.name}: {rows}")
        log.show(table)
        record.metrics(outcome.points(), step=outcome.step)
        document = {"job_id": self.job_id, **outcome.document()}
        with watch.stage("register"):
            document |= publish(
                self.job, self.job_id, outcome, prepared, record, self.surroundings, log
            )
        document["seconds"] = watch.seconds
        write_json(self.dir / "result.json", document)
        for figure in outcome.figures:
            record.artifact(figure, "figures")
        record.artifact(write_report(self.dir, self.dir / "report.html"))
        return document

    def _end_early(self, error: BaseException, record: Record, log: JobLog) -> None:
        """Tell the store and the record how an attempt ended that did not succeed."""
        is_stop = isinstance(error, JobStopped | KeyboardInterrupt)
        reason = str(error) or type(error).__name__
        how = "stopped" if is_stop else "failed"
        log.write(f"job {self.job_id}: {how}: {reason}")
        self.store.finish(self.job_id, State.STOPPED if is_stop else State.FAILED, reason[:2000])
        record.artifact(log.path)
        record.finish("KILLED" if is_stop else "FAILED", _RECORD_WAIT_S / 4)
        if not isinstance(error, JobFailed | JobStopped):
            return
        log.say(f"`gpt2cls resume {self.job_id}` goes on from the last checkpoint")


def flat_settings(block: dict[str, Any], before: str = "") -> dict[str, Any]:
    """{"train": {"lr": 0.1}} as {"train.lr": 0.1}."""
    flat: dict[str, Any] = {}
    for name, value in block.items():
        if isinstance(value, dict) and value:
            flat |= flat_settings(value, f"{before}{name}.")
        else:
            flat[before + name] = value
    return flat
