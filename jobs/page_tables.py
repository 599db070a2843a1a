"""The tables of the report: from the documents in a job's folder to rows that can be printed."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

Document = dict[str, Any]

MAX_TEXT_CHARACTERS = 2000
MAX_LABELS = 60
"""Rows of the table of label counts."""
NAMES = {
    "on validation": "This model, on validation (it was chosen there)",
    "majority": "Majority class",
    "prior": "Label shares",
    "mean": "Mean of the training labels",
    "words": "Words alone, without their overlap",
    "tfidf": "TF-IDF + logistic regression",
}
METRICS = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "micro_f1": "Micro F1",
    "average_precision": "Avg. precision",
    "log_loss": "Log loss",
    "ece": "Calibration error",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "mse": "Squared error",
    "loss": "Loss",
    "perplexity": "Perplexity",
    "bits_per_byte": "Bits per byte",
}

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def headline(table: Document, baselines: Mapping[str, Document]) -> Document:
    """The model and the baselines with the same metrics, each with its interval."""
    rows = [("This model", table)] if table else []
    names_of = NAMES | ({"majority": "No label at all"} if "thresholds" in table else {})
    names_of |= {"tfidf": _linear_name(table)}
    rows += [(names_of.get(name, name), row) for name, row in baselines.items()]
    names = [name for name in METRICS if any(row.get(name) is not None for _, row in rows)]
    if "thresholds" not in table:  # of several labels
        names = [name for name in names if name != "micro_f1"]  # it is the accuracy
    shown = [
        {
            "name": name,
            "is_ours": row is table,
            "note": row.get("note"),
            "cells": [_cell(row, metric) for metric in names],
        }
        for name, row in rows
    ]
    return {"metrics": names, "rows": shown}


def balance(data: Document) -> Document:
    """Rows of the most frequent labels in each split."""
    labels, splits = data.get("labels") or {}, list(data.get("splits") or {})
    train = max(1, (data.get("splits") or {}).get("train", 1))
    by_rows = sorted(labels.items(), key=lambda item: -item[1].get("train", 0))
    rows = [
        {
            "label": label,
            "counts": [counts.get(split, 0) for split in splits],
            "share": counts.get("train", 0) / train,
        }
        for label, counts in by_rows[:MAX_LABELS]
    ]
    return {"splits": splits, "rows": rows, "left_out": len(labels) - len(rows)}


def halves(settings: Iterator[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    rows = list(settings)
    middle = -(-len(rows) // 2)
    return [half for half in (rows[:middle], rows[middle:]) if half]


def _cell(row: Document, metric: str) -> Document:
    low, high = row.get(f"{metric}_ci") or (None, None)
    return {"value": row.get(metric), "low": low, "high": high}


def _linear_name(table: Document) -> str:
    return "TF-IDF + ridge regression" if "pearson" in table else NAMES["tfidf"]


def verdict(table: Document, baselines: Mapping[str, Document]) -> tuple[str, str] | None:
    """(tone, sentence) on whether the network is worth it next to the linear model."""
    linear = baselines.get("tfidf") or {}
    metric = "macro_f1" if "thresholds" in table else "accuracy"
    metric = "pearson" if "pearson" in table else metric
    if table.get(metric) is None or linear.get(metric) is None:
        return None
    name = {"macro_f1": "macro F1", "pearson": "correlation"}.get(metric, metric)
    model = _linear_name(table)
    gain = 100 * (table[metric] - linear[metric])
    low, high = table.get(f"{metric}_ci") or (table[metric], table[metric])
    if low > linear[metric]:
        return "good", f"Beats {model} by {gain:.1f} points of {name}."
    if high < linear[metric]:
        return "bad", (
            f"A linear model is better: {model} leads by {-gain:.1f} points of {name}. It is also "
            "cheaper to run."
        )
    return "even", (
        f"Not told apart from {model}: {gain:+.1f} points of {name}, within the 95% interval. The "
        "linear model is cheaper to run."
    )


def most_confused(table: Document) -> list[Document]:
    """Pairs of classes that were taken for each other, the most frequent first."""
    labels = [row["label"] for row in table.get("per_class") or []]
    cells = [
        {"true": labels[i], "predicted": labels[j], "count": count, "share": count / sum(row)}
        for i, row in enumerate(table.get("confusion") or [])
        for j, count in enumerate(row)
        if count and i != j
    ]
    return sorted(cells, key=lambda cell: -cell["count"])


def flat(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, value) of every setting."""
    for name, value in document.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)


def number(value: Any) -> str:
    """A metric to three digits, a count with separators, and a dash for nothing."""
    if value is None:
        return "\u2013"
    if isinstance(value, bool | str):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def short(value: Any) -> str:
    """A length, to the nearest whole."""
    return "\u2013" if value is None else f"{value:,.0f}"


def percent(value: Any) -> str:
    return "\u2013" if value is None else f"{100 * value:.1f}%"


def visible(value: Any) -> Any:
    """The value with control characters in its texts shown, and long texts cut with a mark."""
    if isinstance(value, str):
        text = _UNSEEN.sub(_shown, value[:MAX_TEXT_CHARACTERS])
        cut = len(value) - MAX_TEXT_CHARACTERS
        return f"{text} [... {cut:,} more characters]" if cut > 0 else text
    if isinstance(value, list):
        return [visible(item) for item in value]
    if isinstance(value, dict):
        return {visible(name): visible(item) for name, item in value.items()}
    return value


def _shown(found: re.Match[str]) -> str:
    code = ord(found[0])
    return chr(0x2400 + code) if code < 0x20 else "\ufffd"  # the picture of a control character
