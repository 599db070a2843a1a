"""The process of one attempt at a job of the queue: started by Ray, it works in the job's folder.

Run as `python -m jobs.work JOB_ID NUMBER NUM_LOST`. Values of users come from the job's folder,
never from the command line.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError
from cluster.home import Surroundings, from_environment
from gpt2cls.errors import CheckpointError, NonFiniteLoss, RequestError
from jobs.attempt_files import (
    OtherAttemptError,
    attempt_dir,
    only_attempt,
    read_end,
    say_end,
    say_started,
)
from jobs.attempts import attempt
from jobs.errors import JobFailed, JobStopped, JobUnplaced
from jobs.job_folder import RESOLVED_FILE
from jobs.lifecycle import End
from jobs.logs import captured
from jobs.masking import mask
from jobs.rank_files import ATTEMPTS_FILE
from jobs.spec import KINDS, AnyJob, FinetuneJob, PretrainJob, SweepJob
from jobs.spool import write_json
from jobs.states import State
from jobs.verb import write_crash_log

_CAUSES: tuple[tuple[type[BaseException], str], ...] = (
    (RequestError, "user"),
    (JobStopped, "stopped"),
    (KeyboardInterrupt, "stopped"),
    (ClusterError, "service"),
    (OtherAttemptError, "service"),
    (MemoryError, "memory"),
    (NonFiniteLoss, "job"),
    (CheckpointError, "job"),
    (JobUnplaced, "service"),
    (JobFailed, "job"),
)


def cause_of(error: BaseException) -> str:
    """A word for why an attempt failed, as `jobs.lifecycle` knows it."""
    if "out of memory" in str(error).lower():
        return "memory"
    return next((cause for family, cause in _CAUSES if isinstance(error, family)), "internal")


def num_workers_lost(job_dir: Path) -> int:
    """Workers of this job that Ray Train had to replace so far."""
    attempts = job_dir / ATTEMPTS_FILE
    return len(attempts.read_text().splitlines()) if attempts.exists() else 0


def main(job_id: str, number: int, num_lost: int) -> int:
    """Work on a job until it ends; 0 if it succeeded."""
    surroundings = from_environment()
    job_dir = surroundings.home.job_dir(job_id)
    folder = attempt_dir(job_dir, number)
    with captured(folder):
        if read_end(folder) is not None:
            print("gpt2cls: this attempt was ended before it began", file=sys.stderr)
            return 1
        say_started(folder)
        started_s, lost_before = time.monotonic(), num_workers_lost(job_dir)

        def tell(state: State, error: BaseException | None, _run_id: str | None = None) -> None:
            cause = "succeeded" if error is None else cause_of(error)
            reason = "" if error is None else mask(str(error) or type(error).__name__)[:2000]
            seconds, lost = time.monotonic() - started_s, num_workers_lost(job_dir) - lost_before
            say_end(folder, End(state, cause, reason, seconds, lost))

        try:
            with only_attempt(job_dir):
                document = _kinds(job_dir, num_lost)(job_id, surroundings, tell)
        except BaseException as error:
            is_stop = isinstance(error, JobStopped | KeyboardInterrupt)
            if cause_of(error) == "internal":
                print(f"the traceback is in {write_crash_log(error)}", file=sys.stderr)
            print(f"gpt2cls: {mask(str(error)) or type(error).__name__}", file=sys.stderr)
            tell(State.STOPPED if is_stop else State.FAILED, error)
            return 1
        write_json(job_dir / "result.json", document)
        tell(State.SUCCEEDED, None)
        return 0


_Work = Callable[[str, Surroundings, Any], dict[str, Any]]


def _kinds(job_dir: Path, num_lost: int) -> _Work:
    """What works on the job of a folder."""
    spec = json.loads((job_dir / RESOLVED_FILE).read_text())
    job: AnyJob = KINDS[spec["kind"]].model_validate(spec)
    if isinstance(job, FinetuneJob | PretrainJob | SweepJob) and num_lost:
        left = max(job.cluster.retries - num_lost, 0)
        cluster = job.cluster.model_copy(update={"retries": left})
        job = job.model_copy(update={"cluster": cluster})
    return partial(attempt, job)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
