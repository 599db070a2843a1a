"""What a sweep has come to, as one document: for the screen, for scripts, and for its page."""

import json
import math
from pathlib import Path
from typing import Any

from jobs.spool import Spool, write_json
from jobs.sweep_page import SWEEP_FILE
from jobs.trials import CHANGES_FILE, Journal, best_trial, measured, trial_dir

HEAD_FILE = "sweep_head.json"


def write_head(sweep_dir: Path, head: dict[str, Any]) -> None:
    """Write down all but the trials, which the journal has."""
    write_json(sweep_dir / HEAD_FILE, head)


def num_configurations(sweep_dir: Path) -> int | None:
    """How many configurations the sweep was last meant to try; None: it never began."""
    try:
        head = json.loads((sweep_dir / HEAD_FILE).read_text())
    except FileNotFoundError:
        return None
    return int(head["search"]["trials"])


def sweep_document(sweep_dir: Path) -> dict[str, Any]:
    """The sweep whose folder this is, as it is now; without trials where none was begun."""
    try:
        head: dict[str, Any] = json.loads((sweep_dir / HEAD_FILE).read_text())
    except FileNotFoundError:
        return {"trials": [], "best": None}
    trials = Journal(sweep_dir).read()
    best = best_trial(trials, head["mode"])
    rows = []
    for trial in trials:
        folder = trial_dir(sweep_dir, trial.number)
        found = measured(folder, head["metric"])
        is_running = trial.status == "RUNNING"
        metric = trial.metric if trial.metric is not None and math.isfinite(trial.metric) else None
        rows.append(
            {
                "trial": trial.number,
                "configuration": trial.configuration,
                "seed": trial.seed,
                "run_id": Spool(folder).head().get("run_id"),
                "status": trial.status,
                "params": trial.params,
                "metric": metric,
                "pruned": trial.pruned,
                "cause": trial.cause,
                "step": found.step if is_running else trial.step,
                "seconds": round(found.seconds, 2) if is_running else trial.seconds,
                "curve": [[step, value] for step, value in found.curve],
                "changes": _changes(folder),
                "finished_unix_s": trial.finished_unix_s,
            }
        )
    return head | {"best": best.number if best else None, "trials": rows}


def write_sweep_document(sweep_dir: Path, state: str | None = None) -> dict[str, Any]:
    """Leave the document where the page reads it."""
    document = sweep_document(sweep_dir)
    if state is not None:
        document["state"] = state
    write_json(sweep_dir / SWEEP_FILE, document)
    return document


def _changes(folder: Path) -> list[list[Any]]:
    path = folder / CHANGES_FILE
    lines = path.read_text().splitlines() if path.exists() else []
    return [[change["step"], change["params"]] for change in map(json.loads, lines)]
