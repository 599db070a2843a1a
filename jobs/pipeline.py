"""One pipeline: its stages one after the other, each done once for the same settings and inputs.

Every stage works in a folder of its own below the pipeline's, so that a stage that trains can go
on from its checkpoint; what a stage makes is moved to its address in the cache, where later
stages and later pipelines find it.
"""

import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from cluster.home import Surroundings
from gpt2cls.data.write import written_aside
from gpt2cls.errors import RequestError
from jobs.attempt import (
    Attempt,
    Stopwatch,
    Tell,
    new_job,
    params_of,
    reason_of,
    run_work,
)
from jobs.backbones import PINS_FILE, pinned
from jobs.errors import JobFailed, JobStopped
from jobs.job_folder import RESOLVED_FILE
from jobs.pipeline_document import (
    DOCUMENT,
    STAGES_DIR,
    new_document,
    read_document,
    run_id_of,
    stage_dir,
    with_run_ids,
    write_document,
)
from jobs.provenance import run_tags
from jobs.spec import AnyStageJob, FinetuneJob, PipelineJob, PretrainJob, dump
from jobs.spec_uses import PredictJob
from jobs.spool import write_json
from jobs.stage_condition import decide
from jobs.stage_store import RESULT, Made, address_of, find, forget, keep
from jobs.stage_work import MADE_DIR, StageTask, files_of, task_of, with_paths

ADDRESS_FILE = "address"


def run_pipeline(
    text: str, job: PipelineJob, base_dir: Path, surroundings: Surroundings, console: Console
) -> dict[str, Any]:
    """Run a pipeline to its end; the document of `gpt2cls run --json`.

    Raises:
        JobFailed, JobStopped: a stage failed, or was stopped; the record says so.
    """
    job_id = new_job(text, job, base_dir, surroundings)
    return attempt_pipeline(job_id, job, surroundings, console)


def attempt_pipeline(
    job_id: str,
    job: PipelineJob,
    surroundings: Surroundings,
    console: Console,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Begin a pipeline that is written down, or go on with it."""
    document = run_work(
        job_id,
        job,
        lambda attempt: Pipeline(attempt, job).run(),
        surroundings=surroundings,
        console=console,
        ray=None,
        watch=Stopwatch(),
        tell=tell,
    )
    job_dir = surroundings.home.job_dir(job_id)
    return document | {"stages": with_run_ids(job_dir, document["stages"])}


class Pipeline:
    """One attempt at a pipeline."""

    def __init__(self, attempt: Attempt, job: PipelineJob) -> None:
        self.attempt, self.job = attempt, job
        self.cache_dir = attempt.surroundings.home.cache
        self.stages = read_document(attempt.dir) or new_document(job)
        self.made: dict[str, Made] = {}

    def run(self) -> dict[str, Any]:
        """All stages, in an order in which each finds what it needs; the pipeline's document."""
        started_s = time.monotonic()
        try:
            with stopped_by_signal():
                for number, stage in enumerate(self.stages, 1):
                    self._run_stage(number, stage)
        finally:
            self.attempt.record.artifact(self.attempt.dir / DOCUMENT)
        document = {
            "job_id": self.attempt.job_id,
            "stages": self.stages,
            "seconds": {"total": round(time.monotonic() - started_s, 2)},
        }
        write_json(self.attempt.dir / RESULT, document)
        return document

    def _run_stage(self, number: int, stage: dict[str, Any]) -> None:
        name, log = stage["stage"], self.attempt.log
        if stage["state"] == "FINISHED" and self._is_done(stage):
            log.say(f"stage {name}: done in an earlier attempt")
            return
        log.say(f"stage {number} of {len(self.stages)}: {name} ({stage['kind']})")
        if self._is_skipped(stage):
            return
        started_s = time.monotonic()
        self._note(stage, state="RUNNING", reason=None, reused=False)
        try:
            made = self._make(stage)
        except BaseException as error:
            is_stop = isinstance(error, JobStopped | KeyboardInterrupt)
            self._note(
                stage,
                state="KILLED" if is_stop else "FAILED",
                reason=reason_of(error),
                seconds=_since(started_s),
            )
            raise _of_stage(name, error) from error
        self.made[name] = made
        self._note(
            stage,
            state="FINISHED",
            job=made.about["job_id"],
            metrics=made.about["metrics"],
            output=str(made.output) if made.output else None,
            seconds=_since(started_s),
        )
        metrics = {f"{name}/{key}": value for key, value in stage["metrics"].items()}
        self.attempt.record.metrics(metrics, step=number)
        how = f"reused, made by {stage['job']}" if stage["reused"] else "done"
        log.say(f"stage {name}: {how} ({stage['seconds']:.1f} s)")

    def _is_skipped(self, stage: dict[str, Any]) -> bool:
        """Whether a stage need not run; what stands for its result is then taken for it."""
        said = self.job.stages[stage["stage"]]
        if said.when is None:
            return False
        measured = self.made[said.when.stage]
        try:
            decision = decide(said.when, measured.about["kind"], measured.result)
        except JobFailed as error:
            self._note(stage, state="FAILED", reason=str(error))
            raise _of_stage(stage["stage"], error) from error
        self._note(stage, condition=decision.words)
        self.attempt.log.say(f"stage {stage['stage']}: {decision.words}")
        if decision.holds:
            return False
        stands_in = self.made[said.otherwise] if said.otherwise else None
        if stands_in is not None:
            self.made[stage["stage"]] = stands_in
        instead = f"; {said.otherwise} stands for it" if said.otherwise else ""
        self._note(
            stage,
            state="SKIPPED",
            reason=decision.words + instead,
            output=str(stands_in.output) if stands_in and stands_in.output else None,
        )
        return True

    def _is_done(self, stage: dict[str, Any]) -> bool:
        """Whether what an earlier attempt made is still as it was."""
        made = self._find(stage["address"], stage["stage"])
        if made is None:
            return False
        self.made[stage["stage"]] = made
        self.attempt.record.follow(stage_dir(self.attempt.dir, stage["stage"]))
        return True

    def _find(self, address: str, name: str) -> Made | None:
        made, fault = find(self.cache_dir, address)
        if fault:
            self.attempt.log.say(f"stage {name}: {fault}; it is made again")
        return made

    def _make(self, stage: dict[str, Any]) -> Made:
        """What a stage makes, found or made now."""
        name, attempt = stage["stage"], self.attempt
        said = self.job.stages[name]
        base_dir = attempt.base_dir / said.folder
        folder = stage_dir(attempt.dir, name)
        own = self._pinned(said.job, folder)
        job = with_paths(own, self.made)
        task = task_of(job, base_dir, attempt.surroundings)
        # A stage that was skipped, and for which none stands, has made nothing.
        needs = [need for need in self.job.inputs[name] if need in self.made]
        parents = {need: self.made[need].about["address"] for need in needs}
        address = address_of(task.settings, task.content, parents)
        self._note(stage, address=address)
        made = self._find(address, name)
        if made is not None and (why := task.why_gone(made.result)):
            attempt.log.say(f"stage {name}: {why}; it is made again")
            forget(made)
            made = None
        if made is None:
            made = self._work(stage, own, task, folder)
        else:
            self._note(stage, reused=made.about["job_id"] != attempt.job_id)
            self._record_reuse(stage, own, made, folder)
        write_json(folder / RESULT, made.result)
        if isinstance(job, PredictJob):
            for path, output in files_of(job).items():
                _put(made.folder / path, base_dir / output)
        return made

    def _pinned(self, job: AnyStageJob, folder: Path) -> AnyStageJob:
        """The job with versions for aliases: those that they meant when the stage was begun."""
        if not isinstance(job, FinetuneJob | PretrainJob):
            return job
        folder.mkdir(parents=True, exist_ok=True)
        return pinned(job, self.attempt.surroundings, folder)

    def _work(self, stage: dict[str, Any], job: AnyStageJob, task: StageTask, folder: Path) -> Made:
        name, attempt, address = stage["stage"], self.attempt, stage["address"]
        _make_ready(folder, address)
        write_json(folder / RESOLVED_FILE, dump(job))
        record = attempt.record.part(folder, job_id=child_id(attempt.job_id, name), run_name=name)
        status = "FAILED"
        try:
            record.params(params_of(job))
            record.tags(run_tags() | self._tags(stage))
            record.artifact(folder / RESOLVED_FILE)
            inner = replace(
                attempt,
                base_dir=attempt.base_dir / self.job.stages[name].folder,
                record=record,
                watch=Stopwatch(),
                part=f"{STAGES_DIR}/{name}",
            )
            started_s = time.monotonic()
            document = task.work(inner)
            about = {
                "stage": name,
                "kind": stage["kind"],
                "job_id": attempt.job_id,
                "metrics": task.metrics_of(document),
                "output": task.output,
                "seconds": _since(started_s),
            }
            made = keep(self.cache_dir, address, folder / MADE_DIR, about, document)
            status = "FINISHED"
        except (JobStopped, KeyboardInterrupt):
            status = "KILLED"
            raise
        finally:
            record.end(status)
            attempt.record.follow(folder)
        return made

    def _record_reuse(
        self, stage: dict[str, Any], job: AnyStageJob, made: Made, folder: Path
    ) -> None:
        """A run that says what was made elsewhere, and where."""
        spool = self.attempt.record.child(
            folder, job_id=child_id(self.attempt.job_id, stage["stage"]), run_name=stage["stage"]
        )
        spool.params(params_of(job))
        spool.tags(self._tags(stage) | {"gpt2cls.reused_from": self._origin(made)})
        spool.metrics(made.about["metrics"], step=0)
        spool.status("FINISHED")
        spool.close()

    def _origin(self, made: Made) -> str:
        """The run in which something was made; its job, where that has none or is gone."""
        job_id = str(made.about["job_id"])
        folder = self.attempt.surroundings.home.job_dir(job_id)
        return run_id_of(stage_dir(folder, made.about["stage"])) or job_id

    def _tags(self, stage: dict[str, Any]) -> dict[str, str]:
        return {
            "gpt2cls.pipeline_id": self.attempt.job_id,
            "gpt2cls.stage": stage["stage"],
            "gpt2cls.address": stage["address"],
        }

    def _note(self, stage: dict[str, Any], **values: Any) -> None:
        stage |= values
        write_document(self.attempt.dir, self.stages)


def child_id(job_id: str, stage: str) -> str:
    """By which the run of a stage is found again."""
    return f"{job_id}/{stage}"


def _make_ready(folder: Path, address: str) -> None:
    """A folder in which a stage begins, or goes on if it has begun with the very same inputs."""
    begun = folder / ADDRESS_FILE
    if folder.exists() and not (begun.exists() and begun.read_text() == address):
        for path in folder.iterdir():
            if path.name not in ("record", PINS_FILE):  # the run stays the same, and so do models
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    made = folder / MADE_DIR
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    begun.write_text(address)


def _put(made: Path, output: Path) -> None:
    """Bring a file to where the job file wants it; later changes to it are nobody's concern."""
    with written_aside(output) as aside:
        shutil.copyfile(made, aside)


def _of_stage(name: str, error: BaseException) -> BaseException:
    """The fault with the stage's name; one of a request, too, was found while the job ran."""
    if isinstance(error, JobFailed | RequestError):
        return JobFailed(f"stage {name}: {error}")
    if isinstance(error, JobStopped):
        return JobStopped(f"stage {name}: {error}")
    return error


def _since(started_s: float) -> float:
    return round(time.monotonic() - started_s, 2)


@contextmanager
def stopped_by_signal() -> Iterator[None]:
    """SIGINT and SIGTERM raise where the main thread is; a stage that trains has its own way."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.default_int_handler)  # a second one does not wait
        raise JobStopped(f"stopped by {signal.Signals(number).name}")

    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
