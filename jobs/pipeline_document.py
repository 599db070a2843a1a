"""How far a pipeline has come: a document in its folder, replaced whole at every change."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.table import Table

from jobs.spec import PipelineJob
from jobs.spool import Spool, write_json
from jobs.states import FINAL, State
from jobs.tables import plain_table

DOCUMENT = "pipeline.json"
STAGES_DIR = "stages"
_LEFT = "its process ended before it did"


def new_document(job: PipelineJob) -> list[dict[str, Any]]:
    """The stages before anything is done, in the order they run."""
    return [
        {
            "stage": name,
            "kind": job.stages[name].job.kind,
            "needs": [*needs],
            "condition": None,
            "state": "PENDING",
            "reason": None,
            "reused": False,
            "address": None,
            "job": None,
            "metrics": {},
            "output": None,
            "seconds": None,
        }
        for name, needs in job.needs.items()
    ]


def read_document(job_dir: Path) -> list[dict[str, Any]]:
    """The stages as they were last written down; none, if the pipeline has not begun."""
    try:
        return list(json.loads((job_dir / DOCUMENT).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return []


def write_document(job_dir: Path, stages: Sequence[Mapping[str, Any]]) -> None:
    write_json(job_dir / DOCUMENT, stages)


def stages_of(job_dir: Path, spec: Mapping[str, Any], state: State) -> list[dict[str, Any]]:
    """The stages, none of which runs where the job does not."""
    stages = read_document(job_dir)
    if not stages:
        with suppress(ValidationError):  # another version wrote it down
            stages = new_document(PipelineJob.model_validate(spec))
    for stage in stages:
        if stage["state"] == "RUNNING" and state in FINAL:
            stage |= {"state": "KILLED", "reason": stage["reason"] or _LEFT}
    return with_run_ids(job_dir, stages)


def stage_dir(job_dir: Path, stage: str) -> Path:
    """The folder in which a stage works."""
    return job_dir / STAGES_DIR / stage


def with_run_ids(job_dir: Path, stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The stages with their runs, which MLflow may have made long after they ended."""
    return [{**stage, "run_id": run_id_of(stage_dir(job_dir, stage["stage"]))} for stage in stages]


def run_id_of(folder: Path) -> str | None:
    """The run of the stage that worked in a folder; None: it has none yet, or is gone."""
    run_id = Spool(folder).head().get("run_id")
    return str(run_id) if run_id else None


def stages_table(stages: Sequence[Mapping[str, Any]]) -> Table:
    """For a person: what was done, what was there already, and what came of it."""
    columns = ["stage", "kind", "needs", "state", "seconds", "result", "address"]
    rows = [
        [
            stage["stage"],
            stage["kind"],
            ", ".join(stage["needs"]) or "-",
            "reused" if stage["reused"] else stage["state"],
            None if stage["seconds"] is None else f"{stage['seconds']:,.1f}",
            _result(stage),
            stage["address"] and stage["address"][:12],
        ]
        for stage in stages
    ]
    return plain_table(columns, rows)


def plan_table(stages: Sequence[Mapping[str, Any]]) -> Table:
    """The stages in the order they run, and what each needs."""
    columns = ["stage", "kind", "needs"]
    if any(stage.get("when") for stage in stages):
        columns.append("when")
    rows = [
        [i, *(_plan_cell(stage, column) for column in columns)] for i, stage in enumerate(stages, 1)
    ]
    return plain_table(["", *columns], rows, "stages, in the order they run")


def _plan_cell(stage: Mapping[str, Any], column: str) -> str:
    value = stage.get(column)
    return ", ".join(value) or "-" if isinstance(value, list) else str(value or "always")


def _result(stage: Mapping[str, Any]) -> str:
    if stage["reason"]:
        return str(stage["reason"])
    return ", ".join(f"{name} {_number(value)}" for name, value in [*stage["metrics"].items()][:2])


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and value > 1 else f"{value:.4f}"
