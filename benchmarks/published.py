"""The published effects on real text: runs what is missing, and writes docs/results.md from MLflow.

    GPT2CLS_DATA=<folder of the sets> python benchmarks/published.py run [--only labels]
    python benchmarks/published.py write

`run` works one job after another, in this order, and needs language models in the registry: that
of recipes/pretrain-small.yaml and, after it, those of pretrain-ag-small and pretrain-imdb-small;
ULMFiT's LSTM is that of pretrain-awd-lstm-small. `write` also keeps every number, by its seed, in
benchmarks/results/published.json. What is kept there, or is in MLflow already, is not run again,
so a run that was killed is simply started again.
"""

import argparse
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from published_tables import Settings, Table, tables
from scipy import stats

from cluster.home import from_environment
from jobs.models import open_registry

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "results.md"
KEPT = ROOT / "benchmarks" / "results" / "published.json"
MARK = "<!-- What follows is written by benchmarks/published.py -->"
NOT_RUN = "not run"
Numbers = dict[str, dict[str, dict[str, float]]]
"""Of a table by row, column and seed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("run", "write"))
    parser.add_argument("--only", action="append", choices=tables(), help="may be given again")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="for every job, as cluster.cpus_per_worker=1")  # fmt: skip
    options = parser.parse_args()
    if options.action == "write":
        write()
        return
    for name, table in tables().items():
        if options.only is None or name in options.only:
            run(table, _kept().get(name, {}), options.set)


def _kept() -> dict[str, Numbers]:
    return json.loads(KEPT.read_text()) if KEPT.is_file() else {}


def run(table: Table, kept: Numbers, beside: list[str]) -> None:
    """Run the jobs that are missing; `beside`: settings that do not tell cells apart."""
    for row, column, seed in table.numbers():
        is_kept = str(seed) in kept.get(row, {}).get(column, {})
        recipe, settings = table.job(row, column, seed)
        if not is_kept and found(recipe, settings, table.rows[row].stage) is None:
            given = [_setting(*pair) for pair in settings.items()] + beside
            words = [word for setting in given for word in ("-s", setting)]
            command = ["run", str(ROOT / "recipes" / f"{recipe}.yaml"), *words]
            print("gpt2cls", *command, flush=True)
            subprocess.run([sys.executable, "-m", "jobs", *command], check=True, cwd=ROOT)


def _setting(name: str, value: Any) -> str:
    return f"{name}={_text(value)}"


def found(recipe: str, settings: Settings, stage: str | None = None) -> Any:
    """The newest finished run of a recipe under these settings, or None.

    Of a pipeline it is that of `stage`.
    """
    given = yaml.safe_load((ROOT / "recipes" / f"{recipe}.yaml").read_text())
    client = _client()
    experiment = client.get_experiment_by_name(given["name"])
    if experiment is None:
        return None
    runs = client.search_runs(
        [experiment.experiment_id], "attributes.status = 'FINISHED'", max_results=1000
    )
    if stage is not None:
        return _stage(runs, settings, stage)
    fits = (run for run in runs if _fits(run.data.params, settings))
    return next((run for run in fits if "gpt2cls.sweep_id" not in run.data.tags), None)


def _stage(runs: list[Any], settings: Settings, stage: str) -> Any:
    """The run of `stage` in a pipeline whose stages have the settings that name them."""
    wanted: dict[str, Settings] = {}
    for name, given in settings.items():
        _, of_stage, _, field = name.split(".", 3)  # stages.<stage>.job.<field>
        wanted.setdefault(of_stage, {})[field] = given

    def by_pipeline(name: str) -> dict[str, Any]:
        of_stage = [run for run in runs if run.data.tags.get("gpt2cls.stage") == name]
        fits = [run for run in of_stage if _fits(run.data.params, wanted.get(name, {}))]
        return {run.data.tags["gpt2cls.pipeline_id"]: run for run in fits}

    whole = set.intersection(*(set(by_pipeline(name)) for name in wanted))
    return next((run for key, run in by_pipeline(stage).items() if key in whole), None)


def _fits(params: dict[str, str], settings: Settings) -> bool:
    return all(params.get(name) == _text(value) for name, value in settings.items())


def _text(value: Any) -> str:
    return "null" if value is None else str(value)


@cache
def _client() -> Any:
    return open_registry(from_environment())


def value(table: Table, row: str, column: str, seed: int) -> float | None:
    """The number that the run of a seed gave; None: it is missing."""
    run = found(*table.job(row, column, seed), table.rows[row].stage)
    if run is not None and table.is_sweep:
        run = _trial(run, table.rows[row].settings)
    metrics = {} if run is None else run.data.metrics
    minus = table.minus_of(row, column)
    taken = 0.0 if minus is None else metrics.get(minus)
    measured = metrics.get(table.metric_of(row, column))
    return None if measured is None or taken is None else measured - taken


def _trial(sweep: Any, row: Settings) -> Any:
    parent = f"tags.mlflow.parentRunId = '{sweep.info.run_id}'"
    trials = _client().search_runs([sweep.info.experiment_id], parent, max_results=1000)
    return next((trial for trial in trials if _fits(trial.data.params, row)), None)


def interval(numbers: list[float], *, is_share: bool) -> str:
    """Mean and the half width of its 95% t interval over the seeds; shares in percent."""
    if not numbers:
        return NOT_RUN
    scale, digits = (100, 1) if is_share else (1, 3)
    mean = scale * float(np.mean(numbers))
    if len(numbers) < 2:
        return f"{mean:.{digits}f} (one seed)"
    error = scale * float(np.std(numbers, ddof=1)) / np.sqrt(len(numbers))
    width = stats.t.ppf(0.975, len(numbers) - 1) * error
    return f"{mean:.{digits}f} +- {width:.{digits}f}"


def write() -> None:
    kept = _kept()
    lines = [PAGE.read_text(encoding="utf-8").partition(MARK)[0].rstrip(), "", MARK]
    for name, table in tables().items():
        of_table = kept.setdefault(name, {})
        for row, column, seed in table.numbers():
            of_cell = of_table.setdefault(row, {}).setdefault(column, {})
            if (number := value(table, row, column, seed)) is not None:
                of_cell[str(seed)] = number
        if any(of_cell for of_row in of_table.values() for of_cell in of_row.values()):
            lines += _lines(name, table, of_table)
    KEPT.write_text(json.dumps(kept, indent=1) + "\n")
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"written: {os.path.relpath(PAGE)}, {os.path.relpath(KEPT)}")


def _lines(name: str, table: Table, kept: Numbers) -> list[str]:
    rule = "|" + " --- |" * (len(table.columns) + 1)
    lines = ["", f"## {table.title}", "", _row(["", *table.columns]), rule]
    for row in table.rows:
        cells = [
            interval(
                [*kept[row][column].values()], is_share="accuracy" in table.metric_of(row, column)
            )
            for column in table.columns
        ]
        lines.append(_row([row, *cells]))
    words = [table.words, ""] if table.words else []
    return [*lines, "", *words, f"`python benchmarks/published.py run --only {name}`"]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
