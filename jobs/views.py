"""What is told of jobs: the documents that the command line and the controller give."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.home import Surroundings
from jobs.job_folder import ORIGIN_FILE
from jobs.masking import mask_value
from jobs.queue_store import Attempt, QueueStore
from jobs.states import State
from jobs.store import Job


def row_of(job: Job, why: Mapping[str, str] | None = None) -> dict[str, Any]:
    """One job in a list."""
    waits = (why or {}).get(job.id, "") if job.state in (State.QUEUED, State.RETRYING) else ""
    return {
        "job_id": job.id,
        "name": job.name,
        "kind": job.kind,
        "state": str(job.state),
        "reason": "; ".join(filter(None, [job.reason, waits])),
        "unknown_since_unix_s": job.unseen_since_unix_s,
        "created_unix_s": job.created_unix_s,
        "started_unix_s": job.started_unix_s,
        "ended_unix_s": job.ended_unix_s,
        "run_id": job.run_id,
        "queue": job.queue if job.request is not None else None,
        "user": job.user or None,
        "priority": job.priority,
        "num_attempts": job.num_attempts,
    }


def job_document(
    job: Job, queue: QueueStore, surroundings: Surroundings, why: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Everything about one job."""
    from jobs.record import run_page
    from jobs.spool import Spool

    folder = surroundings.home.job_dir(job.id)
    lost = _read_lines(folder / "attempts.jsonl")
    return row_of(job, why) | {
        "run_id": job.run_id or _run_id(folder),
        "attempts": _attempts(job, queue, lost),
        "events": queue.events(job.id),
        "after": job.after,
        "limits": job.limits,
        "ask": job.ask,
        "origin": job.origin,
        "folder": str(folder),
        "base_dir": job.base_dir or (_read_json(folder / ORIGIN_FILE) or {}).get("base_dir"),
        "spec": mask_value(None, job.spec),
        "run_page": run_page(folder, surroundings),
        "record_lag": Spool(folder).num_points_left(),
        "result": _read_json(folder / "result.json"),
        **_parts_of(job, folder),
    }


def _parts_of(job: Job, folder: Path) -> dict[str, Any]:
    if job.kind != "pipeline":
        return {}
    from jobs.pipeline_document import stages_of

    return {"stages": stages_of(folder, job.spec, job.state)}


def _attempts(job: Job, queue: QueueStore, lost: list[Any]) -> list[dict[str, Any]]:
    """One entry per process that worked on the job, the last with the workers it lost."""
    if job.request is not None:
        attempts = [_attempt(attempt, job) for attempt in queue.attempts(job.id)]
    else:
        attempts = [{"attempt": i + 1} for i in range(job.num_attempts)]
        if attempts:
            attempts[-1]["state"] = str(job.state)
    if attempts:
        attempts[-1]["lost"] = lost
    return attempts


def _attempt(attempt: Attempt, job: Job) -> dict[str, Any]:
    is_live = attempt.ended_unix_s is None
    return {
        "attempt": attempt.number,
        "state": str(job.state) if is_live else "ENDED",
        "cause": attempt.cause,
        "reason": attempt.reason,
        "node": attempt.node,
        "submission_id": attempt.submission_id,
        "started_unix_s": attempt.started_unix_s,
        "ended_unix_s": attempt.ended_unix_s,
        "seconds": round(attempt.seconds, 3),
        "cpu_seconds": round(attempt.seconds * attempt.cpus, 3),
        "gpu_seconds": round(attempt.seconds * attempt.gpus, 3),
    }


def _run_id(folder: Path) -> str | None:
    from jobs.spool import Spool

    head = Spool(folder).head()
    run_id = head.get("run_id") if head else None
    return str(run_id) if run_id else None


def _read_lines(path: Path) -> list[Any]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None
