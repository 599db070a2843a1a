"""A sweep as parallel coordinates: which settings went together, and what came of them."""

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure

from jobs.figures import INK, QUIET, new_figure, short_label
from jobs.sweep_axes import ABSENT_PLACE, Axis
from jobs.sweep_figures import BEST, end_of, jitter_of, literal
from jobs.sweep_result import Sweep, Trial


def parallel_figure(sweep: Sweep) -> Figure:
    """One upright axis for each dimension and one for the metric; a line is a trial."""
    num_axes = len(sweep.axes) + 1
    figure, axes = new_figure(max(6.0, 1.25 * num_axes), 4.3)
    limits = sweep.limits() or (0.0, 1.0)
    is_max, is_few = sweep.mode == "max", len(sweep.trials) <= 40
    colour = Normalize(*limits, clip=True)
    palette = _palette(is_max)
    metric_axis = Axis(sweep.metric, "linear", *limits)
    for trial, value in sorted(sweep.scored, key=lambda item: sweep.badness(item[1]))[::-1]:
        shown = min(limits[1], max(limits[0], value))
        heights = [axis.place(trial.params) + _spread(axis, trial) for axis in sweep.axes]
        heights.append(metric_axis.place({sweep.metric: shown}))
        is_best = sweep.best is not None and trial.trial == sweep.best.trial
        if is_best:
            axes.plot(heights, color="white", lw=5, zorder=5)
        axes.plot(
            heights,
            color=BEST if is_best else palette(colour(value)),
            lw=2.6 if is_best else 1.0 if is_few else 0.8,
            marker="o" if is_best else "",
            ms=5,
            alpha=1.0 if is_best else 0.8 if is_few else 0.45,
            zorder=6 if is_best else 3,
        )
    for i, axis in enumerate((*sweep.axes, metric_axis)):
        _upright(axes, i, axis, is_last=i == num_axes - 1)
    gradient = [[i / 63] for i in range(64)]
    axes.imshow(
        gradient, cmap=palette, vmin=0, vmax=1, aspect="auto", origin="lower", zorder=4,
        extent=(num_axes - 1.035, num_axes - 0.965, 0, 1),
    )  # fmt: skip
    num_lines = max(len(_heading(axis)) for axis in sweep.axes) if sweep.axes else 1
    _bare(axes, num_axes, num_lines, has_absent=any(axis.has_absent for axis in sweep.axes))
    return literal(figure)


def _palette(is_max: bool) -> Colormap:
    # the best is dark, so that it is seen on white
    return colormaps["viridis_r"] if is_max else colormaps["viridis"]


def _upright(axes: Axes, place: int, axis: Axis, *, is_last: bool) -> None:
    """One axis of the parallel coordinates with its marks, and its name below."""
    bottom = ABSENT_PLACE if axis.has_absent else 0
    axes.plot([place, place], [bottom, 1], color=QUIET, lw=1, zorder=4)
    for height, text in axis.ticks():
        axes.text(
            place + 0.055,
            height,
            end_of(text, 14),
            fontsize=7.5,
            color=INK,
            va="center",
            zorder=8,
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8},
        )
    name = "\n".join(_heading(axis))
    weight = "bold" if is_last else "normal"
    axes.text(place, 1.06, name, fontsize=8, color=INK, ha="center", va="bottom", weight=weight)


def _heading(axis: Axis) -> list[str]:
    return wrapped_name(axis.field) + (["(log scale)"] if axis.scale == "log" else [])


def _bare(axes: Axes, num_axes: int, num_lines: int, *, has_absent: bool) -> None:
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlim(-0.35, num_axes - 0.5)
    axes.set_ylim(ABSENT_PLACE - 0.05 if has_absent else -0.05, 1.02 + 0.065 * num_lines)


def wrapped_name(field: str, width: int = 17, max_lines: int = 3) -> list[str]:
    """A dotted name over lines, broken after dots and underscores."""
    lines = [""]
    for character in field:
        is_break = lines[-1][-1:] in (".", "_", " ") and len(lines[-1]) > width * 0.4
        if is_break or len(lines[-1]) >= width:
            lines.append("")
        lines[-1] += character
    if len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], "\u2026" + "".join(lines[max_lines - 1 :])[1 - width :]]
    return [short_label(line) for line in lines]


def _spread(axis: Axis, trial: Trial) -> float:
    return 0.012 * jitter_of(trial) if axis.scale == "category" else 0.0
