"""How good predictions are: numbers from probabilities and true labels.

Imports numpy only, because training calls `quick_metrics` at every evaluation.

F1 scores follow scikit-learn: a quotient of zeros is 0, and the macro average of single labels
is over the classes that occur as a label or as a prediction.

Letters in array names: N rows, C classes, R resamples, F sums over rows.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpt2cls.calibration import (
    NUM_BINS,
    calibration_error,
    calibration_gaps,
    reliability_table,
)
from gpt2cls.intervals import Scores, Sums, bootstrap_intervals, num_resamples
from gpt2cls.regression import evaluate_values, quick_scores

if TYPE_CHECKING:
    from gpt2cls.data.tasks import Task

Floats = NDArray[np.floating[Any]]
LabelArray = NDArray[Any]
"""int64 [N] class numbers, or bool [N, C] for several labels per row."""

LARGEST_CONFUSION = 1_000
"""Labels. The matrix of 10,000 would take gigabytes, and nobody reads it."""
SMALLEST_PROBABILITY = 1e-15
"""Probabilities are kept this far from 0 and 1 in a logarithm, so that one sure mistake costs
35 nats and not infinity."""


def quick_metrics(probs: Floats, labels: LabelArray, task: "Task") -> dict[str, float]:
    """Accuracy, macro_f1, micro_f1, log_loss and ece; exact_match too with several labels a row.

    Of regression, whose values stand in the place of probabilities: pearson, spearman and mse.

    The accuracy of several labels is the share of rows with exactly the right set, at a
    threshold of one half.
    """
    if task.kind == "regression":
        return quick_scores(probs, labels)
    check_shapes(probs, labels, task)
    predicted = predictions(probs, labels.ndim, None)
    hits_C, predicted_C, true_C = _counts(predicted, labels, len(task.labels))
    macro, micro = _averages(hits_C, predicted_C, true_C, task.kind)
    scores = {
        "accuracy": float(rows_right(predicted, labels).mean()),
        "macro_f1": float(macro),
        "micro_f1": float(micro),
        "log_loss": float(row_losses(probs, labels).mean()),
        "ece": calibration_error(probs, labels),
    }
    if task.kind == "multi_label":
        scores["exact_match"] = scores["accuracy"]
    return scores


def evaluate_probabilities(
    probs: Floats,
    labels: LabelArray,
    task: "Task",
    thresholds: Sequence[float] | None = None,
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """The whole test table, as plain JSON values.

    Args:
        probs: probabilities [N, C].
        labels: the true labels.
        task: kind and label names.
        thresholds: of several labels, the probability from which each one is given; None: 0.5.
        seed: of the resampling.
        resamples: at most; very many rows get fewer.

    Returns:
        `rows`; accuracy, macro_f1, micro_f1, log_loss, ece (and exact_match), each with a 95%
        bootstrap interval under `<name>_ci`; `per_class`; `reliability`; for single labels
        `confusion` (rows are true, columns predicted; up to 1,000 labels); for several
        `average_precision` and `thresholds`. Of regression, what `evaluate_values` gives.
    """
    if task.kind == "regression":
        return evaluate_values(probs, labels, seed=seed, resamples=resamples)
    check_shapes(probs, labels, task)
    predicted = predictions(probs, labels.ndim, thresholds)
    parts_NF = _parts(probs, labels, predicted)
    resamples = num_resamples(len(labels), resamples)

    def scores_of(sums_RF: Sums) -> Scores:
        return _scores(sums_RF, len(labels), len(task.labels), task.kind)

    point = scores_of(np.asarray(parts_NF.sum(axis=0)).reshape(1, -1))
    intervals = bootstrap_intervals(parts_NF, scores_of, resamples=resamples, seed=seed)
    result: dict[str, Any] = {"rows": len(labels)}
    for name, value_R in point.items():
        result |= {name: float(value_R[0]), f"{name}_ci": intervals[name]}
    result["per_class"] = _per_class(predicted, labels, task)
    result["reliability"] = reliability_table(probs, labels)
    result["bootstrap"] = {"resamples": resamples, "seed": seed}
    if task.kind != "multi_label" and len(task.labels) > LARGEST_CONFUSION:
        return result
    if task.kind != "multi_label":
        return result | {"confusion": _confusion(predicted, labels, len(task.labels)).tolist()}
    return result | _multi_label_extras(result["per_class"], probs, labels, thresholds)


def predictions(
    probs: Floats, label_dimensions: int, thresholds: Sequence[float] | None
) -> LabelArray:
    """Class numbers [N], or for two-dimensional labels which ones each row is given [N, C]."""
    if label_dimensions == 1:
        return np.asarray(probs.argmax(axis=1))
    return np.asarray(probs >= (0.5 if thresholds is None else np.asarray(thresholds)))


def rows_right(predicted: LabelArray, labels: LabelArray) -> NDArray[np.bool_]:
    """Which rows are wholly right [N]."""
    if labels.ndim == 1:
        return np.asarray(predicted == labels)
    return np.asarray((predicted == (labels > 0)).all(axis=1))


def check_shapes(probs: Floats, labels: LabelArray, task: "Task") -> None:
    """Refuse arrays that do not belong together, or that hold no usable number.

    Raises:
        ValueError: the shapes differ, there are no rows, or a probability is not a number.
    """
    wanted = (len(labels), len(task.labels))
    if probs.shape != wanted or (labels.ndim == 2) != (task.kind == "multi_label"):
        raise ValueError(
            f"probabilities of shape {probs.shape} and labels of shape {labels.shape} "
            f"do not fit a {task.kind} task of {len(task.labels)} labels"
        )
    if not len(labels):
        raise ValueError("no rows to compute metrics of")
    if not np.isfinite(probs).all():
        raise ValueError("a probability is not a finite number: the model's weights are damaged")


def row_losses(probs: Floats, labels: LabelArray) -> NDArray[np.float64]:
    """Log loss of each row in nats [N]; of several labels the mean binary loss over them."""
    if labels.ndim == 2:
        # One logarithm: of the probability given to what turned out true.
        given = np.where(labels > 0, probs, 1.0 - probs.astype(np.float64)).clip(
            SMALLEST_PROBABILITY
        )
        return -np.asarray(np.log(given).mean(axis=1), np.float64)
    given = probs[np.arange(len(labels)), labels].astype(np.float64)
    return -np.asarray(np.log(given.clip(SMALLEST_PROBABILITY)), np.float64)


def _counts(
    predicted: LabelArray, labels: LabelArray, num_classes: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Per class: rows rightly given it, rows given it, rows that have it."""
    if labels.ndim == 2:
        true_NC = labels > 0
        return (predicted & true_NC).sum(axis=0), predicted.sum(axis=0), true_NC.sum(axis=0)
    hits = labels[predicted == labels]
    return tuple(np.bincount(x, minlength=num_classes) for x in (hits, predicted, labels))  # type: ignore[return-value]


def _averages(hits: Any, predicted: Any, true: Any, kind: str) -> tuple[Any, Any]:
    """Macro and micro F1 from counts whose last axis is the class."""
    total = np.asarray(predicted + true, np.float64)
    f1 = 2 * hits / np.maximum(total, 1)
    counted = total > 0 if kind != "multi_label" else np.ones_like(total, bool)
    macro = f1.sum(axis=-1) / np.maximum(counted.sum(axis=-1), 1)
    return macro, 2 * hits.sum(axis=-1) / np.maximum(total.sum(axis=-1), 1)


def _parts(probs: Floats, labels: LabelArray, predicted: LabelArray) -> Any:
    """Each row's part in the sums: loss, right, calibration gaps; per class hits, given, true."""
    from scipy import sparse  # type: ignore[import-untyped]

    num_classes = probs.shape[1]

    def per_class(given: LabelArray) -> Any:
        if given.ndim == 2:
            return sparse.csr_matrix(given, dtype=np.float64)
        where = (np.arange(len(given)), given)
        return sparse.csr_matrix((np.ones(len(given)), where), shape=(len(given), num_classes))

    true = per_class(labels > 0 if labels.ndim == 2 else labels)
    chosen = per_class(predicted)
    whole = np.column_stack([row_losses(probs, labels), rows_right(predicted, labels)])
    gaps = calibration_gaps(probs, labels)
    return sparse.hstack([whole, gaps, true.multiply(chosen), chosen, true], format="csr")


def _scores(sums_RF: Sums, num_rows: int, num_classes: int, kind: str) -> Scores:
    """The headline metrics of each resample, from the sums of `_parts`."""
    loss_R, right_R = sums_RF[:, 0] / num_rows, sums_RF[:, 1] / num_rows
    gaps_RK, per_class = np.split(sums_RF[:, 2:], [NUM_BINS], axis=1)
    hits_RC, given_RC, true_RC = np.split(per_class, 3, axis=1)
    macro_R, micro_R = _averages(hits_RC, given_RC, true_RC, kind)
    decisions = num_rows * (num_classes if kind == "multi_label" else 1)
    scores = {
        "accuracy": right_R,
        "macro_f1": macro_R,
        "micro_f1": micro_R,
        "log_loss": loss_R,
        "ece": np.abs(gaps_RK).sum(axis=1) / decisions,
    }
    return scores | ({"exact_match": right_R} if kind == "multi_label" else {})


def _per_class(predicted: LabelArray, labels: LabelArray, task: "Task") -> list[dict[str, Any]]:
    counts = zip(*_counts(predicted, labels, len(task.labels)), strict=True)
    return [
        {
            "label": name,
            "precision": float(hits / max(given, 1)),
            "recall": float(hits / max(true, 1)),
            "f1": float(2 * hits / max(given + true, 1)),
            "support": int(true),
            "predicted": int(given),
        }
        for name, (hits, given, true) in zip(task.labels, counts, strict=True)
    ]


def _confusion(predicted: LabelArray, labels: LabelArray, num_classes: int) -> NDArray[Any]:
    cells = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def _multi_label_extras(
    per_class: list[dict[str, Any]],
    probs: Floats,
    labels: LabelArray,
    thresholds: Sequence[float] | None,
) -> dict[str, Any]:
    """Average precision per label (written into `per_class`) and over labels; the thresholds."""
    used = [0.5] * probs.shape[1] if thresholds is None else [float(t) for t in thresholds]
    for c, entry in enumerate(per_class):
        entry["average_precision"] = _average_precision(probs[:, c], labels[:, c] > 0)
        entry["threshold"] = used[c]
    defined = [e["average_precision"] for e in per_class if e["average_precision"] is not None]
    mean = float(np.mean(defined)) if defined else None
    return {"average_precision": mean, "thresholds": used}


def _average_precision(probs_N: Floats, true_N: NDArray[np.bool_]) -> float | None:
    """Mean precision at each row that has the label; None when no row has it."""
    num_true = int(true_N.sum())
    if num_true == 0:
        return None
    sorted_N, hits_N = _sorted_hits(probs_N, true_N)
    ends = np.append(np.flatnonzero(np.diff(sorted_N)), len(sorted_N) - 1)  # ties count as one
    gained = np.diff(hits_N[ends], prepend=0)
    return float((gained * hits_N[ends] / (ends + 1)).sum() / num_true)


def _sorted_hits(probs_N: Floats, true_N: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Probabilities from high to low, and how many of the rows so far have the label."""
    order = np.argsort(-probs_N, kind="stable")
    return probs_N[order], true_N[order].cumsum()


def choose_thresholds(probs: Floats, labels: LabelArray) -> list[float]:
    """For each label the threshold (p >= it) with the highest F1 on these rows.

    Halfway between two probabilities that occur, so that rounding cannot flip a row. A label
    that no row has keeps 0.5.
    """
    return [
        _best_threshold(probs[:, c].astype(np.float64), labels[:, c].astype(bool))
        for c in range(probs.shape[1])
    ]


def _best_threshold(probs_N: NDArray[np.float64], true_N: NDArray[np.bool_]) -> float:
    num_true = int(true_N.sum())
    if num_true == 0:
        return 0.5
    sorted_N, hits_N = _sorted_hits(probs_N, true_N)
    f1_N = 2 * hits_N / (np.arange(1, len(sorted_N) + 1) + num_true)
    f1_N[:-1][sorted_N[:-1] == sorted_N[1:]] = -1.0  # equal probabilities cannot be parted
    best = int(f1_N.argmax())
    below = sorted_N[best + 1] if best + 1 < len(sorted_N) else 0.0
    return float((sorted_N[best] + below) / 2)
