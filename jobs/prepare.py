"""Divide texts of which only some have a label: what to learn from, and a test kept apart."""

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from gpt2cls.data.partly import divide
from gpt2cls.data.prepare import choose
from gpt2cls.data.rows import Columns, Rows
from gpt2cls.data.sources import read_source
from gpt2cls.data.write import open_writer, written_aside
from gpt2cls.errors import RequestError
from jobs.spec_uses import PrepareJob, PrepareStage
from jobs.tables import plain_table

REPORT = "report.json"


def run_prepare(job: PrepareJob, *, base_dir: Path, console: Console) -> dict[str, Any]:
    """The document of a prepare job: the report, and the folder of the files.

    Raises:
        RequestError: the input cannot be used, or the folder not be written to.
    """
    started_s = time.monotonic()
    folder = base_dir / job.output
    check_folder(folder)
    rows = read_rows(job, base_dir)
    folder.mkdir(exist_ok=True)
    report = write_parts(job, rows, folder)
    show_report(report, console)
    seconds = {"total": round(time.monotonic() - started_s, 2)}
    return {"input": job.input, "output": str(folder), "report": report, "seconds": seconds}


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be made or is something else.

    Raises:
        RequestError: says why.
    """
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"output = {folder}: is there and is no folder; name another")
    if not folder.parent.is_dir():
        raise RequestError(f"output = {folder}: there is no folder {folder.parent}; make it first")


def read_rows(job: PrepareStage, base_dir: Path) -> Rows:
    """All rows of the input, with their labels where they have one.

    Raises:
        DataError: unreadable, or a column is missing.
    """
    found = read_source(job.input, columns_of(job), base_dir=base_dir)
    return choose(found, "train", job.input)


def write_parts(job: PrepareStage, rows: Rows, folder: Path) -> dict[str, Any]:
    """Write each part as a Parquet file, and the report beside them, into the folder.

    Raises:
        DataError: the rows cannot be divided.
    """
    divided = divide(
        rows,
        columns_of(job),
        job.input,
        test=job.test,
        keep_labels=job.keep_labels,
        seed=job.seed,
    )
    for name, columns in divided.parts.items():
        with open_writer(folder / f"{name}.parquet") as write:
            write(dict(columns), divided.report[name])
    with written_aside(folder / REPORT) as aside:
        aside.write_text(json.dumps(divided.report, indent=1) + "\n", encoding="utf-8")
    return divided.report


def columns_of(job: PrepareStage) -> Columns:
    return Columns(job.text, job.label, job.separator)


def show_report(report: dict[str, Any], console: Console) -> None:
    """What there is, and what was left out."""
    counts = [[name.replace("_", " "), n] for name, n in report.items() if isinstance(n, int)]
    console.print(plain_table(["texts", "number"], counts, "Data"))
    rows = [[label, found["labelled"], found["test"]] for label, found in report["labels"].items()]
    console.print(plain_table(["label", "labelled", "test"], rows))
