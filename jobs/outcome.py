"""What a trained model turned out to be: its package on disk, its test table, its mistakes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpt2cls.baselines import run_baselines
from gpt2cls.data.prepare import Prepared
from gpt2cls.data.tasks import Split
from gpt2cls.data.tokenizer import TextTokenizer
from gpt2cls.metrics import choose_thresholds, evaluate_probabilities
from gpt2cls.mistakes import worst_mistakes
from gpt2cls.model.classifier import Classifier, build_classifier
from gpt2cls.model.folder import ModelInfo, save_classifier
from gpt2cls.predict import Predictor
from gpt2cls.training.checkpoint import read_whole
from gpt2cls.training.payload import RankPayload
from gpt2cls.training.session import BEST
from gpt2cls.training.state import load_model_tensors
from jobs.figures import confusion_figure, fit_figure, png, reliability_figure
from jobs.spec import FinetuneJob
from jobs.spool import write_json

HEADLINES = (
    *("accuracy", "macro_f1", "micro_f1", "exact_match", "average_precision"),
    *("pearson", "spearman"),
)
LOSSES = ("log_loss", "ece", "mse")
MODEL_FOLDER = "model"
NUM_MISTAKES = 25
_EXAMPLE_ROWS = 64
_LARGEST_CONFUSION = 100
"""Classes; a larger matrix is not drawn."""


@dataclass(frozen=True)
class Outcome:
    """Measured on the test split, or on validation where there is none."""

    step: int
    """Of the weights that were kept."""
    validation: dict[str, Any]
    test: dict[str, Any] | None
    baselines: dict[str, dict[str, Any]]
    """On the same rows as the model."""
    model_folder: Path
    figures: list[Path]
    example: Split
    """A few of the rows, and below what the trainer's own model predicts for them."""
    example_probs_NC: NDArray[np.float32]
    predictor: Predictor

    @property
    def split(self) -> str:
        return "validation" if self.test is None else "test"

    @property
    def table(self) -> dict[str, Any]:
        return self.validation if self.test is None else self.test

    def document(self) -> dict[str, Any]:
        return {
            "best_step": self.step,
            "validation": self.validation,
            "test": self.test,
            "baselines": self.baselines,
        }

    def points(self) -> dict[str, float]:
        """The tables as MLflow metrics."""
        splits = {"validation": self.validation, "test": self.test or {}}
        points = {
            f"{split}/{name}": value
            for split, table in splits.items()
            for name, value in numbers(table).items()
        }
        for baseline, table in self.baselines.items():
            points |= {f"baseline/{baseline}/{name}": v for name, v in numbers(table).items()}
        return points


def numbers(table: Mapping[str, Any]) -> dict[str, float]:
    """The headline numbers of a test table, for a registry or a record."""
    names = [name for name in (*HEADLINES, *LOSSES) if table.get(name) is not None]
    return {name: float(table[name]) for name in names}


def measure(
    prepared: Prepared,
    tokenizer: TextTokenizer,
    payload: RankPayload,
    job: FinetuneJob,
    job_dir: Path,
) -> Outcome:
    """Package the best weights, and measure them beside the baselines."""
    model, step = _best_model(prepared, payload)
    info = ModelInfo(
        task=prepared.task,
        model=job.model,
        text=job.data.text,
        choices=job.data.choices,
        max_length=job.data.max_length,
        vocab_size=tokenizer.vocab_size,
        pad_id=tokenizer.pad_id,
    )
    predictor = _predictor(model, tokenizer, info, payload)
    validation_NC = _probabilities(predictor, prepared.validation)
    if prepared.task.kind == "multi_label":
        thresholds = choose_thresholds(validation_NC, prepared.validation.labels)
        info = info.model_copy(update={"thresholds": thresholds})
        predictor = _predictor(model, tokenizer, info, payload)
    save_classifier(model, tokenizer, info, job_dir / MODEL_FOLDER)
    validation = _table(validation_NC, prepared.validation, info, job)
    split, probs_NC, test = prepared.validation, validation_NC, None
    if prepared.test is not None:
        split, probs_NC = prepared.test, _probabilities(predictor, prepared.test)
        test = _table(probs_NC, split, info, job)
    _write_mistakes(probs_NC, split, info, job_dir)
    return Outcome(
        step=step,
        validation=validation,
        test=test,
        baselines=run_baselines(
            prepared.train,
            split,
            prepared.task,
            validation=prepared.validation if prepared.test is not None else None,
            seed=job.train.seed,
        ),
        model_folder=job_dir / MODEL_FOLDER,
        figures=_figures(test or validation, prepared.task.labels, job_dir / "figures"),
        example=example_of(split),
        # Asked again: in bf16 an answer depends a little on what else is asked with it.
        example_probs_NC=_probabilities(predictor, example_of(split)),
        predictor=predictor,
    )


def _best_model(prepared: Prepared, payload: RankPayload) -> tuple[Classifier, int]:
    model = build_classifier(
        payload.model,
        prepared.task,
        vocab_size=payload.vocab_size,
        num_new=payload.num_new,
        pad_id=payload.pad_id,
        max_length=payload.max_length,
        seed=payload.train.seed,
        base_dir=payload.base_dir,
    )
    best = read_whole(payload.job_dir / BEST)
    load_model_tensors(model, best.tensors("model"))
    return model, int(best.state["step"])


def _predictor(
    model: Classifier, tokenizer: TextTokenizer, info: ModelInfo, payload: RankPayload
) -> Predictor:
    wants_gpu = payload.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if wants_gpu else "cpu")
    return Predictor.of(model, tokenizer, info, device)


def _probabilities(predictor: Predictor, split: Split) -> NDArray[np.float32]:
    pairs = None if split.pairs is None else split.pairs.to_pylist()
    return predictor.probabilities(split.texts.to_pylist(), pairs)


def _table(
    probs_NC: NDArray[np.float32], split: Split, info: ModelInfo, job: FinetuneJob
) -> dict[str, Any]:
    return evaluate_probabilities(
        probs_NC, split.labels, info.task, info.thresholds, seed=job.train.seed
    )


def _write_mistakes(
    probs_NC: NDArray[np.float32], split: Split, info: ModelInfo, job_dir: Path
) -> None:
    mistakes = worst_mistakes(
        probs_NC,
        split.labels,
        split.texts,
        NUM_MISTAKES,
        task=info.task,
        thresholds=info.thresholds,
        pairs=split.pairs,
    )
    write_json(job_dir / "mistakes.json", mistakes)


def _figures(table: dict[str, Any], labels: tuple[str, ...], folder: Path) -> list[Path]:
    folder.mkdir(exist_ok=True)
    pictures = {}
    if "reliability" in table:
        pictures["reliability.png"] = png(reliability_figure(table["reliability"]))
    if "fit" in table:
        pictures["fit.png"] = png(fit_figure(table["fit"]))
    if "confusion" in table and len(labels) <= _LARGEST_CONFUSION:
        pictures["confusion_matrix.png"] = png(confusion_figure(table["confusion"], labels))
    for name, picture in pictures.items():
        (folder / name).write_bytes(picture)
    return [folder / name for name in pictures]


def example_of(split: Split) -> Split:
    """The first rows of a split."""
    rows = slice(_EXAMPLE_ROWS)
    pairs = None if split.pairs is None else split.pairs[rows]
    return Split(split.texts[rows], pairs, split.labels[rows])
