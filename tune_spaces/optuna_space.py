"""A space as Optuna sees it: what a trial is asked, and past trials that it can learn from."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tune_spaces.dimension import LISTS, Dimension
from tune_spaces.space import Point, Space, is_active

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial


def suggest(space: Space, fixed: Mapping[str, Any], trial: "Trial") -> Point:
    """The point of a new trial; a dimension whose condition does not hold is not asked about.

    Args:
        space: what varies.
        fixed: the values that the job's fields have outside the space.
        trial: of `study.ask()`, asked field by field.
    """
    point: Point = {}
    for dimension in space.in_order:
        if is_active(dimension, point, fixed):
            point[dimension.field] = _suggest(dimension, trial)
    return space.sorted(point)


def past_trial(
    space: Space, fixed: Mapping[str, Any], point: Mapping[str, Any], value: float
) -> "FrozenTrial | None":
    """A finished trial for `study.add_trial`; None: its point is not of this space."""
    from optuna.trial import create_trial

    if not space.is_point(point, fixed):
        return None
    return create_trial(
        params={field: _encoded(space[field], own) for field, own in point.items()},
        distributions={field: distribution(space[field]) for field in point},
        value=value,
    )


def distribution(dimension: Dimension) -> "BaseDistribution":
    """The values of a dimension in Optuna's terms; it knows no steps between logarithms."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if dimension.kind in LISTS:
        return CategoricalDistribution([json.dumps(value) for value in dimension.values])
    low, high = dimension.ends()
    if dimension.kind == "integer":
        step = 1 if dimension.log else int(dimension.step or 1)
        return IntDistribution(int(low), int(high), log=dimension.log, step=step)
    step_or_none = None if dimension.log else dimension.step
    return FloatDistribution(low, high, log=dimension.log, step=step_or_none)


def _suggest(dimension: Dimension, trial: "Trial") -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    asked = distribution(dimension)
    name = dimension.field
    if isinstance(asked, CategoricalDistribution):
        return json.loads(str(trial.suggest_categorical(name, asked.choices)))
    if isinstance(asked, IntDistribution):
        drawn: float = trial.suggest_int(
            name, asked.low, asked.high, step=asked.step, log=asked.log
        )
    else:
        assert isinstance(asked, FloatDistribution), "a dimension is one of three kinds to Optuna"
        drawn = trial.suggest_float(name, asked.low, asked.high, step=asked.step, log=asked.log)
    return dimension.tidy(drawn)


def _encoded(dimension: Dimension, value: Any) -> Any:
    """A value as the study holds it: one of a list as JSON text, since 1, 1.0 and true differ."""
    return json.dumps(dimension.tidy(value)) if dimension.kind in LISTS else value
