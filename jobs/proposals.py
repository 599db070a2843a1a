"""Which configuration a sweep tries next.

What a proposer knows is a function of the seed, of how many it has given, and of the results it
was told: a resumed sweep makes a new one, tells it what is known, and goes on.
"""

import itertools
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from tune_spaces.space import Point, Space


class Proposer(Protocol):
    """Gives points of a space; may learn from how they went."""

    def propose(self, index: int) -> Point:
        """The point number `index`, counted from 0."""

    def learn(self, index: int | None, point: Point, value: float | None) -> None:
        """Hear how a point went; None: it gave nothing. `index` is None for another sweep's."""


class Drawn:
    """Independent draws: each depends on the seed and its number alone."""

    def __init__(self, space: Space, fixed: Mapping[str, Any], seed: int) -> None:
        self.space, self.fixed, self.seed = space, fixed, seed
        self.grid = _grid_values(space)

    def propose(self, index: int) -> Point:
        rng = np.random.default_rng([self.seed, index])
        given = self.grid[index % len(self.grid)]
        return self.space.draw(rng, self.fixed, given)

    def learn(self, index: int | None, point: Point, value: float | None) -> None:
        """Chance remembers nothing."""


class Grid:
    """Every point of a countable space, in order."""

    def __init__(self, space: Space, fixed: Mapping[str, Any]) -> None:
        self.points = list(space.points(fixed))

    def propose(self, index: int) -> Point:
        return self.points[index]

    def learn(self, index: int | None, point: Point, value: float | None) -> None:
        """A grid has no choice."""


class Learned:
    """Optuna's tree-structured Parzen estimator.

    Source: Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization", section 4; here
        multivariate, and points that are under way count as bad ones, so that trials at the same
        time differ.
    """

    def __init__(self, space: Space, fixed: Mapping[str, Any], seed: int, mode: str) -> None:
        import optuna

        from tune_spaces.optuna_space import past_trial, suggest

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._suggest, self._past_trial = suggest, past_trial
        self.space, self.fixed, self.seed = space, fixed, seed
        self.study = optuna.create_study(direction="maximize" if mode == "max" else "minimize")
        self.under_way: dict[int, optuna.trial.Trial] = {}

    def propose(self, index: int) -> Point:
        import optuna

        # Seeded anew for each point: a resumed sweep draws what the unbroken one would have.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study.sampler = optuna.samplers.TPESampler(
                seed=_seed(self.seed, index), multivariate=True, group=True, constant_liar=True
            )
        trial = self.study.ask()
        self.under_way[index] = trial
        return self._suggest(self.space, self.fixed, trial)

    def learn(self, index: int | None, point: Point, value: float | None) -> None:
        import optuna

        asked = self.under_way.pop(index, None) if index is not None else None
        state = optuna.trial.TrialState.COMPLETE if value is not None else None
        if asked is not None:
            self.study.tell(asked, value, state=state or optuna.trial.TrialState.FAIL)
        elif value is not None:
            past = self._past_trial(self.space, self.fixed, point, value)
            if past is not None:
                self.study.add_trial(past)


def new_proposer(
    searcher: str, space: Space, fixed: Mapping[str, Any], *, seed: int, mode: str
) -> Proposer:
    """The proposer of a `search.searcher`."""
    if searcher == "random":
        return Drawn(space, fixed, seed)
    if searcher == "grid":
        return Grid(space, fixed)
    if searcher == "optuna":
        return Learned(space, fixed, seed, mode)
    from jobs.tune import RaySearcher

    return RaySearcher(searcher, space.within(fixed), mode=mode)


def _grid_values(space: Space) -> list[Point]:
    """The values that `grid` dimensions take in turn, beside others that are drawn."""
    grids = [space[field] for field in space if space[field].kind == "grid"]
    names = [dimension.field for dimension in grids]
    products: Iterator[Any] = itertools.product(*(dimension.values for dimension in grids))
    return [dict(zip(names, values, strict=True)) for values in products]


def _seed(seed: int, index: int) -> int:
    return int(np.random.default_rng([seed, index]).integers(2**31))
