"""The rows a model got wrong with the most confidence, for people to read.

Letters in array names: N rows, C classes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpt2cls.metrics import Floats, LabelArray, predictions, row_losses

if TYPE_CHECKING:
    from gpt2cls.data.tasks import Task

EXCERPT_CHARACTERS = 300


def worst_mistakes(
    probs: Floats,
    labels: LabelArray,
    texts: Sequence[Any],
    k: int,
    *,
    task: "Task",
    thresholds: Sequence[float] | None = None,
    pairs: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Counts, and the `k` wrongly classified rows with the highest loss, the worst first.

    `texts` and `pairs` may be lists or Arrow arrays; only the chosen rows are touched.
    """
    if task.kind == "regression":
        return _largest_errors(probs[:, 0], labels, texts, k, pairs)
    predicted = predictions(probs, labels.ndim, thresholds)
    wrong_N = predicted != labels if labels.ndim == 1 else (predicted != labels).any(axis=1)
    losses_N = row_losses(probs, labels)
    wrong = np.flatnonzero(wrong_N)
    worst = wrong[np.argsort(-losses_N[wrong], kind="stable")[:k]]
    mistakes = [
        {
            "row": int(row),
            "text": _excerpt(texts[row]),
            **({"pair": _excerpt(pairs[row])} if pairs is not None else {}),
            "true": _names(labels[row], task),
            "predicted": _names(predicted[row], task),
            "probability": float(probs[row].max()),
            "probability_true": float(probs[row, labels[row]]) if labels.ndim == 1 else None,
            "loss": float(losses_N[row]),
        }
        for row in worst
    ]
    return {"rows": len(labels), "wrong": len(wrong), "mistakes": mistakes}


def _largest_errors(
    values_N: Floats,
    labels_N: Floats,
    texts: Sequence[Any],
    k: int,
    pairs: Sequence[Any] | None,
) -> dict[str, Any]:
    """The rows whose value is furthest from the label; none is right or wrong."""
    errors_N = values_N.astype(np.float64) - labels_N
    worst = np.argsort(-np.abs(errors_N), kind="stable")[:k]
    mistakes = [
        {
            "row": int(row),
            "text": _excerpt(texts[row]),
            **({"pair": _excerpt(pairs[row])} if pairs is not None else {}),
            "true": f"{labels_N[row]:.4g}",
            "predicted": f"{values_N[row]:.4g}",
            "error": float(errors_N[row]),
        }
        for row in worst
    ]
    return {"rows": len(labels_N), "wrong": None, "mistakes": mistakes}


def _names(choice: NDArray[Any], task: "Task") -> str:
    if task.kind == "multi_label":
        return "|".join(str(task.labels[c]) for c in np.flatnonzero(choice))
    return str(task.labels[int(choice)])


def _excerpt(text: Any) -> str:
    text = text.as_py() if hasattr(text, "as_py") else text  # an Arrow scalar has it
    whole = " | ".join(text) if isinstance(text, list) else str(text)
    return whole if len(whole) <= EXCERPT_CHARACTERS else whole[:EXCERPT_CHARACTERS] + " ..."
