"""What a sweep searches, how, and for how long: the block `search` and the field `space`."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from gpt2cls.config import Block, Number
from jobs.names import JOB_ID_PATTERN
from tune_spaces import SHIPPED, read_space
from tune_spaces.check import DIMENSION_WORDS, SpaceError
from tune_spaces.dimension import KINDS
from tune_spaces.ray_space import ray_faults
from tune_spaces.space import Space

Fault = tuple[str | tuple[str | int, ...], object, str]
"""Field, value, and what it must be, of a rule that spans several fields.

The field is dotted, or a path where keys hold dots themselves.
"""

METRICS_OF_VALUES = ("pearson", "spearman", "mse")
METRICS_OF_CLASSES = ("accuracy", "macro_f1", "micro_f1", "exact_match", "log_loss", "ece")
METRICS = (*METRICS_OF_CLASSES, *METRICS_OF_VALUES)
METRICS_TO_RAISE = tuple(name for name in METRICS if name not in ("log_loss", "ece", "mse"))
MAX_RUNS = 100_000
MAX_GRID_POINTS = 10_000
TRIALS_UNLESS_TOLD = 12

RAY_SEARCHERS: dict[str, tuple[str, str]] = {
    "hyperopt": ("hyperopt", "hyperopt"),
    "bayesopt": ("bayes_opt", "bayesian-optimization"),
    "ax": ("ax", "ax-platform"),
    "hebo": ("hebo", "HEBO"),
    "nevergrad": ("nevergrad", "nevergrad"),
    "zoopt": ("zoopt", "zoopt"),
    "bohb": ("hpbandster", "hpbandster ConfigSpace"),
}
"""Searchers by Ray Tune's names: the module that each needs, and what pip calls it."""
CHANGEABLE = frozenset({
    "train.lr", "train.weight_decay", "train.label_smoothing", "train.clip",
    "model.dropout",
})  # fmt: skip
"""What a training can go on with at another value, as population based training does.

Not what is part of the model that comes out: it is of the time when the weights were best.
"""

_METRIC_SCHEMA = {"enum": [*METRICS, *(f"eval/{name}" for name in METRICS)], "type": "string"}
_NUMBER_PAIR = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
_DIMENSION_SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "description": f"{DIMENSION_WORDS}; with step, log, when and why where they mean something.",
    "properties": {
        **{kind: _NUMBER_PAIR for kind in KINDS[:2]},
        "integer": {**_NUMBER_PAIR, "items": {"type": "integer"}},
        **{kind: {"type": "array", "minItems": 1} for kind in KINDS[3:]},
        "step": {"type": "number", "exclusiveMinimum": 0},
        "log": {"type": "boolean"},
        "when": {"type": "object", "minProperties": 1},
        "why": {"type": "string"},
    },
}
_SPACE_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"enum": [*SHIPPED], "type": "string"},
        {"type": "object", "minProperties": 1, "additionalProperties": _DIMENSION_SCHEMA},
    ]
}


def _without_prefix(metric: Any) -> Any:
    return metric.removeprefix("eval/") if isinstance(metric, str) else metric


def _is_space(given: Any) -> Any:
    """What was given, if it is a space; all of its faults in one error, if it is not."""
    try:
        read_space(given)
    except SpaceError as error:
        ctx = {"faults": error.faults}
        raise PydanticCustomError("rules", "the space has faults", ctx) from error
    return given


def _is_installed(searcher: str) -> str:
    module, package = RAY_SEARCHERS.get(searcher, (None, ""))
    if module is not None and find_spec(module) is None:
        words = f"a searcher that is installed; for this one: pip install {package}"
        faults: list[Fault] = [("search.searcher", searcher, words)]
        raise PydanticCustomError("rules", "not installed", {"faults": faults})
    return searcher


SpaceGiven = Annotated[Any, BeforeValidator(_is_space), WithJsonSchema(_SPACE_SCHEMA)]
Searcher = Annotated[
    Literal[
        "random", "grid", "optuna",
        "hyperopt", "bayesopt", "ax", "hebo", "nevergrad", "zoopt", "bohb",
    ],
    AfterValidator(_is_installed),
]  # fmt: skip
Metric = Annotated[
    Literal[
        "accuracy",
        "macro_f1",
        "micro_f1",
        "exact_match",
        "log_loss",
        "ece",
        "pearson",
        "spearman",
        "mse",
    ],
    BeforeValidator(_without_prefix),
    WithJsonSchema(_METRIC_SCHEMA),
]


class SearchConfig(Block):
    """How the space is searched."""

    trials: int | None = Field(None, ge=1, le=MAX_RUNS)
    """Points that are tried; None: 12, or every point with searcher grid."""
    scheduler: Literal["none", "asha", "median", "hyperband", "pbt"] = "asha"
    """What ends a trial before its time, or changes it (pbt: population based training)."""
    searcher: Searcher = "random"
    """What picks the points: at random, all in turn, or learning from those tried before."""
    metric: Metric = "accuracy"
    """Of the validation split; what trials are compared by. Of regression: pearson unless given."""
    mode: Literal["max", "min"] | None = None
    """Whether more of the metric is better; None: as the metric has it."""
    time_budget_s: Annotated[Number, Field(gt=0, le=1e9)] | None = None
    """Seconds after which no trial starts or goes on; None: until all are done."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Of the draws."""
    seeds: int = Field(1, ge=1, le=100)
    """Repeats of every point with another train.seed; the mean decides."""
    refit: bool = False
    """Train the best point once more on train and validation together."""
    max_concurrent: int | None = Field(None, ge=1, le=MAX_RUNS)
    """Trials at a time; None: as many as there is room for."""
    keep: int = Field(1, ge=1, le=MAX_RUNS)
    """Trials of which the best weights stay on disk."""
    patience: int | None = Field(None, ge=1, le=MAX_RUNS)
    """Trials without a better one after which the sweep ends; None: it does not."""
    warm_start: str | None = Field(None, pattern=JOB_ID_PATTERN)
    """The job id of an earlier sweep to learn from."""

    @property
    def best_mode(self) -> Literal["max", "min"]:
        """Whether more of the metric is better."""
        return "max" if self.metric in METRICS_TO_RAISE else "min"

    @property
    def pauses_trials(self) -> bool:
        """Whether a trial may be set aside for a while, or go on from the weights of another."""
        return self.scheduler in ("pbt", "hyperband")

    @model_validator(mode="after")
    def _the_settings_fit_each_other(self) -> Self:
        if faults := [*_search_faults(self)]:
            raise PydanticCustomError("rules", "several fields do not fit", {"faults": faults})
        return self


def _search_faults(search: SearchConfig) -> Iterator[Fault]:
    if search.mode not in (None, search.best_mode):
        words = f"{search.best_mode} with search.metric {search.metric}, or null"
        yield "search.mode", search.mode, words
    if search.scheduler == "pbt":
        if search.trials is not None and search.trials < 4:
            words = "at least 4 with search.scheduler pbt, which breeds from the better half"
            yield "search.trials", search.trials, words
        if search.seeds > 1:
            yield "search.seeds", search.seeds, "1 with search.scheduler pbt: its trials change"
        if search.searcher not in ("random", "grid"):
            words = "random or grid with search.scheduler pbt, which searches by itself"
            yield "search.searcher", search.searcher, words
    if search.searcher == "bohb" and search.scheduler != "hyperband":
        words = "hyperband with search.searcher bohb, which learns from its brackets"
        yield "search.scheduler", search.scheduler, words


def sweep_faults(space: Space, search: SearchConfig, fixed: dict[str, Any]) -> Iterator[Fault]:
    """Rules that span the space, the search and the job's own values."""
    given, space = space, space.within(fixed)
    if not space:
        conditions = "; ".join(row["when"] for row in given.table())
        words = f"a space of which something varies: no condition holds in this job ({conditions})"
        yield "space", list(given), words
        return
    if search.searcher == "grid":
        yield from _grid_faults(space, search, fixed)
    elif search.searcher != "random":
        yield from _learner_faults(space, search)
    yield from _count_faults(space, search, fixed)
    if search.seeds > 1 and "train.seed" in space:
        words = "left out with search.seeds above 1, which gives every repeat its own"
        yield ("space", "train.seed"), _kind_of(space, "train.seed"), words
    if search.scheduler == "pbt":
        for field in space:
            if field not in CHANGEABLE:
                words = f"left out with search.scheduler pbt; it can change {_listed(CHANGEABLE)}"
                yield ("space", field), _kind_of(space, field), words


def _grid_faults(space: Space, search: SearchConfig, fixed: dict[str, Any]) -> Iterator[Fault]:
    num_points = space.num_points(fixed)
    if num_points is None:
        for field, dimension in space.items():
            if dimension.size is None:
                words = (
                    "countable with search.searcher grid: give it a step, list its values with "
                    "choice, or take another searcher"
                )
                yield ("space", field), _kind_of(space, field), words
    elif num_points > MAX_GRID_POINTS:
        words = (
            f"at most {MAX_GRID_POINTS:,} points with search.searcher grid; this space has "
            f"{num_points:,}"
        )
        yield "space", list(space), words
    elif search.trials is not None and search.trials > num_points:
        words = f"at most {num_points:,}, the points of this grid, or null for all of them"
        yield "search.trials", search.trials, words


def _learner_faults(space: Space, search: SearchConfig) -> Iterator[Any]:
    """What a searcher that learns from its trials cannot express."""
    if search.searcher in RAY_SEARCHERS:
        yield from ray_faults(space)
    for field, dimension in space.items():
        if dimension.kind == "grid":
            words = f"choice: [...] with search.searcher {search.searcher}, which walks no grid"
            yield ("space", field, "grid"), list(dimension.values), words
        if search.searcher == "bayesopt" and dimension.kind != "uniform":
            words = "uniform: [low, high] with search.searcher bayesopt, which knows nothing else"
            yield ("space", field), _kind_of(space, field), words


def _count_faults(space: Space, search: SearchConfig, fixed: dict[str, Any]) -> Iterator[Fault]:
    trials = num_trials(space, search, fixed)
    if trials <= MAX_RUNS < trials * search.seeds:
        words = (
            f"at most {MAX_RUNS // trials:,} with {trials:,} trials: {MAX_RUNS:,} runs in all, "
            f"not {trials * search.seeds:,}"
        )
        yield "search.seeds", search.seeds, words
    if search.keep > trials:
        yield "search.keep", search.keep, f"at most {trials:,}, the number of trials"
    if search.scheduler == "pbt" and search.trials is None and trials < 4:
        words = f"4 points or more with search.scheduler pbt; this space has {trials}"
        yield "space", list(space), words
    size = 1
    for dimension in space.dimensions:
        size *= len(dimension.values) if dimension.kind == "grid" else 1
    if search.searcher == "random" and size > MAX_GRID_POINTS:
        words = f"at most {MAX_GRID_POINTS:,} points of its grids; this space has {size:,}"
        yield "space", list(space), words


def num_trials(space: Space, search: SearchConfig, fixed: dict[str, Any]) -> int:
    """How many points are tried, not counting repeats."""
    if search.trials is not None:
        return search.trials
    points = space.num_points(fixed) if search.searcher == "grid" else None
    return TRIALS_UNLESS_TOLD if points is None else points


def _kind_of(space: Space, field: str) -> dict[str, list[Any]]:
    dimension = space[field]
    values = list(dimension.values) or [dimension.low, dimension.high]
    return {dimension.kind: values}


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))
