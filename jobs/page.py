"""The report of a job: one HTML page that needs no other file, no script and no network.

Reads only the files of the job's folder, whichever are there yet. Every text in them is a
stranger's: it is escaped by the template, and control characters are made visible here.
"""

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from gpt2cls.data.write import written_aside
from jobs.figures import confusion_figure, curves_figure, fit_figure, reliability_figure, svg
from jobs.job_folder import RESOLVED_FILE
from jobs.page_tables import (
    METRICS,
    Document,
    balance,
    flat,
    halves,
    headline,
    most_confused,
    number,
    percent,
    short,
    verdict,
    visible,
)
from jobs.tables import beside

MAX_CURVE_POINTS = 600
MAX_CLASSES_DRAWN = 60
"""A larger confusion matrix is not drawn; its most frequent confusions are listed."""
_PICTURES: tuple[tuple[dict[str, str], dict[str, str], str, str], ...] = (
    (
        {"train/loss": "training"},
        {"eval/log_loss": "validation", "eval/loss": "held-out texts"},
        "loss",
        "Loss; of training each step's batch, with dropout",
    ),
    (
        {},
        {
            "eval/accuracy": "accuracy",
            "eval/macro_f1": "macro F1",
            "eval/pearson": "Pearson",
            "eval/spearman": "Spearman",
        },
        "score",
        "Scores on the validation split",
    ),
    ({}, {"eval/mse": "validation"}, "squared error", "Squared error, in units of the labels"),
    ({"train/lr": "learning rate"}, {}, "learning rate", "Learning rate"),
    ({"train/tokens_per_second": "speed"}, {}, "tokens per second", "Speed of training"),
)
"""Lines, dots (metric: name in the legend), the axis, the caption."""
_NO_DATA: Document = {
    **{name: {} for name in ("splits", "tokens", "labels", "numbers")},
    **{name: [] for name in ("problems", "notes")},
}


def write_report(job_dir: Path, output: Path) -> Path:
    """Write the page of the job whose folder this is; it appears whole or not at all.

    Raises:
        RequestError: the folder of the output cannot be written to.
    """
    page = render(job_dir)
    with written_aside(output) as aside:
        aside.write_text(page, encoding="utf-8")
    return output


def render(job_dir: Path) -> str:
    """The page as text."""
    return filled("report.html.j2", view(job_dir))


def filled(template: str, document: Document) -> str:
    """A page of `jobs/templates/` with the values of the document, every text escaped."""
    environment = Environment(
        loader=PackageLoader("jobs"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "short": short}
    return environment.get_template(template).render(document)


def view(job_dir: Path) -> Document:
    """All that the page shows, as plain values."""
    job = read_document(job_dir / RESOLVED_FILE)
    result = read_document(job_dir / "result.json")
    table = result.get("test") or result.get("validation") or {}
    data = _NO_DATA | read_document(job_dir / "data_report.json")
    is_language = job.get("kind") == "pretrain"
    corpus, data["splits"] = (data["splits"], {}) if is_language else ({}, data["splits"])
    shown = headline(table, beside(result))
    ours = shown["rows"][0]["cells"] if table else []
    return {
        "title": str(job.get("name") or result.get("job_id") or job_dir.name),
        "job_id": str(result.get("job_id") or job_dir.name),
        "facts": list(_facts(job, result, data, corpus)),
        "is_finished": bool(result),
        "has_test": bool(result.get("test")),
        "table": table,
        "headline": shown,
        "tiles": [{"name": METRICS[n]} | c for n, c in zip(shown["metrics"], ours, strict=False)],
        "verdict": verdict(table, result.get("baselines") or {}),
        "metrics": METRICS,
        "data": data,
        "corpus": corpus,
        "is_language": is_language,
        "balance": balance(data),
        "curves": list(_curves(job_dir / "events.jsonl")),
        "per_class": table.get("per_class") or [],
        "is_multi_label": "thresholds" in table,
        "confusion": _confusion(table),
        "confusions": most_confused(table)[:12],
        "reliability": _reliability(table),
        "fit": _fit(table),
        "mistakes": read_document(job_dir / "mistakes.json"),
        "settings": halves(flat({k: v for k, v in job.items() if k not in ("kind", "name")})),
    }


def _facts(job: Document, result: Document, data: Document, corpus: Document) -> Iterator[str]:
    """The line under the title."""
    yield f"job {result['job_id']}" if result.get("job_id") else "job not finished"
    if backbone := (job.get("model") or {}).get("backbone"):
        yield str(backbone)
    if data.get("rows"):
        yield f"{data['rows']:,} rows"
    if tokens := (corpus.get("train") or {}).get("tokens"):
        yield f"{tokens:,} tokens"
    if data.get("labels"):
        yield f"{len(data['labels']):,} labels"
    if (version := result.get("model")) and version.get("name"):
        alias = f" ({version['alias']})" if version.get("alias") else ""
        yield f"registered as {version['name']} version {version.get('version')}{alias}"
    if total := (result.get("seconds") or {}).get("total"):
        yield f"took {duration(total)}"
    if result.get("run_id"):
        yield f"MLflow run {result['run_id']}"


def duration(seconds: float) -> str:
    """A time as a person says it."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _curves(path: Path) -> Iterator[Document]:
    """The pictures of training, each with its caption."""
    points = _points(path)

    def drawn(names: Mapping[str, str]) -> dict[str, Any]:
        return {shown: _thinned(points[name]) for name, shown in names.items() if name in points}

    for lines, dots, ylabel, caption in _PICTURES:
        curves, measured = drawn(lines), drawn(dots)
        if curves or measured:
            yield embedded(curves_figure(curves, measured=measured, ylabel=ylabel), caption)


def _points(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Every metric of the event file as (step, value), steps rising."""
    found: dict[str, dict[float, float]] = {}
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue  # the last line, while it is being written
                for name, value in (event.get("metrics") or {}).items():
                    found.setdefault(name, {})[event["step"]] = value
    return {name: sorted(points.items()) for name, points in found.items()}


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MAX_CURVE_POINTS points, each the mean of neighbours."""
    size = -(-len(points) // MAX_CURVE_POINTS)
    groups = (points[i : i + size] for i in range(0, len(points), size))
    return [(group[-1][0], sum(v for _, v in group) / len(group)) for group in groups]


def _confusion(table: Document) -> Document | None:
    labels = [row["label"] for row in table.get("per_class") or []]
    if not table.get("confusion") or len(labels) > MAX_CLASSES_DRAWN:
        return None
    picture = confusion_figure(table["confusion"], labels)
    return embedded(picture, "Rows are the true classes, columns the predicted ones")


def _reliability(table: Document) -> Document | None:
    if not table.get("reliability"):
        return None
    caption = (
        "Accuracy of decisions by their confidence; on the dashed line, 80% sure is right in 80%"
    )
    return embedded(reliability_figure(table["reliability"]), caption)


def _fit(table: Document) -> Document | None:
    if not table.get("fit"):
        return None
    caption = (
        "Mean label of each tenth of the rows, by predicted value; 80% of its labels lie there"
    )
    return embedded(fit_figure(table["fit"]), caption)


def embedded(figure: Any, caption: str) -> Document:
    """The picture as part of a page, with the words below it."""
    # An image of its own cannot run scripts or clash with the page's names.
    source = f"data:image/svg+xml;base64,{base64.b64encode(svg(figure)).decode()}"
    return {"source": source, "caption": caption}


def read_document(path: Path) -> Document:
    """A JSON document of the job's folder with all texts made visible; empty if not there."""
    if not path.exists():
        return {}
    document = visible(json.loads(path.read_text(encoding="utf-8")))
    return document if isinstance(document, dict) else {}
