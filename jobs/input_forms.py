"""What the form of a job's rows asks of its other settings."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from gpt2cls.config import ModelConfig, TrainConfig
from jobs.search import METRICS_OF_CLASSES, METRICS_OF_VALUES, Fault

if TYPE_CHECKING:
    from jobs.spec import TrainingJob

_JUDGES = (("register", "gate"), ("train", "early_stopping"), ("search",))
"""The blocks that name a metric."""
_OF_CLASSES: Mapping[str, tuple[str, ...]] = {
    "model": ("temperature", "truncation_smoothing", "prob_floor"),
    "train": ("class_weights", "label_smoothing"),
}
"""Settings that mean something for probabilities only."""


def with_metrics_of_values(values: dict[str, Any]) -> dict[str, Any]:
    """A job of regression with pearson wherever it names no metric; any other job as it is."""
    data = values.get("data")
    if not isinstance(data, dict) or data.get("task") != "regression":
        return values
    values = {"register": {}, **values}
    for path in _JUDGES:
        if path != ("search",) or values.get("kind") == "sweep":
            values = _with_metric(values, path)
    return values


def _with_metric(block: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    name, *below = path
    inner = block.get(name, {} if name in ("gate", "search") else None)
    if not isinstance(inner, dict):
        return block
    if below:
        return block | {name: _with_metric(inner, tuple(below))}
    return block | {name: {"metric": "pearson"} | inner}


def form_faults(job: "TrainingJob") -> Iterator[Fault]:
    """What does not fit the rows of the job."""
    is_valued = job.data.task == "regression"
    metrics = METRICS_OF_VALUES if is_valued else METRICS_OF_CLASSES
    words = f"one of {', '.join(metrics)} with data.task = {job.data.task}"
    named: dict[str, str] = {"register.gate.metric": job.registration.gate.metric}
    if job.train.early_stopping is not None:
        named["train.early_stopping.metric"] = job.train.early_stopping.metric
    if (search := getattr(job, "search", None)) is not None:
        named["search.metric"] = search.metric
    for field, metric in named.items():
        if metric not in metrics:
            yield field, metric, words
    if is_valued:
        yield from _value_faults(job)
    if job.data.choices is not None:
        yield from _choice_faults(job)


def _choice_faults(job: "TrainingJob") -> Iterator[Fault]:
    told = f"with data.choices = {job.data.choices}"
    wanted: tuple[tuple[str, object, object, str], ...] = (
        ("data.task", job.data.task, "classes", "the label says which answer is right"),
        ("data.pair", job.data.pair, "ordered", "an answer follows its context"),
        ("data.separator", job.data.separator, None, "one answer is right"),
        ("model.head", job.model.head, "linear", "each answer has one logit"),
        ("train.class_weights", job.train.class_weights, "none", "a place is no class"),
        ("train.label_smoothing", job.train.label_smoothing, 0.0, "rows differ in their answers"),
    )
    for field, value, needed, why in wanted:
        if value != needed:
            yield field, value, f"{'null' if needed is None else needed} {told}: {why}"


def _value_faults(job: "TrainingJob") -> Iterator[Fault]:
    if job.model.head != "linear":
        yield (
            "model.head",
            job.model.head,
            "linear with data.task = regression: there are no classes",
        )
    if job.data.separator is not None:
        yield "data.separator", job.data.separator, "null with data.task = regression"
    defaults = {"model": ModelConfig(), "train": TrainConfig()}
    for block, names in _OF_CLASSES.items():
        for name in names:
            value, default = getattr(getattr(job, block), name), getattr(defaults[block], name)
            # 1 is none at all, and what presets say.
            if value != default and (name, value) != ("temperature", 1.0):
                words = f"{default}, its default, with data.task = regression: there are no classes"
                yield f"{block}.{name}", value, words
