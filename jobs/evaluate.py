"""Measure a model that is there already on labelled data."""

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.home import Surroundings
from gpt2cls.config import DataConfig
from gpt2cls.data.keys import fingerprint
from gpt2cls.data.prepare import read_labelled
from gpt2cls.data.tasks import Split, Task
from gpt2cls.metrics import evaluate_probabilities
from gpt2cls.model.folder import ModelInfo
from gpt2cls.predict import Predictor
from jobs.models import model_folder
from jobs.spec_uses import EvaluationData


def run_evaluate(
    model: str,
    data: EvaluationData,
    *,
    base_dir: Path,
    surroundings: Surroundings,
    console: Console,
) -> dict[str, Any]:
    """The document of `evaluate`: `{model, data, test: {rows, accuracy, ...}, seconds}`.

    Raises:
        RequestError: the model or the data cannot be used, or do not fit each other.
    """
    started_s = time.monotonic()
    predictor = Predictor.load(model_folder(model, surroundings, base_dir=base_dir))
    split = rows_for(predictor.info, data, base_dir)
    task = predictor.info.task
    console.print(f"{len(split):,} rows of {data.test}, {_of(task)}")
    return {
        "model": model,
        "data": data.test,
        "test": measured(predictor, split),
        "seconds": {"total": round(time.monotonic() - started_s, 2)},
    }


def rows_for(info: ModelInfo, data: EvaluationData, base_dir: Path) -> Split:
    """The rows to measure a model on.

    Raises:
        DataError: unreadable, or not of the model's kind.
    """
    columns = DataConfig(
        train=data.test,
        text=data.text or info.text,
        choices=data.choices or info.choices,
        label=data.label,
        separator=data.separator,
    )
    return read_labelled(data.test, columns, info.task, base_dir=base_dir)


def measured(predictor: Predictor, split: Split) -> dict[str, Any]:
    """The test table of a model on these rows."""
    pairs = None if split.pairs is None else split.pairs.to_pylist()
    probs_NC = predictor.probabilities(split.texts.to_pylist(), pairs)
    info = predictor.info
    return evaluate_probabilities(probs_NC, split.labels, info.task, info.thresholds)


def fingerprint_for(info: ModelInfo, split: Split) -> str:
    """Of the rows, and of what their labels mean."""
    assert split.keys is not None
    names = [name.encode() for name in info.task.labels]
    return fingerprint([*names, split.keys, split.labels])


def _of(task: Task) -> str:
    return "a value each" if task.kind == "regression" else f"{len(task.labels)} labels"
