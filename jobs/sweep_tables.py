"""The tables of a sweep for a terminal, cut to its width; plain values in, Rich tables out."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from jobs.importance import Importance
from jobs.page_tables import percent, visible
from jobs.sweep_axes import value_text
from jobs.sweep_result import Sweep, Trial, read_sweep
from jobs.tables import cell

NARROW = 80
"""Characters: what every terminal has."""
MAX_VALUE_CHARACTERS = 20
MAX_CAUSE_CHARACTERS = 160
MAX_TRIALS_NAMED = 8
_GAP = 2
_BAR = "\u2588"


def trials_table(document: Mapping[str, Any], width: int = NARROW) -> Table:
    """The trials, best first; settings that have no room are named below the table.

    The causes of early ends stand there too.

    Args:
        document: what `sweep.json` holds.
        width: characters of the terminal.
    """
    sweep = read_sweep(visible(dict(document)))
    rows = sweep.ranked
    heading = ["trial", "status", sweep.metric[:MAX_VALUE_CHARACTERS], "step", "seconds"]
    columns = list(zip(heading, *(_fixed(sweep, trial) for trial in rows), strict=True))
    while len(columns) > 3 and _room(columns, width) < 0:
        columns.pop()
    num_fixed, hidden = len(columns), []
    headings = _leaves([axis.field for axis in sweep.axes])
    for field, name in headings.items():
        column = (name, *(_value(trial, field) for trial in rows))
        if _room([*columns, column], width) >= 0:
            columns.append(column)
        else:
            hidden.append(name)
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), caption_justify="left")
    for i, (name, *_) in enumerate(columns):
        is_number = i < num_fixed and i != 1
        table.add_column(Text(name), justify="right" if is_number else "left", no_wrap=True)
    for i, trial in enumerate(rows, start=1):
        style = "bold" if trial is sweep.best else None
        table.add_row(*(Text(column[i]) for column in columns), style=style)
    notes = list(_causes(rows))
    if hidden:
        notes.append(f"no room for {', '.join(hidden)}")
    lines = [line for note in notes for line in textwrap.wrap(note, width - 1)]
    table.caption = Text("\n".join(lines)) if lines else None
    return table


def importance_table(found: Importance) -> Table:
    """A line for each setting, the most important first; without an answer, the reason."""
    table = Table(box=box.SIMPLE, caption_justify="left")
    if found.shares is None:
        table.add_column("importance of the settings", overflow="fold")
        table.add_row(Text(f"cannot be told: {found.reason}"))
        return table
    table.add_column("setting", overflow="fold", max_width=42)
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for field, share in found.shares.items():
        bar = _BAR * round(24 * share)
        table.add_row(Text(visible(field)), Text(percent(share)), Text(bar, style="blue"))
    table.caption = Text(f"of the variation between {found.configurations:,} settings")
    return table


def _fixed(sweep: Sweep, trial: Trial) -> list[str]:
    mark = "*" if trial is sweep.best else ""
    seconds = "-" if trial.seconds is None else f"{trial.seconds:,.0f}"
    metric = value_text(trial.metric) if _is_odd(trial.metric) else cell(trial.metric)
    return [f"{mark}{trial.trial}", trial.words, metric, cell(trial.step), seconds]


def _is_odd(value: float | None) -> bool:
    """Whether four digits after the point would not show it."""
    return value is not None and value != 0 and not 1e-3 <= abs(value) < 1e5


def _value(trial: Trial, field: str) -> str:
    if field not in trial.params:
        return ""
    return _cut(" ".join(value_text(trial.params[field]).split()), MAX_VALUE_CHARACTERS)


def _causes(rows: Sequence[Trial]) -> Iterator[str]:
    """Why trials ended early: each cause once, with the trials that it ended."""
    found: dict[str, list[int]] = {}
    for trial in rows:
        if cause := " ".join((trial.cause or "").split()):
            found.setdefault(_cut(cause, MAX_CAUSE_CHARACTERS), []).append(trial.trial)
    for cause, trials in found.items():
        some = ", ".join(str(trial) for trial in trials[:MAX_TRIALS_NAMED])
        more = len(trials) - MAX_TRIALS_NAMED
        yield f"{some}{f' and {more:,} more' if more > 0 else ''}: {cause}"


def _room(columns: Sequence[Sequence[str]], width: int) -> int:
    """Characters that are left in a line; each column has a gap, and the table two edges."""
    return width - 2 - sum(_width(column) + _GAP for column in columns)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "\u2026"


def _width(texts: Sequence[str]) -> int:
    """Cells, not characters: some letters are two cells wide."""
    return max(Text(text).cell_len for text in texts)


def _leaves(fields: Sequence[str]) -> dict[str, str]:
    """The last part of each dotted name; the whole where two would be the same."""
    leaves = [field.rpartition(".")[2] for field in fields]
    return {
        field: field if leaves.count(leaf) > 1 else _cut(leaf, MAX_VALUE_CHARACTERS)
        for field, leaf in zip(fields, leaves, strict=True)
    }
