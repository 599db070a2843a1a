"""Trials that learn a head over the same frozen backbone: one program trains them all.

Their backbone's vectors are computed once, and a step of sixteen heads takes hardly longer than a
step of one; no scheduler ends any of them early, as that would gain nothing.
"""

from typing import TYPE_CHECKING

from gpt2cls.errors import RequestError
from gpt2cls.training.grouping import faults_alone, fields_of_each_head, group_key
from gpt2cls.training.payload import STOP_FILE, RankPayload
from jobs.plan import num_cores
from jobs.rank_files import FAILURE_FILE
from jobs.spec import SweepJob
from jobs.trials import PAYLOAD_FILE, Trial, trial_dir

if TYPE_CHECKING:
    from jobs.trial_keeper import TrialKeeper

LARGEST_GROUP = 256
"""Heads in one program: bounds its memory."""


def are_heads_alone(job: SweepJob) -> bool:
    """Whether every trial of the sweep learns a head and nothing below it.

    Searchers that learn from trials, and schedulers that change them, need them one by one.
    """
    frozen = {"head_only", "last_layer"}
    space = job.search_space
    freezes = set(space["train.freeze"].values) if "train.freeze" in space else {job.train.freeze}
    return (
        job.search.searcher in ("random", "grid")
        and not job.search.pauses_trials
        and job.cluster.workers == 1
        and job.model.head == "linear"
        and freezes <= frozen
        and (job.model.pooling != "attention" or freezes == {"last_layer"})
        and job.train.precision != "fp16"
        and not job.train.lm_weight
        and set(space) <= fields_of_each_head()
    )


def run_head_trials(keeper: "TrialKeeper") -> None:
    """Train all trials of a sweep, in as few programs as their settings allow."""
    from gpt2cls.training.heads import run_heads

    while trials := _next_group(keeper):
        payloads = []
        begun = [trial for trial in trials if keeper.begin(trial)]
        for trial in begun:
            keeper.started(keeper.roster.started(trial.number))
            payloads.append(_payload(keeper, trial))
        for group in _alike(payloads):
            try:
                run_heads(group, should_stop=lambda: _is_over(keeper))
            except RequestError as error:
                for payload in group:
                    (payload.job_dir / FAILURE_FILE).write_text(str(error))
        for trial in begun:
            keeper.ended(keeper.roster.ended(trial.number))


def _next_group(keeper: "TrialKeeper") -> list[Trial]:
    trials: list[Trial] = []
    while len(trials) < LARGEST_GROUP and (trial := keeper.roster.next()) is not None:
        trials.append(trial)
    return trials


def _payload(keeper: "TrialKeeper", trial: Trial) -> RankPayload:
    folder = trial_dir(keeper.dir, trial.number)
    (folder / STOP_FILE).unlink(missing_ok=True)
    payload = RankPayload.model_validate_json((folder / PAYLOAD_FILE).read_text())
    return payload.model_copy(update={"threads": num_cores()})


def _alike(payloads: list[RankPayload]) -> list[list[RankPayload]]:
    groups: dict[str, list[RankPayload]] = {}
    for payload in payloads:
        assert not faults_alone(payload), "are_heads_alone() has looked"
        groups.setdefault(repr(sorted(group_key(payload).items())), []).append(payload)
    return [*groups.values()]


def _is_over(keeper: "TrialKeeper") -> bool:
    return (keeper.dir / STOP_FILE).exists() or keeper.roster.why_no_more is not None
