"""A sweep as a person sees it: a live table on a terminal, plain lines elsewhere."""

import time
from types import TracebackType
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.text import Text

from jobs.joblog import JobLog
from jobs.roster import Roster
from jobs.search import SearchConfig
from jobs.tables import plain_table
from jobs.trials import Trial
from tune_spaces.space import Space

_EVERY_S = 1.0
_MOST_ROWS = 20


class SweepScreen:
    """Shows the trials while they run."""

    def __init__(self, log: JobLog, roster: Roster, search: SearchConfig) -> None:
        self.log, self.roster, self.search = log, roster, search
        self.live = Live(Text(""), console=log.console, auto_refresh=False, transient=True)
        self.started_s = time.monotonic()
        self.num_ended_before = roster.num_ended
        self.refreshed_s = 0.0

    def begin(self, plan: dict[str, Any], space: Space) -> None:
        """Say what is about to be done."""
        rows = [[row["field"], row["kind"], row["range"], row["when"]] for row in space.table()]
        self.log.show(plain_table(["field", "kind", "values", "when"], rows))
        self.log.say(
            f"{self.roster.num_trials} trials, {plan['trials_at_a_time']} at a time; "
            f"searcher {plan['searcher']}, scheduler {plan['scheduler']}, {plan['objective']}"
        )
        if done := self.roster.num_ended:
            self.log.say(f"{done} of them are done already")

    def __enter__(self) -> "SweepScreen":
        if self.log.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.log.console.is_terminal:
            self.live.stop()

    def ended(self, trial: Trial) -> None:
        """A line for a trial that is over."""
        best, metric = self.roster.best, self.search.metric
        how = "pruned" if trial.pruned else trial.status.lower()
        value = f"  {metric} {trial.metric:.4f}" if trial.metric is not None else ""
        cause = f"  ({trial.cause})" if trial.cause else ""
        leader = (
            f"  best {best.metric:.4f} (trial {best.number})"
            if best is not None and best.metric is not None
            else ""
        )
        self.log.say(
            f"trial {trial.number}  {how} at step {trial.step}{value}{cause}  "
            f"[{self.roster.num_ended}/{self.roster.num_trials}]{leader}  left {self._left()}"
        )

    def refresh(self) -> None:
        """Bring the live table up to date, where there is one."""
        if not self.log.console.is_terminal or time.monotonic() - self.refreshed_s < _EVERY_S:
            return
        self.refreshed_s = time.monotonic()
        self.live.update(Group(self._table(), Text(self._summary())), refresh=True)

    def _table(self) -> Any:
        best = self.roster.best
        sign = -1 if self.search.best_mode == "max" else 1
        order = {"RUNNING": 0, "FINISHED": 1, "KILLED": 1, "FAILED": 2, "PENDING": 3}

        def place(trial: Trial) -> tuple[int, float, int]:
            metric = trial.metric if trial.is_scored else None
            worth = sign * metric if metric is not None else float("inf")
            return order[trial.status], worth, trial.number

        shown = sorted(list(self.roster.trials), key=place)[:_MOST_ROWS]
        rows = [
            [
                f"{'*' if best is not None and trial.number == best.number else ' '}{trial.number}",
                "pruned" if trial.pruned else trial.status.lower(),
                f"{trial.metric:.4f}" if trial.metric is not None else "",
                str(trial.step),
                ", ".join(f"{f.partition('.')[2]} {_short(v)}" for f, v in trial.params.items()),
            ]
            for trial in shown
        ]
        return plain_table(["trial", "status", self.search.metric, "step", "settings"], rows)

    def _summary(self) -> str:
        return f"{self.roster.num_ended} of {self.roster.num_trials} trials, left {self._left()}"

    def _left(self) -> str:
        """Reckoned from the trials that ended in this attempt."""
        ended = self.roster.num_ended - self.num_ended_before
        if not ended:
            return "-:--"
        each_s = (time.monotonic() - self.started_s) / ended
        left_s = int(each_s * (self.roster.num_trials - self.roster.num_ended))
        return f"{left_s // 60}:{left_s % 60:02d}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
