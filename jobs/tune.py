"""Trials under Ray Tune: the driver's side, and the only file beside a trial's that imports it.

Tune places trials, reuses their processes, and its schedulers decide which go on. What a sweep
knows is in its own journal, not in Tune's snapshots: after a kill a new Tune session is given the
trials that are left, and its scheduler is told what the others reported.
"""

import logging
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import Searcher, create_searcher

from cluster.processes import num_oom_kills
from jobs.plan import cpus_per_trial_worker
from jobs.roster import Roster
from jobs.spec import SweepJob
from jobs.trial_process import EXCHANGE, GIVEN, IDS, NUM_EVALUATIONS, SCORE, run_trial
from jobs.trials import Trial, measured, trial_dir
from tune_spaces.ray_space import ray_space
from tune_spaces.space import Point, Space

REDUCTION_FACTOR = 3
"""Of ASHA and HyperBand: a third of the trials goes on at each rung. Source: Li et al. 2018,
"A System for Massively Parallel Hyperparameter Tuning", section 3 (eta; 4 is their default, and
3 or 4 are alike); fine-tuning has few evaluations, and 3 gives them more rungs."""
_FOLDER = "ray"
_DRIVER_BYTES = 1 << 20
"""A trial whose workers have their own places takes this much memory of the node, and no core."""


@dataclass(frozen=True)
class Hooks:
    """What the sweep does as trials begin, report and end; called one at a time."""

    begin: Callable[[Trial], bool]
    """The trial's folder is made ready; False: it cannot be, and the trial is over."""
    started: Callable[[Trial], None]
    reported: Callable[[Trial, float], None]
    """The score so far."""
    ended: Callable[[Trial], None]


def run_on_tune(
    job: SweepJob,
    space: Space,
    roster: Roster,
    hooks: Hooks,
    *,
    num_at_once: int,
    evaluations_per_trial: int,
) -> None:
    """Run the trials of the roster to their ends; needs a Ray session.

    Args:
        job: says how many workers a trial has, and which scheduler decides.
        space: for schedulers that change a trial under way.
        roster: hands out the trials, and is told how they end.
        hooks: what else is to be done.
        num_at_once: trials that run at the same time.
        evaluations_per_trial: of a trial that is not ended early.
    """
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    sweep_dir = roster.sweep_dir
    for left_over in (_FOLDER, IDS):
        shutil.rmtree(sweep_dir / left_over, ignore_errors=True)
    (sweep_dir / IDS).mkdir()
    watch = _Watch(roster, hooks, job, sweep_dir)
    scheduler = _scheduler(job, space, evaluations_per_trial)
    _tell(scheduler, roster)
    # A population is there from the start: Tune takes it as a grid, and no searcher beside it.
    is_population = job.search.scheduler == "pbt"
    tuner = tune.Tuner(
        tune.with_resources(run_trial, _resources(job)),
        param_space={GIVEN: tune.grid_search(watch.hand_out_all())} if is_population else {},
        tune_config=tune.TuneConfig(
            search_alg=None if is_population else _Handed(watch),
            scheduler=scheduler,
            num_samples=1 if is_population else max(1, roster.num_trials),
            max_concurrent_trials=num_at_once,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(sweep_dir / _FOLDER),
            callbacks=[watch],
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=job.cluster.retries),
        ),
    )
    try:
        tuner.fit()
    finally:
        for left_over in (_FOLDER, IDS, f"trials/{EXCHANGE}"):
            shutil.rmtree(sweep_dir / left_over, ignore_errors=True)


def _resources(job: SweepJob) -> Any:
    cluster = job.cluster
    if cluster.workers != 1:
        # The workers have a placement group of their own: a core for this one could lock up all.
        return tune.PlacementGroupFactory([{"CPU": 0, "memory": _DRIVER_BYTES}])
    bundle = {"cpu": cpus_per_trial_worker(cluster)}
    return bundle | ({"gpu": cluster.gpus_per_worker} if cluster.gpus_per_worker else {})


def _scheduler(job: SweepJob, space: Space, max_evaluations: int) -> TrialScheduler:
    mode = job.search.best_mode
    compared = {"time_attr": NUM_EVALUATIONS, "metric": SCORE, "mode": mode}
    kind = job.search.scheduler
    if kind == "asha":
        return ASHAScheduler(
            **compared,
            max_t=max(max_evaluations, 1),
            grace_period=1,
            reduction_factor=REDUCTION_FACTOR,
        )
    if kind == "median":
        # It would set trials aside as long as there are too few to compare with.
        never = {"min_time_slice": math.inf}
        return MedianStoppingRule(**compared, **never, grace_period=1, min_samples_required=3)
    if kind == "hyperband":
        return HyperBandScheduler(
            **compared, max_t=max(max_evaluations, 1), reduction_factor=REDUCTION_FACTOR
        )
    if kind == "pbt":
        # The draws of the space again, and what lies beyond its ends brought back.
        return PopulationBasedTraining(
            **compared,
            perturbation_interval=1,
            hyperparam_mutations={GIVEN: {"params": ray_space(space.within(job.fixed))}},
            custom_explore_fn=partial(_within, space),
            log_config=False,
        )
    return FIFOScheduler()


def _within(space: Space, config: dict[str, Any]) -> dict[str, Any]:
    given = config[GIVEN]
    return config | {GIVEN: given | {"params": space.tidy(given["params"])}}


def _tell(scheduler: TrialScheduler, roster: Roster) -> None:
    """Let a rule that compares trials know those of earlier sessions."""
    if not isinstance(scheduler, ASHAScheduler | MedianStoppingRule):
        return
    best = max if roster.mode == "max" else min
    for trial in roster.trials:
        curve = measured(trial_dir(roster.sweep_dir, trial.number), roster.metric).curve
        if not trial.is_final or not curve:
            continue
        stand_in, values = _Earlier(f"earlier-{trial.number}"), list[float]()
        scheduler.on_trial_add(None, stand_in)
        for count, (_, value) in enumerate(curve, start=1):
            values.append(value)
            result = {NUM_EVALUATIONS: count, SCORE: best(values)}
            scheduler.on_trial_result(_NoController(), stand_in, result)


@dataclass(frozen=True)
class _Earlier:
    """A trial of an earlier session, as far as a scheduler looks at it."""

    trial_id: str


class _NoController:
    """Where a scheduler asks which trials wait."""

    @staticmethod
    def get_live_trials() -> list[Any]:
        return []


class _Watch(tune.Callback):  # type: ignore[misc]
    """Tune's trials in terms of ours."""

    def __init__(self, roster: Roster, hooks: Hooks, job: SweepJob, sweep_dir: Path) -> None:
        self.roster, self.hooks, self.job, self.sweep_dir = roster, hooks, job, sweep_dir
        self.numbers: dict[str, int] = {}
        """By the id that Tune gave."""
        self._oom_kills = num_oom_kills() or 0

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune writes snapshots of all that it is given, and nobody reads them."""
        return {}

    def hand_out(self, tune_id: str) -> dict[str, Any] | None:
        """The config of the next trial; None: there is none."""
        while (trial := self.roster.next()) is not None:
            if self.hooks.begin(trial):
                self._name(tune_id, trial.number)
                return {GIVEN: self._config(trial)}
        return None

    def hand_out_all(self) -> list[dict[str, Any]]:
        """The configs of all trials that are left."""
        trials = iter(self.roster.next, None)
        return [self._config(trial) for trial in trials if self.hooks.begin(trial)]

    def _config(self, trial: Trial) -> dict[str, Any]:
        return {
            "sweep_dir": str(self.sweep_dir),
            "number": trial.number,
            "params": trial.params,
            "metric": self.roster.metric,
            "mode": self.roster.mode,
            "pauses": self.job.search.pauses_trials,
            "cluster": self.job.cluster.model_dump(mode="json"),
        }

    def _name(self, tune_id: str, number: int) -> int:
        self.numbers[tune_id] = number
        (self.sweep_dir / IDS / tune_id).write_text(str(number))
        return number

    def number_of(self, trial: Any) -> int:
        """Ours, of one of Tune's; a trial that a scheduler has not changed yet names it itself."""
        known = self.numbers.get(trial.trial_id)
        return self._name(trial.trial_id, trial.config[GIVEN]["number"]) if known is None else known

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        number = self.number_of(trial)
        ours = self.roster.started(number)
        params = dict(trial.config[GIVEN]["params"])
        if params != ours.params:
            ours = self.roster.changed(number, params)
        self.hooks.started(ours)

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: Mapping[str, Any], **info: Any
    ) -> None:
        if SCORE in result:
            ours = self.roster.trials[self.number_of(trial)]
            ours.step = int(result["step"])
            self.hooks.reported(ours, float(result[SCORE]))

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._end(trial, died=None)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        times = f"{trial.num_failures} times" if trial.num_failures > 1 else "once"
        words = self._who_killed_it() if _was_killed(trial) else _last(trial)
        self._end(trial, died=f"its process was lost {times}: {words}")

    def _who_killed_it(self) -> str:
        before, self._oom_kills = self._oom_kills, num_oom_kills() or 0
        if self._oom_kills > before:
            return "out of memory, so the kernel ended it"
        return "out of memory on its node, or killed from outside"

    def _end(self, trial: Any, *, died: str | None) -> None:
        self.hooks.ended(self.roster.ended(self.number_of(trial), died=died))


def _was_killed(trial: Any) -> bool:
    error = trial.get_error()  # None where the process left no word
    return error is None or "ActorDiedError" in str(error) or "OutOfMemory" in str(error)


def _last(trial: Any) -> str:
    return str(trial.get_error()).strip().splitlines()[-1][:500]


class _Handed(Searcher):  # type: ignore[misc]
    """Gives Tune the trials of the roster."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__(metric=SCORE, mode=watch.roster.mode)
        self.watch = watch

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as with the callback."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        return self.watch.hand_out(trial_id) or Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """The roster hears of it from the callback, which knows how the trial ended."""

    def save(self, checkpoint_path: str) -> None:
        """The journal has everything."""

    def restore(self, checkpoint_path: str) -> None:
        raise AssertionError("Tune restores nothing here")


class RaySearcher:
    """A proposer that Ray wraps, by its name."""

    def __init__(self, name: str, space: Space, *, mode: str) -> None:
        self.space = space
        self.searcher = create_searcher(name, space=ray_space(space), metric=SCORE, mode=mode)
        self.asked: set[int] = set()

    def propose(self, index: int) -> Point:
        """The point of this number."""
        self.asked.add(index)
        return self.space.tidy(self.searcher.suggest(str(index)))

    def learn(self, index: int | None, point: Point, value: float | None) -> None:
        """Tell Ray's searcher; of what it did not propose itself, if it takes that at all."""
        if index in self.asked:
            result = {SCORE: value} if value is not None else None
            self.searcher.on_trial_complete(str(index), result=result, error=value is None)
        elif value is not None and hasattr(self.searcher, "add_evaluated_point"):
            self.searcher.add_evaluated_point(point, value)
