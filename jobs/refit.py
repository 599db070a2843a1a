"""The winner of a sweep, trained once more on all that may be learned from."""

import json
from dataclasses import replace
from pathlib import Path

from gpt2cls.data.prepare import Prepared
from gpt2cls.data.tasks import joined
from gpt2cls.training.payload import RankPayload
from gpt2cls.training.schedule import rhythm_steps
from jobs.attempt import Attempt, Ready
from jobs.inputs import tokens_of, write_labels
from jobs.spec import FinetuneJob
from jobs.training import ray_for, train

REFIT_FOLDER = "refit"


def refit(
    attempt: Attempt, job: FinetuneJob, payload: RankPayload, ready: Ready, winner_dir: Path
) -> RankPayload:
    """Train on train and validation together; the payload whose folder has the weights.

    The run is as long, in epochs, as the winner's was at its best evaluation. What it measures on
    validation is no measure any more, so the last weights are taken.
    """
    both = _with_validation(ready.prepared)
    of_both = attempt.dir / REFIT_FOLDER
    of_both.mkdir(exist_ok=True)
    labels = write_labels(both, of_both)
    tokens = tokens_of(job, both, ready.tokenizer, attempt.surroundings)
    best_step = json.loads((winner_dir / "best" / "state.json").read_text())["step"]
    batch = job.train.batch_size
    before, after = (-(-len(p.train.labels) // batch) for p in (ready.prepared, both))
    num_steps = max(1, round(best_step * after / before))
    once = f"{num_steps} steps"
    config = job.train.model_copy(
        update={
            "max_steps": num_steps,
            "epochs": -(-num_steps // after),
            "eval_every": once,
            "checkpoint_every": _checkpoints(job, after),
            "early_stopping": None,
        }
    )
    payload = payload.model_copy(
        update={
            "train": config,
            "job_dir": attempt.dir,  # what is measured belongs to the run of the sweep itself
            "train_tokens": tokens["train"],
            "train_labels": labels["train"],
        }
    )
    with ray_for(job.cluster, attempt.surroundings) as ray:
        train(payload, job.cluster, ray, attempt.log)
    return payload


def _with_validation(prepared: Prepared) -> Prepared:
    return replace(prepared, train=joined(prepared.train, prepared.validation))


def _checkpoints(job: FinetuneJob, steps_per_epoch: int) -> str:
    return f"{rhythm_steps(job.train.checkpoint_every, steps_per_epoch)} steps"
