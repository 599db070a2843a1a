"""What Tune's schedulers are told of the trials of earlier sessions."""

import json
from pathlib import Path
from typing import Any

import pytest
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, TrialScheduler

from jobs.proposals import Drawn
from jobs.roster import Roster
from jobs.search import SearchConfig
from jobs.trial_process import NUM_EVALUATIONS, SCORE, with_params
from jobs.trials import trial_dir
from jobs.tune import _Earlier, _NoController, _tell
from tune_spaces import read_space

SPACE = read_space({"train.lr": {"log_uniform": [1e-4, 1e-1]}})


def roster_with(folder: Path, curves: list[list[float]]) -> Roster:
    """A sweep of which trials with these evaluations are done."""
    sweep = Roster(
        folder,
        SearchConfig(trials=20),
        Drawn(SPACE, {}, 0),
        num_configurations=20,
        first_seed=0,
    )
    for curve in curves:
        trial = sweep.next()
        assert trial is not None
        where = trial_dir(folder, trial.number)
        where.mkdir(parents=True)
        lines: list[dict[str, Any]] = [{"kind": "start", "step": 0, "metrics": {}}]
        for i, value in enumerate(curve, start=1):
            lines.append({"kind": "eval", "step": i, "metrics": {"eval/accuracy": value}})
        lines.append({"kind": "stop", "step": len(curve), "metrics": {}, "reason": "finished"})
        text = "".join(json.dumps({"time_ms": 0, **line}) + "\n" for line in lines)
        (where / "events.jsonl").write_text(text)
        sweep.ended(trial.number)
    return sweep


def scheduler(kind: type) -> TrialScheduler:
    compared = {"time_attr": NUM_EVALUATIONS, "metric": SCORE, "mode": "max"}
    if kind is ASHAScheduler:
        return ASHAScheduler(**compared, max_t=9, grace_period=1, reduction_factor=3)
    return MedianStoppingRule(**compared, grace_period=1, min_samples_required=3)


@pytest.mark.parametrize("kind", [ASHAScheduler, MedianStoppingRule])
def test_a_rule_judges_by_the_trials_of_earlier_sessions(tmp_path: Path, kind: type) -> None:
    asked = scheduler(kind)
    _tell(asked, roster_with(tmp_path, [[0.7, 0.8], [0.75, 0.8], [0.8, 0.9], [0.85, 0.9]]))
    new = _Earlier("new")
    asked.on_trial_add(None, new)
    bad = asked.on_trial_result(_NoController(), new, {NUM_EVALUATIONS: 1, SCORE: 0.1})
    assert bad == TrialScheduler.STOP
    other = _Earlier("other")
    asked.on_trial_add(None, other)
    good = asked.on_trial_result(_NoController(), other, {NUM_EVALUATIONS: 1, SCORE: 0.95})
    assert good == TrialScheduler.CONTINUE
    fresh = scheduler(kind)
    fresh.on_trial_add(None, new)
    first = fresh.on_trial_result(_NoController(), new, {NUM_EVALUATIONS: 1, SCORE: 0.1})
    assert first == TrialScheduler.CONTINUE


def test_sampled_values_take_their_places_in_the_payload() -> None:
    from gpt2cls.training.payload import RankPayload

    paths = {
        name: Path(name)
        for name in ("train_tokens", "validation_tokens", "train_labels", "validation_labels")
    }
    payload = RankPayload(
        model={},  # type: ignore[arg-type]
        train={},  # type: ignore[arg-type]
        task={},
        job_dir=Path("job"),
        vocab_size=10,
        pad_id=0,
        max_length=8,
        base_dir=Path(),
        **paths,
    )
    changed = with_params(payload, {"train.lr": 0.5, "model.dropout": 0.25, "data.max_length": 4})
    assert (changed.train.lr, changed.model.dropout) == (0.5, 0.25)
    assert changed.max_length == 8  # its tokens are made before the trial begins
    assert (payload.train.lr, payload.model.dropout) == (1e-4, 0.2)
