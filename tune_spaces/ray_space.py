"""A space in Ray Tune's terms, for the searchers that go by Ray's names.

The one file here that knows Ray; what it cannot say there is told without importing it.
"""

from collections.abc import Iterator
from typing import Any

from tune_spaces.check import SpaceError, SpaceFault
from tune_spaces.dimension import Dimension
from tune_spaces.space import Space


def ray_faults(space: Space) -> Iterator[SpaceFault]:
    """What Ray Tune's distributions cannot express."""
    for field, dimension in space.items():
        if dimension.when:
            when = {name: list(values) for name, values in dimension.when}
            words = (
                "left out for a searcher of Ray, which knows no conditions; random and optuna do"
            )
            yield SpaceFault((field, "when"), when, words)
        if dimension.step is not None and not _starts_even(dimension.low, dimension.step):
            words = f"a divisor of {dimension.low:g}, the low end, for a searcher of Ray"
            yield SpaceFault((field, "step"), dimension.step, words)


def ray_space(space: Space) -> dict[str, Any]:
    """Field -> distribution; `Space.tidy` makes points of the space from what is drawn of them.

    Give it `Space.within` of the job, which takes out the conditions that the job settles.

    Raises:
        SpaceError: it has conditions, or steps that Ray counts from elsewhere.
    """
    if faults := [*ray_faults(space)]:
        raise SpaceError(faults)
    return {field: _distribution(dimension) for field, dimension in space.items()}


def _starts_even(low: float, step: float) -> bool:
    """Whether the low end is a multiple of the step, but for the dust of binary fractions."""
    times = low / step
    return abs(times - round(times)) < 1e-9


def _distribution(dimension: Dimension) -> Any:
    from ray import tune

    if dimension.kind == "grid":
        return tune.grid_search(list(dimension.values))
    if dimension.kind == "choice":
        return tune.choice(list(dimension.values))
    low, high = dimension.ends()
    step = dimension.step
    if dimension.kind == "integer" and (step is None or step == 1):
        return (tune.lograndint if dimension.log else tune.randint)(low, high + 1)
    if dimension.kind == "integer":
        return (tune.qlograndint if dimension.log else tune.qrandint)(low, high, step)
    if step is None:
        return (tune.loguniform if dimension.log else tune.uniform)(low, high)
    return (tune.qloguniform if dimension.log else tune.quniform)(low, high, step)
