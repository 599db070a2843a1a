"""Measure a model that is there already on labelled data."""

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.home import Surroundings
from gpt2cls.config import DataConfig
from gpt2cls.data.prepare import read_labelled
from gpt2cls.metrics import evaluate_probabilities
from gpt2cls.predict import Predictor
from jobs.models import model_folder
from jobs.spec import EvaluationData


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
    text = data.text or predictor.info.text
    columns = DataConfig(train=data.test, text=text, label=data.label, separator=data.separator)
    task = predictor.info.task
    split = read_labelled(data.test, columns, task, base_dir=base_dir)
    console.print(f"{len(split):,} rows of {data.test}, {len(task.labels)} labels")
    pairs = None if split.pairs is None else split.pairs.to_pylist()
    probs_NC = predictor.probabilities(split.texts.to_pylist(), pairs)
    measured = evaluate_probabilities(probs_NC, split.labels, task, predictor.info.thresholds)
    return {
        "model": model,
        "data": data.test,
        "test": measured,
        "seconds": {"total": round(time.monotonic() - started_s, 2)},
    }
