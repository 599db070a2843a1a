"""Which trial is next, which are under way, and which is best: the state of a sweep.

Knows neither Ray nor MLflow. Every change is in the journal before anybody acts on it.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.proposals import Proposer
from jobs.search import SearchConfig
from jobs.trials import (
    Journal,
    Trial,
    best_trial,
    mean_of_configurations,
    settle_trial,
    trial_dir,
)

_LOST = "its process was lost with that of the sweep"


class Roster:
    """The trials of a sweep. Called from one thread at a time."""

    def __init__(
        self,
        sweep_dir: Path,
        search: SearchConfig,
        proposer: Proposer,
        *,
        num_configurations: int,
        first_seed: int,
        first_points: Sequence[dict[str, Any]] = (),
    ) -> None:
        """Take up the trials that the journal has; those that did not end are begun again.

        Args:
            sweep_dir: the sweep's folder.
            search: what is compared, and how often.
            proposer: is told here what is known already.
            num_configurations: after which no further one is proposed.
            first_seed: `train.seed` of the first repeat; the others have the numbers after it.
            first_points: configurations to try before any that is proposed.
        """
        self.sweep_dir, self.search, self.proposer = sweep_dir, search, proposer
        self.num_configurations, self.first_seed = num_configurations, first_seed
        self.first_points = first_points
        self.metric, self.mode = search.metric, search.best_mode
        self.journal = Journal(sweep_dir)
        self.trials = self.journal.read()
        self.why_no_more: str | None = None
        """Set when the rest of the trials is not to be begun."""
        self._handed: set[int] = set()
        self._learned: set[int] = set()
        for trial in self.trials:
            if trial.status == "RUNNING":  # its process may have ended it, and died untold
                folder = trial_dir(sweep_dir, trial.number)
                settle_trial(trial, folder, self.metric, self.mode, died=_LOST)
                if trial.is_final and trial.cause != _LOST:
                    trial.finished_unix_s = time.time()
                    self.journal.write(trial)
            if not trial.is_final or trial.cause == _LOST:
                trial.status, trial.cause = "PENDING", None
        self._learn()

    @property
    def is_done(self) -> bool:
        """Nothing is left to begin or to go on with."""
        is_over = all(trial.is_final for trial in self.trials)
        return is_over and self._configurations_begun >= self.num_configurations

    def next(self) -> Trial | None:
        """The next trial to begin; None: there is none any more."""
        if self.why_no_more is not None:
            return None
        waiting = [t for t in self.trials if t.status == "PENDING" and t.number not in self._handed]
        if not waiting:
            waiting = self._propose()
        if not waiting:
            return None
        self._handed.add(waiting[0].number)
        return waiting[0]

    def _propose(self) -> list[Trial]:
        configuration = self._configurations_begun
        if configuration >= self.num_configurations:
            return []
        if configuration < len(self.first_points):
            point = dict(self.first_points[configuration])
        else:
            point = self.proposer.propose(configuration)
        new = [
            Trial(len(self.trials) + repeat, configuration, self.first_seed + repeat, point)
            for repeat in range(self.search.seeds)
        ]
        for trial in new:
            self.trials.append(trial)
            self.journal.write(trial)
        return new

    @property
    def _configurations_begun(self) -> int:
        return len({trial.configuration for trial in self.trials})

    @property
    def num_trials(self) -> int:
        """Of the whole sweep, begun or not."""
        to_come = max(0, self.num_configurations - self._configurations_begun)
        return len(self.trials) + to_come * self.search.seeds

    @property
    def best(self) -> Trial | None:
        return best_trial(self.trials, self.mode)

    @property
    def num_ended(self) -> int:
        return sum(trial.is_final or trial.status == "KILLED" for trial in self.trials)

    def started(self, number: int) -> Trial:
        """A process works on the trial."""
        return self._change(number, status="RUNNING")

    def ended(self, number: int, *, died: str | None = None) -> Trial:
        """The trial's process is done with it, or was lost."""
        trial = self.trials[number]
        settle_trial(trial, trial_dir(self.sweep_dir, number), self.metric, self.mode, died=died)
        if trial.status == "KILLED":
            trial.cause = self.why_no_more or "the sweep was stopped"
        trial.finished_unix_s = time.time()
        self.journal.write(trial)
        self._learn()
        if self._is_out_of_patience() and self.why_no_more is None:
            self.why_no_more = f"no better trial in {self.search.patience}"
        return trial

    def changed(self, number: int, params: dict[str, Any]) -> Trial:
        """The trial goes on with other settings: its params from now on."""
        return self._change(number, params=params)

    def _change(self, number: int, **values: Any) -> Trial:
        trial = self.trials[number]
        for name, value in values.items():
            setattr(trial, name, value)
        self.journal.write(trial)
        return trial

    def _learn(self) -> None:
        """Tell the proposer of each configuration that has come to its end."""
        means = mean_of_configurations(self.trials)
        for configuration, repeats in self._by_configuration().items():
            is_over = all(t.is_final or t.status == "KILLED" for t in repeats)
            if configuration in self._learned or not is_over:
                continue
            self._learned.add(configuration)
            self.proposer.learn(configuration, repeats[0].params, means.get(configuration))

    def _by_configuration(self) -> dict[int, list[Trial]]:
        groups: dict[int, list[Trial]] = {}
        for trial in self.trials:
            groups.setdefault(trial.configuration, []).append(trial)
        return groups

    def _is_out_of_patience(self) -> bool:
        patience, best = self.search.patience, self.best
        if patience is None or best is None:
            return False
        over = [t for t in self.trials if t.is_final and t.configuration > best.configuration]
        return len({trial.configuration for trial in over}) >= patience
