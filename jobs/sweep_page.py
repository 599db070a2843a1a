"""The report of a sweep: one HTML page that needs no other file, no script and no network.

Reads `sweep.json` of the job's folder alone, also while the sweep still runs. Every text in it
is a stranger's: it is escaped by the template, and control characters are made visible.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from gpt2cls.data.write import written_aside
from jobs.importance import Importance, importance
from jobs.page import duration, embedded, filled, read_document
from jobs.page_tables import Document, flat, halves
from jobs.states import FINAL
from jobs.sweep_axes import value_text
from jobs.sweep_figures import (
    cost_figure,
    curves_of_trials_figure,
    history_figure,
    importance_figure,
    slice_figure,
)
from jobs.sweep_parallel import parallel_figure
from jobs.sweep_result import Sweep, Trial, read_sweep

SWEEP_FILE = "sweep.json"
MAX_SETTINGS_SAID = 6
"""In the verdict; all of them stand right below it."""


def write_sweep_page(job_dir: Path, output: Path) -> Path:
    """Write the page of the sweep whose folder this is; it appears whole or not at all.

    Raises:
        RequestError: the folder of the output cannot be written to.
    """
    page = render_sweep(job_dir)
    with written_aside(output) as aside:
        aside.write_text(page, encoding="utf-8")
    return output


def render_sweep(job_dir: Path) -> str:
    """The page as text."""
    return filled("sweep.html.j2", sweep_view(read_document(job_dir / SWEEP_FILE), job_dir.name))


def sweep_view(document: Document, job_id: str) -> Document:
    """All that the page shows, as plain values."""
    sweep = read_sweep(document)
    state = str(document.get("state") or "RUNNING")
    shares = importance(document)
    return {
        "title": str(document.get("name") or job_id),
        "job_id": str(document.get("job_id") or job_id),
        "facts": list(_facts(document, sweep)),
        "state": state,
        "has_ended": state in FINAL,
        "is_good": state == "SUCCEEDED",
        "metric": sweep.metric,
        "lower_is_better": sweep.mode == "min",
        "tiles": list(_tiles(document, sweep)),
        "verdict": _verdict(sweep),
        "edges": list(_edges(sweep)),
        "best": _best(sweep),
        "fields": [_block_and_leaf(axis.field) for axis in sweep.axes],
        "trials": _rows(sweep),
        "has_seeds": len({trial.seed for trial in sweep.trials}) > 1,
        "repeats": _repeats(sweep),
        "course": list(_course(sweep)),
        "importance": shares,
        "importance_picture": _importance_picture(shares),
        "parallel": _parallel(sweep),
        "slices": [embedded(slice_figure(sweep, axis), axis.field) for axis in _varied(sweep)],
        "cost": _cost(sweep),
        "space": list(document.get("space") or []),
        "settings": halves(flat(document.get("search") or {})),
        "outliers": _outliers(sweep),
    }


def score(value: float | None) -> str:
    """A metric to four digits after the point; very large and very small ones by exponent."""
    if value is None:
        return "\u2013"
    is_plain = value == 0 or 1e-3 <= abs(value) < 1e5
    return f"{value:.4f}" if is_plain else value_text(value)


def _facts(document: Document, sweep: Sweep) -> Iterator[str]:
    """The line under the title."""
    search = document.get("search") or {}
    yield f"sweep {document['job_id']}" if document.get("job_id") else "sweep"
    if document.get("state"):
        yield str(document["state"]).lower()
    yield f"{sweep.metric}, {'lowest' if sweep.mode == 'min' else 'highest'} wins"
    for name in ("scheduler", "searcher"):
        if search.get(name):
            yield f"{name} {search[name]}"
    if document.get("seconds"):
        has_ended = document.get("state") in FINAL
        yield f"{'took' if has_ended else 'running for'} {duration(document['seconds'])}"


def _tiles(document: Document, sweep: Sweep) -> Iterator[Document]:
    """The numbers at the top: (name, value, small print)."""
    if sweep.best is not None:
        note = f"trial {sweep.best.trial}"
        yield {"name": f"Best {sweep.metric}", "value": score(sweep.best.metric), "note": note}
        yield {"name": "Median trial", "value": score(sweep.median), "note": ""}
    words = [trial.words for trial in sweep.trials]
    others = ((word, words.count(word)) for word in dict.fromkeys(words) if word != "finished")
    yield {
        "name": "Trials",
        "value": f"{len(words):,}",
        "note": ", ".join(f"{count:,} {word}" for word, count in others),
    }
    if (total := sum(trial.seconds or 0.0 for trial in sweep.trials)) > 0:
        took = document.get("seconds")
        note = f"in {duration(took)}" if took else ""
        yield {"name": "Time of all trials", "value": duration(total), "note": note}


def _verdict(sweep: Sweep) -> tuple[str, str] | None:
    """(tone, sentence) on the best trial beside the others."""
    best, median = sweep.best, sweep.median
    if best is None or best.metric is None or median is None:
        return None
    said = f"Trial {best.trial} is best: {sweep.metric} {score(best.metric)}"
    if len(sweep.scored) == 1:
        return "even", f"{said}. It is the only trial with a metric, so there is nothing beside it."
    gain = sweep.badness(median) - sweep.badness(best.metric)
    if gain <= 0:
        return "even", f"{said}, no better than the median trial ({score(median)})."
    word = "below" if sweep.mode == "min" else "above"
    settings = [f"{name} = {value_text(value)}" for name, value in best.params.items()]
    if len(settings) > MAX_SETTINGS_SAID:
        settings[MAX_SETTINGS_SAID:] = [f"and {len(settings) - MAX_SETTINGS_SAID} more below"]
    shown = f" With {', '.join(settings)}." if settings else ""
    return "good", f"{said}, {score(gain)} {word} the median trial ({score(median)}).{shown}"


def _edges(sweep: Sweep) -> Iterator[str]:
    """Where the best trial says that the space may be too small."""
    if sweep.best is not None and len(sweep.scored) > 1:
        for axis in sweep.axes:
            if end := axis.edge(sweep.best.params):
                value = value_text(sweep.best.params[axis.field])
                yield f"{axis.field} = {value} is at the {end} end of its range."


def _best(sweep: Sweep) -> Document | None:
    """The settings of the best trial, to copy, and what it changed on its way."""
    if sweep.best is None:
        return None
    changes = [
        {"step": step, "text": ", ".join(f"{k} = {value_text(v)}" for k, v in new.items())}
        for step, new in sweep.best.changes
    ]
    text = settings_yaml(sweep.best.params) if sweep.best.params else ""
    return {"trial": sweep.best.trial, "yaml": text, "changes": changes}


def settings_yaml(params: Mapping[str, Any]) -> str:
    """Dotted names as the blocks of a job file.

    A name that is both a value and a block cannot be written so; all names stay dotted then.
    """
    tree: dict[str, Any] = {}
    for name, value in params.items():
        *blocks, leaf = name.split(".")
        place = tree
        for block in blocks:
            place = place.setdefault(block, {})
            if not isinstance(place, dict):
                return _yaml(dict(params))
        if leaf in place:
            return _yaml(dict(params))
        place[leaf] = value
    return _yaml(tree)


def _yaml(tree: dict[str, Any]) -> str:
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, default_flow_style=False)


def _rows(sweep: Sweep) -> list[Document]:
    """The trials, best first."""
    best = sweep.best.trial if sweep.best else None
    return [
        {
            "trial": trial.trial,
            "is_best": trial.trial == best,
            "words": trial.words,
            "is_bad": trial.status in ("FAILED", "KILLED"),
            "metric": score(trial.metric),
            "step": trial.step,
            "seconds": "\u2013" if trial.seconds is None else duration(trial.seconds),
            "seed": trial.seed,
            "values": [_value(trial, axis.field) for axis in sweep.axes],
            "cause": trial.cause or "",
        }
        for trial in sweep.ranked
    ]


def _block_and_leaf(field: str) -> tuple[str, str]:
    block, dot, leaf = field.rpartition(".")
    return block + dot, leaf


def _value(trial: Trial, field: str) -> str:
    return value_text(trial.params[field]) if field in trial.params else ""


def _repeats(sweep: Sweep) -> list[Document]:
    """Settings that were tried with several seeds: mean and extremes, best mean first."""
    found: dict[int, list[tuple[Trial, float]]] = {}
    for trial, value in sweep.scored:
        found.setdefault(trial.configuration, []).append((trial, value))
    rows: list[Document] = [
        {
            "configuration": number,
            "trials": ", ".join(str(trial.trial) for trial, _ in repeats),
            "mean": fmean(value for _, value in repeats),
            "low": score(min(value for _, value in repeats)),
            "high": score(max(value for _, value in repeats)),
            "values": [_value(repeats[0][0], axis.field) for axis in sweep.axes],
        }
        for number, repeats in found.items()
    ]
    if all(len(repeats) < 2 for repeats in found.values()):
        return []
    rows.sort(key=lambda row: sweep.badness(row["mean"]))
    return [row | {"mean": score(row["mean"])} for row in rows]


def _course(sweep: Sweep) -> Iterator[Document]:
    if sweep.scored:
        yield embedded(
            history_figure(sweep), f"The {sweep.metric} of each trial, and the best so far"
        )
    if any(trial.curve for trial in sweep.trials):
        yield embedded(
            curves_of_trials_figure(sweep), f"The {sweep.metric} of each trial while it learned"
        )


def _varied(sweep: Sweep) -> list[Any]:
    """The dimensions worth a picture: their values differ among the trials with a metric."""
    if not sweep.scored:
        return []
    return [
        axis
        for axis in sweep.axes
        if len({axis.place(trial.params) for trial, _ in sweep.scored}) > 1
    ]


def _importance_picture(found: Importance) -> Document | None:
    if found.shares is None or found.explained is None:
        return None
    caption = (
        f"From {found.configurations:,} settings; together they explain about "
        f"{100 * found.explained:.0f}% of the variation in trials not learned from"
    )
    return embedded(importance_figure(found.shares), caption)


def _parallel(sweep: Sweep) -> Document | None:
    if not sweep.axes or not sweep.scored:
        return None
    caption = "A line is a trial with a metric: the darker, the better; orange is the best"
    drawn = embedded(parallel_figure(sweep), caption)
    num_axes = len(sweep.axes) + 1
    # narrower, the names on the axes are not legible: the box scrolls instead
    return drawn | {"min_width": max(540, 105 * num_axes), "max_width": max(760, 150 * num_axes)}


def _cost(sweep: Sweep) -> Document | None:
    if not any(trial.seconds is not None for trial, _ in sweep.scored):
        return None
    return embedded(
        cost_figure(sweep),
        f"Cost against {sweep.metric}; along the line no trial was as good for less time",
    )


def _outliers(sweep: Sweep) -> int:
    """Trials too far off for the axes: they are drawn at the edge."""
    low, high = sweep.limits() or (0.0, 0.0)
    return sum(not low <= value <= high for _, value in sweep.scored)
