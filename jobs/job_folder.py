"""The files that every job's folder begins with: what was asked for, and where from."""

import json
from pathlib import Path
from typing import Any

from jobs.spool import write_json

JOB_FILE = "job.yaml"
RESOLVED_FILE = "resolved.json"
ORIGIN_FILE = "origin.json"


def write_job_folder(job_dir: Path, *, text: str, spec: dict[str, Any], base_dir: str) -> None:
    """Make the folder of a job; may be done again.

    Args:
        job_dir: the folder.
        text: the job file as it was given.
        spec: the resolved job.
        base_dir: what relative paths of the job are taken from.
    """
    job_dir.mkdir(parents=True, exist_ok=True)
    (job_dir / JOB_FILE).write_text(text, encoding="utf-8")
    write_json(job_dir / RESOLVED_FILE, spec)
    write_json(job_dir / ORIGIN_FILE, {"base_dir": base_dir})


def base_dir_of(job_dir: Path) -> Path:
    """The folder from which the paths of a job's file are taken."""
    return Path(json.loads((job_dir / ORIGIN_FILE).read_text())["base_dir"])
