"""The pictures of a sweep, one function each: what was tried, what came of it, what it cost.

Colours are told apart by colour-blind readers too (blue, orange, and viridis, which also falls in
brightness), and every kind of trial has a mark of its own.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator

from jobs.figures import COLOURS, INK, QUIET, new_figure, short_label
from jobs.sweep_axes import ABSENT_PLACE, Axis, value_text
from jobs.sweep_result import Sweep, Trial

BLUE, BEST = COLOURS[0], COLOURS[1]
BAD = "#b42318"
OTHERS = "#7da7d9"
STEPS = (1, 2, 5, 10)
"""Of the marks on an axis, times a power of ten."""
_ENDED = ("FINISHED", "FAILED", "KILLED")
MAX_CURVE_POINTS = 80
"""Of one trial's curve: two hundred trials are drawn on one picture."""


def history_figure(sweep: Sweep) -> Figure:
    """Each trial's value in the order of the trials, and the best so far as a step line."""
    figure, axes = new_figure(4.8, 3.1)
    places = {trial.trial: place for place, trial in enumerate(sweep.trials, start=1)}
    _dots(axes, sweep, {t.trial: float(places[t.trial]) for t, _ in sweep.scored})
    so_far: list[tuple[int, float]] = []
    for trial, value in sweep.scored:
        if not so_far or sweep.is_better(value, so_far[-1][1]):
            so_far.append((places[trial.trial], value))
    if so_far:
        xs, ys = zip(*so_far, (len(sweep.trials), so_far[-1][1]), strict=True)
        axes.step(xs, ys, where="post", color=INK, lw=1.2, label="best so far", zorder=2)
    unscored = [places[t.trial] for t in sweep.trials if t.metric is None and t.status in _ENDED]
    if unscored:
        _value_axis(axes, sweep)
        floor = [0.02] * len(unscored)
        axes.plot(
            unscored, floor, "x", color=BAD, ms=5, mew=1.4, clip_on=False,
            transform=axes.get_xaxis_transform(), label="without a metric",
        )  # fmt: skip
    axes.set_xlim(0.4, len(sweep.trials) + 0.6)
    axes.set_xlabel("trials, in order")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=STEPS))
    _value_axis(axes, sweep)
    return _labelled(figure, axes)


def curves_of_trials_figure(sweep: Sweep) -> Figure:
    """The metric over the steps, a line for every trial; the best stands out."""
    figure, axes = new_figure(4.8, 3.1)
    best = sweep.best.trial if sweep.best else None
    drawn = [trial for trial in sweep.trials if trial.curve]
    alpha = 0.75 if len(drawn) <= 20 else 0.35
    for trial in drawn:
        steps, values = zip(*_thinned(trial.curve), strict=True)
        dot = "." if len(steps) == 1 else ""
        if trial.trial == best:
            axes.plot(
                steps, values, color=BEST, lw=2.2, marker=dot, zorder=5, label=f"best: trial {best}"
            )
        else:
            axes.plot(steps, values, color=OTHERS, lw=0.9, alpha=alpha, marker=dot, zorder=2)
    if sweep.best and not sweep.best.curve:
        best = None
    if len(drawn) > (best is not None):
        axes.plot([], [], color=OTHERS, lw=0.9, label="other trials")
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=STEPS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    _value_axis(axes, sweep, (value for trial in drawn for _, value in trial.curve))
    return _labelled(figure, axes)


def importance_figure(shares: Mapping[str, float]) -> Figure:
    """A bar for each dimension, the longest on top."""
    figure, axes = new_figure(4.8, 0.9 + 0.32 * len(shares))
    rows = range(len(shares))[::-1]
    axes.barh(rows, list(shares.values()), height=0.62, color=BLUE, alpha=0.8)
    axes.set_yticks(rows, [end_of(field, 32) for field in shares])
    for row, share in zip(rows, shares.values(), strict=True):
        axes.text(share, row, f" {100 * share:.0f}%", va="center", fontsize=8, color=INK)
    axes.set_xlim(0, 1.12 * max(shares.values()))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f}%"))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    axes.grid(False, axis="y")
    axes.set_xlabel("share of the variation explained")
    return literal(figure)


def slice_figure(sweep: Sweep, axis: Axis) -> Figure:
    """The metric against one dimension."""
    figure, axes = new_figure(3.1, 2.5)
    jitter = 0.03 if axis.scale == "category" else 0.0
    places = {t.trial: axis.place(t.params) + jitter * jitter_of(t) for t, _ in sweep.scored}
    _dots(axes, sweep, places, has_legend=False)
    marks = axis.ticks()
    texts = [short_label(text) for _, text in marks]
    is_long = sum(len(text) for text in texts) > 34
    axes.set_xticks([place for place, _ in marks], texts)
    if is_long:
        axes.set_xticks([place for place, _ in marks], [end_of(text, 14) for text in texts])
        for tick in axes.get_xticklabels():
            tick.set(rotation=28, ha="right", rotation_mode="anchor")
    axes.set_xlim(ABSENT_PLACE - 0.08 if axis.has_absent else -0.07, 1.07)
    axes.set_xlabel(end_of(axis.field, 30) + (" (log scale)" if axis.scale == "log" else ""))
    _value_axis(axes, sweep)
    return literal(figure)


def cost_figure(sweep: Sweep) -> Figure:
    """Seconds against the metric; a line joins the trials that nothing cheaper beats."""
    figure, axes = new_figure(4.8, 3.1)
    seconds = {t.trial: t.seconds for t, _ in sweep.scored if t.seconds is not None}
    _dots(axes, sweep, seconds)
    front = pareto_front(sweep)
    if len(front) > 1:
        xs, ys = zip(*((t.seconds, t.metric) for t in front), strict=True)
        axes.step(xs, ys, where="post", color=INK, lw=1.2, zorder=2, label="nothing cheaper beats")
    positive = [value for value in seconds.values() if value > 0]
    if len(positive) == len(seconds) > 1 and max(positive) / min(positive) > 30:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: value_text(float(value))))
        axes.minorticks_off()
    else:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    axes.set_xlabel("seconds of the trial")
    _value_axis(axes, sweep)
    return _labelled(figure, axes)


def pareto_front(sweep: Sweep) -> list[Trial]:
    """The trials that no trial of the same or a lower cost beats, cheapest first."""
    costs = [(t.seconds, sweep.badness(v), t) for t, v in sweep.scored if t.seconds is not None]
    front: list[tuple[float, Trial]] = []
    for _, badness, trial in sorted(costs, key=lambda cost: cost[:2]):
        if not front or badness < front[-1][0]:
            front.append((badness, trial))
    return [trial for _, trial in front]


def _dots(
    axes: Axes, sweep: Sweep, places: Mapping[int, float], *, has_legend: bool = True
) -> None:
    """The scored trials that have a place, each kind with its own mark."""
    limits = sweep.limits() or (0.0, 0.0)
    best = sweep.best.trial if sweep.best else None
    groups: dict[str, list[tuple[float, float]]] = {}
    for trial, value in sweep.scored:
        if trial.trial in places and trial.trial != best:
            shown = min(limits[1], max(limits[0], value))
            groups.setdefault(_group(trial), []).append((places[trial.trial], shown))
    if sweep.best is not None and sweep.best.metric is not None and best in places:
        groups["best"] = [(places[sweep.best.trial], sweep.best.metric)]
    for name, style in _MARKS.items():
        if name in groups:
            xs, ys = zip(*groups[name], strict=True)
            label = name if has_legend else None
            axes.plot(xs, ys, ls="", label=label, zorder=6 if name == "best" else 4, **style)


def _group(trial: Trial) -> str:
    words = trial.words
    return words if words in _MARKS else "not finished"


_MARKS: dict[str, dict[str, Any]] = {
    "finished": {"marker": "o", "ms": 4.5, "color": BLUE, "alpha": 0.75, "mew": 0},
    "pruned": {"marker": "v", "ms": 5, "mfc": "none", "mec": QUIET, "mew": 1},
    "failed": {"marker": "x", "ms": 5, "mec": BAD, "mew": 1.4},
    "not finished": {"marker": "o", "ms": 4.5, "mfc": "none", "mec": BLUE, "mew": 1},
    "best": {"marker": "*", "ms": 12, "mfc": BEST, "mec": "white", "mew": 0.8},
}


def _value_axis(axes: Axes, sweep: Sweep, values: Iterable[float] = ()) -> None:
    """The metric upwards, within the limits of the trials' metrics."""
    low, high = sweep.limits() or (0.0, 1.0)
    drawn = list(values)
    if drawn and sweep.mode == "max":
        low = max(min(drawn), low - 3 * (high - low)) if high > low else min(drawn)
    elif drawn:
        high = min(max(drawn), high + 3 * (high - low)) if high > low else max(drawn)
    margin = 0.07 * (high - low) or 0.05 * (abs(high) or 1.0)
    axes.set_ylim(low - margin, high + margin)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    axes.set_ylabel(short_label(sweep.metric))


def _labelled(figure: Figure, axes: Axes) -> Figure:
    """With a legend above the picture, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        _legend(figure, handles, labels)
    return literal(figure)


def _legend(figure: Figure, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    figure.legend(
        handles, labels, loc="outside upper left", ncols=4, frameon=False, fontsize=8,
        handletextpad=0.4, columnspacing=1.2, handlelength=1.4,
    )  # fmt: skip


def literal(figure: Figure) -> Figure:
    """Names are drawn as they are written: dollar signs are not mathematics."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    return figure


def end_of(text: str, width: int) -> str:
    """At most this wide, its end kept: names of fields differ there."""
    shown = "".join(c if c.isprintable() else "\ufffd" for c in text)
    return shown if len(shown) <= width else "\u2026" + shown[1 - width :]


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    stride = -(-len(points) // MAX_CURVE_POINTS)
    return points[::-stride][::-1]  # the last one is always there


def jitter_of(trial: Trial) -> float:
    """From -1 to 1, the same for the same trial, and spread out (the golden ratio)."""
    return 2 * ((trial.trial * 0.618034) % 1) - 1
