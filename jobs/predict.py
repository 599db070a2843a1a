"""Predict every row of a file with a model, in bounded memory."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.home import Surroundings
from gpt2cls.data.write import open_writer
from gpt2cls.errors import RequestError
from gpt2cls.least_sure import LeastSure
from gpt2cls.predict import Predictor
from gpt2cls.predict_files import predict_file
from jobs.models import model_folder
from jobs.spec_uses import LowConfidence

_SAY_EVERY_S = 2.0


def run_predict(
    model: str,
    source: str,
    output: str,
    *,
    base_dir: Path,
    surroundings: Surroundings,
    console: Console,
    spreadsheet_safe: bool = False,
    low_confidence: LowConfidence | None = None,
) -> dict[str, Any]:
    """The document of `predict`: `{model, input, output, rows, seconds}`.

    Where the texts of low confidence are asked for, also `{low_confidence: {below, rows, written,
    output}}`: how many there are, and how many of them are in the file.

    Raises:
        RequestError: the model, the input or the output cannot be used.
    """
    started_s = time.monotonic()
    predictor = Predictor.load(model_folder(model, surroundings, base_dir=base_dir))
    asked = low_confidence
    if asked is not None and predictor.info.task.kind == "regression":
        raise RequestError(
            f"low_confidence.output = {asked.output}: {model} predicts numbers, and does not say "
            "how sure it is; leave low_confidence out"
        )
    unsure = LeastSure(below=asked.below, most=asked.most) if asked is not None else None
    rows = predict_file(
        predictor,
        base_dir / source,
        base_dir / output,
        spreadsheet_safe=spreadsheet_safe,
        progress=_progress(console),
        least_sure=unsure,
    )
    more: dict[str, Any] = {}
    if asked is not None and unsure is not None:
        table, written = unsure.table()
        with open_writer(base_dir / asked.output, spreadsheet_safe=spreadsheet_safe) as write:
            write(table, written)
        more["low_confidence"] = {
            "below": asked.below,
            "rows": unsure.num_below,
            "written": written,
            "output": str(base_dir / asked.output),
        }
    seconds = round(time.monotonic() - started_s, 2)
    return {
        "model": model,
        "input": source,
        "output": str(base_dir / output),
        "rows": rows,
        **more,
        "seconds": {"total": seconds},
    }


def _progress(console: Console) -> Callable[[int], None]:
    """Says how far it is, at most every other second."""
    started_s = said_s = time.monotonic()

    def say(rows: int) -> None:
        nonlocal said_s
        now_s = time.monotonic()
        if now_s - said_s >= _SAY_EVERY_S:
            said_s = now_s
            console.print(f"{rows:,} rows, {rows / (now_s - started_s):,.0f} rows/s")

    return say
