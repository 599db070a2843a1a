"""How much of the metric's variation each dimension of a search space explains.

The question is that of Hutter et al. 2014, "An Efficient Approach for Assessing Hyperparameter
Importance" (a random forest learns the metric from the settings, and is then asked); the answer
is permutation importance, Breiman 2001, "Random Forests", section 10: how much worse the forest
predicts trials it has not seen when the values of one dimension are shuffled among them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.sweep_result import Sweep, read_sweep

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Values = NDArray[np.float64]

MIN_CONFIGURATIONS = 8
NUM_FOLDS = 5
NUM_TREES = 64
NUM_SHUFFLES = 5
SEED = 0


@dataclass(frozen=True)
class Importance:
    """The answer, or why there is none."""

    shares: dict[str, float] | None
    """Of each dimension, the most important first; together 1."""
    reason: str | None
    """Why there are no shares."""
    explained: float | None = None
    """Share of the variation that the forest predicts in unseen trials; 1 is all of it."""
    configurations: int = 0
    """How many different settings the answer rests on."""


def importance(document: Mapping[str, Any]) -> Importance:
    """Shares of the metric's variation by dimension, from the trials that ended with a metric.

    Trials that differ only in their seed count once, with their mean. Pruned trials take part
    with what they had reached. A far outlier counts only as the fence it lies beyond
    (`Sweep.limits`), so that one diverged trial does not decide alone.
    """
    sweep = read_sweep(document)
    rows = _configurations(sweep)
    axes = [axis for axis in sweep.axes if len({axis.place(params) for params, _ in rows}) > 1]
    if len(rows) < MIN_CONFIGURATIONS:
        return _none(
            f"{len(rows)} different settings were tried and measured; "
            f"it takes {MIN_CONFIGURATIONS} to tell dimensions apart",
            len(rows),
        )
    values = [value for _, value in rows]
    if max(values) - min(values) <= 1e-12 * max(abs(value) for value in values):
        return _none("every trial has the same metric", len(rows))
    if not axes:
        return _none("every trial has the same settings", len(rows))
    encoded = [[axis.place(params) for axis in axes] for params, _ in rows]
    kinds = [axis.scale == "category" for axis in axes]
    drops, explained = _drops(encoded, values, kinds)
    total = sum(drops)
    if explained <= _chance(len(rows)) or total <= 0:
        return _none(
            "the settings do not predict the metric of unseen trials: what differs is chance, "
            "or the trials are too few",
            len(rows),
        )
    shares = sorted(
        ((axis.field, drop / total) for axis, drop in zip(axes, drops, strict=True)),
        key=lambda item: -item[1],
    )
    return Importance(dict(shares), None, explained, len(rows))


def _none(reason: str, configurations: int) -> Importance:
    return Importance(None, reason, configurations=configurations)


def _chance(num_rows: int) -> float:
    """The R squared that a forest which knows nothing stays below, 39 times in 40.

    A correlation of two unrelated samples has the standard deviation 1 / sqrt(n); R squared on
    rows not learned from is at most the squared correlation.
    """
    return 4 / num_rows


def _configurations(sweep: Sweep) -> list[tuple[Mapping[str, Any], float]]:
    """(params, mean metric) of every configuration with a finished trial."""
    low, high = sweep.limits() or (0.0, 0.0)
    found: dict[int, tuple[Mapping[str, Any], list[float]]] = {}
    for trial, value in sweep.scored:
        if trial.status == "FINISHED":
            kept = found.setdefault(trial.configuration, (trial.params, []))
            kept[1].append(min(high, max(low, value)))
    return [(params, sum(values) / len(values)) for params, values in found.values()]


def _drops(
    encoded: list[list[float]], values: list[float], is_category: list[bool]
) -> tuple[list[float], float]:
    """(how much each column's shuffling costs, R squared), both on rows not learned from.

    Each row is predicted by a forest that was fitted without it: in rows that a forest has seen,
    noise matters as well.
    """
    import numpy as np
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance
    from sklearn.model_selection import KFold

    rows, metric = np.asarray(encoded), np.asarray(values)
    metric = (metric - metric.mean()) / metric.std()
    codes = [np.unique(rows[:, i]) if c else None for i, c in enumerate(is_category)]

    def features(rows: "Values") -> "NDArray[np.float32]":
        # One column a dimension comes in, so that a category is shuffled as a whole. "Not set" is
        # a place of its own below the axis, which a tree cuts off with one question.
        parts = [
            rows[:, [i]] if known is None else rows[:, [i]] == known
            for i, known in enumerate(codes)
        ]
        return np.concatenate(parts, axis=1, dtype=np.float32)

    forest = RandomForestRegressor(NUM_TREES, max_features=0.5, random_state=SEED)
    forests = []
    for seen, unseen in KFold(NUM_FOLDS, shuffle=True, random_state=SEED).split(rows):
        forest.fit(features(rows[seen]), metric[seen])
        forests.append((forest.estimators_, unseen))

    def r_squared(_: Any, shuffled: "Values", metric: "Values") -> float:
        predicted = np.empty_like(metric)
        for trees, unseen in forests:
            inputs = features(shuffled[unseen])
            # tree by tree: the forest's own predict() takes several times as long, on its threads
            votes = [tree.predict(inputs, check_input=False) for tree in trees]
            predicted[unseen] = np.mean(votes, axis=0)
        return float(1 - np.mean((metric - predicted) ** 2))  # the variance of the metric is 1

    found = permutation_importance(
        forest, rows, metric, scoring=r_squared, n_repeats=NUM_SHUFFLES, random_state=SEED
    )
    drops = [max(0.0, float(drop)) for drop in found.importances_mean]
    return drops, r_squared(forest, rows, metric)
