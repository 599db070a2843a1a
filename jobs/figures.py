"""The pictures of a job, for the report and for MLflow.

Drawn with matplotlib's objects alone: no pyplot, so no global state and no display.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

INK, QUIET, GRID = "#1f2933", "#66727f", "#e4e8ec"
COLOURS = ("#1f6feb", "#d9822b", "#2e8b57", "#a23b72", "#6b5b95", "#4a90a4")
MAX_NUMBERED_CLASSES = 30
"""A larger confusion matrix is drawn without a number in each cell."""
MAX_LABEL_CHARACTERS = 24
Points = Sequence[tuple[float, float]]


def confusion_figure(confusion: Sequence[Sequence[int]], labels: Sequence[str]) -> Figure:
    """Counts of true (down) against predicted (across); the colour is the share of the row."""
    num_classes = len(labels)
    side = min(11.0, max(3.6, 1.6 + 0.52 * num_classes))
    figure, axes = new_figure(side, side)
    shares = [[count / max(1, sum(row)) for count in row] for row in confusion]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    names = [short_label(label) for label in labels]
    size = 9 if num_classes <= 12 else 7 if num_classes <= 30 else 5
    axes.set_xticks(range(num_classes), names, rotation=40, fontsize=size)
    axes.set_yticks(range(num_classes), names, fontsize=size)
    for tick in axes.get_xticklabels():
        tick.set(ha="right", rotation_mode="anchor")
    for tick in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        tick.set_parse_math(False)  # a label may hold dollar signs
    axes.grid(False)
    axes.tick_params(length=0)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if num_classes <= MAX_NUMBERED_CLASSES:
        _write_counts(axes, confusion, shares, size)
    return figure


def _write_counts(
    axes: Axes,
    confusion: Sequence[Sequence[int]],
    shares: Sequence[Sequence[float]],
    size: float,
) -> None:
    for i, row in enumerate(confusion):
        for j, count in enumerate(row):
            if count:
                colour = "white" if shares[i][j] > 0.55 else INK
                axes.text(j, i, str(count), ha="center", va="center", color=colour, fontsize=size)


def reliability_figure(reliability: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy against confidence, bin by bin; below it how many decisions each bin holds."""
    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for axes in (upper, lower):
        style_axes(axes)
    filled = [row for row in reliability if row["count"]]
    middles = [(row["low"] + row["high"]) / 2 for row in filled]
    width = 1 / max(1, len(reliability)) * 0.9
    upper.plot([0, 1], [0, 1], color=QUIET, lw=1, ls="--", label="perfectly calibrated")
    upper.bar(middles, [r["accuracy"] for r in filled], width, color=COLOURS[0], alpha=0.35)
    upper.plot(
        [row["confidence"] for row in filled],
        [row["accuracy"] for row in filled],
        color=COLOURS[0],
        marker="o",
        ms=4,
        lw=1.2,
        label="this model",
    )
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    upper.legend(frameon=False, fontsize=8, loc="upper left")
    lower.bar(middles, [row["count"] for row in filled], width, color=QUIET, alpha=0.6)
    lower.set(xlabel="confidence", ylabel="decisions")
    lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    return figure


def fit_figure(fit: Sequence[Mapping[str, Any]]) -> Figure:
    """Labels against predicted values: the mean of each tenth, and where most of its labels lie."""
    figure, axes = new_figure(4.6, 4.6)
    values, labels = [row["value"] for row in fit], [row["label"] for row in fit]
    ends = [min(values + labels), max(values + labels)]
    axes.plot(ends, ends, color=QUIET, lw=1, ls="--", label="right on average")
    spread = [
        [row["label"] - row["low"] for row in fit],
        [row["high"] - row["label"] for row in fit],
    ]
    # A mean can lie outside the 80% where few rows are far off.
    spread = [[max(length, 0.0) for length in side] for side in spread]
    axes.errorbar(
        values, labels, spread, color=COLOURS[0], marker="o", ms=4, lw=1.2, elinewidth=0.8,
        label="this model; 80% of labels",
    )  # fmt: skip
    axes.set(xlabel="predicted", ylabel="label")
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def curves_figure(
    curves: Mapping[str, Points], *, ylabel: str, measured: Mapping[str, Points] | None = None
) -> Figure:
    """Lines over the step; those of `measured` are dotted, for what is known now and then."""
    figure, axes = new_figure(4.6, 2.9)
    lines = [(name, points, "") for name, points in curves.items()]
    lines += [(name, points, "o") for name, points in (measured or {}).items()]
    for (name, points, marker), colour in zip(lines, COLOURS * len(lines), strict=False):
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=colour, lw=1.4, marker=marker, ms=4, label=name)
    axes.set_xlabel("step")
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=8)
    return figure


def png(figure: Figure) -> bytes:
    """The picture as a PNG file."""
    return _saved(figure, "png")


def svg(figure: Figure) -> bytes:
    """The picture as an SVG file, with its text as text; the same picture gives the same bytes."""
    return _saved(figure, "svg")


def _saved(figure: Figure, kind: str) -> bytes:
    import matplotlib as mpl

    FigureCanvasAgg(figure)
    file = io.BytesIO()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "gpt2cls", "font.family": "sans-serif"}
    options: dict[str, Any] = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": 150}
    with mpl.rc_context(settings), warnings.catch_warnings():
        # In an SVG the reader's fonts draw what ours lack; in a PNG an empty box stands for it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(file, format=kind, **options)
    return file.getvalue()


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A picture in the style of the report, in inches, with one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    style_axes(axes)
    return figure, axes


def style_axes(axes: Axes) -> None:
    """Quiet axes: what is measured stands out."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(colors=QUIET, labelsize=8, length=0)
    axes.xaxis.label.set(color=QUIET, fontsize=9)
    axes.yaxis.label.set(color=QUIET, fontsize=9)
    axes.grid(color=GRID, lw=0.8)
    axes.set_axisbelow(True)


def short_label(label: str) -> str:
    """A name that fits beside an axis, with a mark where it was cut."""
    text = "".join(c if c.isprintable() else "\ufffd" for c in label)
    return (
        text if len(text) <= MAX_LABEL_CHARACTERS else text[: MAX_LABEL_CHARACTERS - 1] + "\u2026"
    )
