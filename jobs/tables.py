"""Results as tables for a person; plain values in, Rich tables out."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

_OF_LABELS = ("accuracy", "macro_f1", "micro_f1", "exact_match", "log_loss", "ece")
_OF_VALUES = ("pearson", "spearman", "mse")
_OF_TEXTS = ("loss", "perplexity", "bits_per_byte")
_HEADLINES = (*_OF_LABELS, *_OF_VALUES, *_OF_TEXTS)


def plain_table(columns: Iterable[str], rows: Iterable[Iterable[Any]], title: str = "") -> Table:
    """A table of texts; numbers stand right."""
    cells = [list(row) for row in rows]
    table = Table(box=box.SIMPLE, title=title or None, title_justify="left")
    for i, name in enumerate(columns):
        is_number = bool(cells) and all(isinstance(row[i], int | float | None) for row in cells)
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell(value)) for value in row))  # Text: never read as markup
    return table


def cell(value: Any) -> str:
    """A value as it stands in a table."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def metrics_table(
    test: Mapping[str, Any], baselines: Mapping[str, Mapping[str, Any]], title: str
) -> Table:
    """Headline metrics of the model with their 95% intervals, beside the baselines."""
    rows = []
    for name in (name for name in _HEADLINES if name in test):
        low, high = test.get(f"{name}_ci") or (None, None)
        interval = f"{low:.4f} to {high:.4f}" if low is not None and high is not None else "-"
        rows.append([name, test[name], interval, *(b.get(name) for b in baselines.values())])
    return plain_table(["metric", "model", "95% interval", *baselines], rows, title)


def beside(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the table of a job's result is shown beside, by name.

    On validation the weights were chosen, so what it promised flatters; then come the baselines,
    of an ensemble its members.
    """
    both = result.get("test") and result.get("validation")
    flatters = {"on validation": result["validation"]} if both else {}
    return flatters | (result.get("baselines") or result.get("members") or {})


def per_class_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Precision, recall and F1 of each class."""
    names = ("label", "precision", "recall", "f1", "support")
    return plain_table(names, [[row.get(name) for name in names] for row in rows])


def moment(unix_s: float | None) -> str:
    """A time in UTC, to the second."""
    return "-" if unix_s is None else f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d %H:%M:%S}"
