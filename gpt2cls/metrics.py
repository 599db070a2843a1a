"""How good predictions are: numbers from probabilities and true labels.

Knows numpy only, because training calls `quick_metrics` at every evaluation; the full test
table with its intervals is `gpt2cls.evaluation`.

Letters in array names: N rows, C classes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from gpt2cls.data.tasks import Task

Floats = NDArray[np.floating[Any]]
LabelArray = NDArray[Any]
"""int64 [N] class numbers, or bool [N, C] for several labels per row."""

SMALLEST_PROBABILITY = 1e-15
"""Probabilities are kept this far from 0 and 1 in a logarithm, so that one sure mistake costs
35 nats and not infinity."""
EXCERPT_CHARACTERS = 300


def quick_metrics(probs: Floats, labels: LabelArray, task: "Task") -> dict[str, float]:
    """Accuracy, macro_f1, micro_f1 and log_loss; exact_match too where a row has several labels.

    The accuracy of several labels is the share of rows with exactly the right set at a
    threshold of one half. F1 scores follow scikit-learn: a quotient of zeros is 0, and the macro
    average of single labels is over the classes that occur as a label or as a prediction.
    """
    check_shapes(probs, labels, task)
    if task.kind == "multi_label":
        labels = labels.astype(bool, copy=False)
        chosen_NC = probs >= 0.5
        exact = float((chosen_NC == labels).all(axis=1).mean())
        f1_C, micro = f1_scores(
            (chosen_NC & labels).sum(axis=0), chosen_NC.sum(axis=0), labels.sum(axis=0)
        )
        scores = {"accuracy": exact, "exact_match": exact, "macro_f1": float(f1_C.mean())}
    else:
        predicted_N = probs.argmax(axis=1)
        num_classes = len(task.labels)
        hits_C = np.bincount(labels[predicted_N == labels], minlength=num_classes)
        predicted_C = np.bincount(predicted_N, minlength=num_classes)
        true_C = np.bincount(labels, minlength=num_classes)
        f1_C, micro = f1_scores(hits_C, predicted_C, true_C)
        seen_C = (predicted_C + true_C) > 0
        scores = {
            "accuracy": float((predicted_N == labels).mean()),
            "macro_f1": float(f1_C[seen_C].mean()),
        }
    return {**scores, "micro_f1": float(micro), "log_loss": float(row_losses(probs, labels).mean())}


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


def f1_scores(hits: Any, predicted: Any, true: Any) -> tuple[NDArray[np.float64], Any]:
    """F1 per class and the micro F1, from counts whose last axis is the class."""
    hits, total = np.asarray(hits, np.float64), np.asarray(predicted + true, np.float64)
    micro = 2 * hits.sum(axis=-1) / np.maximum(total.sum(axis=-1), 1)
    return 2 * hits / np.maximum(total, 1), micro


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
    order = np.argsort(-probs_N, kind="stable")
    sorted_N, hits_N = probs_N[order], true_N[order].cumsum()
    f1_N = 2 * hits_N / (np.arange(1, len(order) + 1) + num_true)
    f1_N[:-1][sorted_N[:-1] == sorted_N[1:]] = -1.0  # equal probabilities cannot be parted
    best = int(f1_N.argmax())
    below = sorted_N[best + 1] if best + 1 < len(order) else 0.0
    return float((sorted_N[best] + below) / 2)


def worst_mistakes(
    probs: Floats,
    labels: LabelArray,
    texts: Sequence[str],
    k: int,
    *,
    task: "Task",
    thresholds: Sequence[float] | None = None,
    pairs: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """The wrongly classified rows with the highest loss, the worst first.

    `texts` and `pairs` may be any sequence indexed by row; only the chosen rows are touched.
    """
    chosen, wrong_N = _choices(probs, labels, thresholds)
    losses_N = row_losses(probs, labels)
    wrong = np.flatnonzero(wrong_N)
    worst = wrong[np.argsort(-losses_N[wrong], kind="stable")[:k]]
    return [
        {
            "row": int(row),
            "text": _excerpt(texts[row]),
            **({"pair": _excerpt(pairs[row])} if pairs is not None else {}),
            "true": _names(labels[row], task),
            "predicted": _names(chosen[row], task),
            "probability": float(probs[row].max()),
            "loss": float(losses_N[row]),
        }
        for row in worst
    ]


def _choices(
    probs: Floats, labels: LabelArray, thresholds: Sequence[float] | None
) -> tuple[LabelArray, NDArray[np.bool_]]:
    """What is predicted for each row, and whether that is wrong [N]."""
    if labels.ndim == 1:
        predicted_N = probs.argmax(axis=1)
        return predicted_N, predicted_N != labels
    chosen_NC = probs >= (0.5 if thresholds is None else np.asarray(thresholds))
    return chosen_NC, (chosen_NC != (labels > 0)).any(axis=1)


def _names(choice: Any, task: "Task") -> str:
    if task.kind == "multi_label":
        return "|".join(str(task.labels[c]) for c in np.flatnonzero(choice))
    return str(task.labels[int(choice)])


def _excerpt(text: Any) -> str:
    # Arrow scalars have as_py; plain strings do not.
    text = str(text.as_py() if hasattr(text, "as_py") else text)
    return text if len(text) <= EXCERPT_CHARACTERS else text[:EXCERPT_CHARACTERS] + " ..."
