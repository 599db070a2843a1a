"""Which jobs may train their heads together, over the same pooled vectors.

Pure functions of payloads; imports nothing heavy, so that a sweep can ask before torch is there.
"""

from collections.abc import Sequence
from typing import Any

from gpt2cls.config import BUILTIN_SHAPES
from gpt2cls.errors import RequestError
from gpt2cls.training.payload import RankPayload

_OF_EACH_MODEL = {"dropout", "temperature", "truncation_smoothing", "prob_floor"}
_OF_EACH_TRAIN = {
    *("lr", "embedding_lr", "layer_decay", "warmup", "schedule", "weight_decay", "betas", "clip"),
    *("class_weights", "label_smoothing", "epochs", "max_steps", "eval_every", "checkpoint_every"),
    *("early_stopping", "freeze", "seed"),
}
_OF_EACH_PAYLOAD = {"job_dir", "select_metric", "initial_loss_scale"}


def faults_alone(payload: RankPayload) -> list[str]:
    """Why a job can join no group; empty if it can.

    It has to learn a linear head and nothing else. fp16 is left to single runs: it skips steps.
    """
    model, train = payload.model, payload.train
    faults = []
    if train.freeze not in ("head_only", "last_layer"):
        faults.append(f"train.freeze = {train.freeze}: must be head_only or last_layer")
    if train.freeze == "head_only" and model.pooling == "attention":
        faults.append(
            "model.pooling = attention: it learns too with train.freeze = head_only; set "
            "train.freeze to last_layer"
        )
    if model.head != "linear":
        faults.append(f"model.head = {model.head}: must be linear")
    if model.hidden:
        faults.append(f"model.hidden = {model.hidden}: must be 0")
    if (kind := payload.task.get("kind")) not in ("single_label", "multi_label"):
        faults.append(f"the task is {kind}: must be one of classes")
    if train.precision == "fp16":
        faults.append("train.precision = fp16: must be bf16, fp32 or auto")
    if train.lm_weight:
        faults.append(f"train.lm_weight = {train.lm_weight:g}: must be 0")
    if train.lm_epochs:
        faults.append(f"train.lm_epochs = {train.lm_epochs}: must be 0")
    return faults


def fields_of_each_head() -> set[str]:
    """The fields of a job file in which jobs of one group may differ."""
    return {f"model.{name}" for name in _OF_EACH_MODEL} | {
        f"train.{name}" for name in _OF_EACH_TRAIN
    }


def group_key(payload: RankPayload) -> dict[str, Any]:
    """What all jobs of a group must have alike, by the name of the field."""
    key = payload.model_dump(mode="json", exclude={"model", "train", *_OF_EACH_PAYLOAD})
    model = payload.model.model_dump(mode="json", exclude=_OF_EACH_MODEL)
    train = payload.train.model_dump(mode="json", exclude=_OF_EACH_TRAIN)
    if model["pooling"] != "attention":
        del model["heads"]
    if draws_below_head(payload):
        train["seed"] = payload.train.seed
    key |= {f"model.{name}": value for name, value in model.items()}
    return key | {f"train.{name}": value for name, value in train.items()}


def draws_below_head(payload: RankPayload) -> bool:
    """True when the pooled vectors depend on the seed: of weights that nobody has trained."""
    is_drawn = payload.model.backbone in BUILTIN_SHAPES or payload.model.pooling == "attention"
    return is_drawn or payload.num_new > 0


def differences(one: RankPayload, other: RankPayload) -> list[str]:
    """The fields that keep two jobs out of one group, in words; empty if they may be together."""
    ours, theirs = group_key(one), group_key(other)
    return [
        f"{name} = {theirs.get(name)!r}: must be {ours.get(name)!r} as in {one.job_dir.name}"
        + (", because untrained weights below the head are drawn from it" * (name == "train.seed"))
        for name in sorted(ours | theirs)
        if ours.get(name) != theirs.get(name)
    ]


def check_group(payloads: Sequence[RankPayload]) -> None:
    """Refuse jobs whose heads cannot train together, naming every field that is in the way.

    Raises:
        RequestError: with a line for each fault.
    """
    if not payloads:
        raise RequestError("no jobs to train together")
    faults = []
    for payload in payloads:
        found = faults_alone(payload) + differences(payloads[0], payload)
        faults += [f"{payload.job_dir.name}: {words}" for words in found]
    folders = [payload.job_dir for payload in payloads]
    faults += [f"{f}: the folder of two jobs" for f in sorted(set(folders)) if folders.count(f) > 1]
    if faults:
        raise RequestError("these heads cannot train together:\n" + "\n".join(faults))
