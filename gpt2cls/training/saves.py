"""What a rank keeps in the job's folder: checkpoints to resume from, and the best weights."""

import shutil
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gpt2cls.errors import CheckpointError
from gpt2cls.model.vocabulary import restore_all_rows
from gpt2cls.training.checkpoint import (
    Checkpoint,
    checkpoint_path,
    find_checkpoint,
    read_whole,
    remove_half_written,
    save_checkpoint,
    write_whole,
)
from gpt2cls.training.ranks import Ranks
from gpt2cls.training.state import (
    Best,
    TrainState,
    load_model_tensors,
    load_optimizer_tensors,
    model_tensors,
    optimizer_tensors,
    position,
    set_position,
)

CHECKPOINTS = "checkpoints"
BEST = "best"


def resume(state: TrainState, job_dir: Path, fingerprint: str, ranks: Ranks) -> list[str]:
    """Go to the newest whole checkpoint, if there is one; words about damaged ones.

    Raises:
        CheckpointError: there are checkpoints, but none that this job can use.
    """
    root = job_dir / CHECKPOINTS
    if ranks.is_first:
        remove_half_written(root)
    ranks.total(0)  # tidied up
    found, notes = find_checkpoint(root, fingerprint)
    step = found.step if found else 0
    if ranks.total(step) != step * ranks.world:
        raise CheckpointError(
            f"the ranks see different checkpoints in {root} (rank {ranks.rank}: step {step}); "
            "put $GPT2CLS_HOME on storage that they share"
        )
    if found is not None:
        _load(state, found)
        notes += _forget_lost_best(state, root)
    return notes


def _load(state: TrainState, found: Checkpoint) -> None:
    load_model_tensors(state.model, found.tensors("model"))
    load_optimizer_tensors(state, found.tensors("optimizer"))
    set_position(state, found.state)


def _forget_lost_best(state: TrainState, root: Path) -> list[str]:
    if state.best is None or state.best.step == state.step:
        return []
    try:
        read_whole(checkpoint_path(root, state.best.step))
    except CheckpointError as error:
        lost, state.best = state.best.step, None
        return [f"the best weights so far (step {lost}) are lost: {error}; the best is sought anew"]
    return []


def save(state: TrainState, job_dir: Path, fingerprint: str, names: set[str], ranks: Ranks) -> None:
    """Rank 0 writes a checkpoint; all ranks learn whether that went well.

    Raises:
        CheckpointError: on all ranks, when it could not be written.
    """
    fault: CheckpointError | None = None
    if ranks.is_first:
        tensors = {
            # Weights that never learn are built again from where they came from.
            "model": model_tensors(state.model, names),
            "optimizer": optimizer_tensors(state),
        }
        record = {"job": fingerprint, **position(state)}
        try:
            save_checkpoint(job_dir / CHECKPOINTS, state.step, tensors, record)
        except CheckpointError as error:
            fault = error
    if ranks.total(float(fault is not None)):
        raise fault or CheckpointError(
            f"rank 0 could not write the checkpoint of step {state.step}; its log says why"
        )


def keep_best(
    state: TrainState,
    job_dir: Path,
    fingerprint: str,
    metric: str,
    names: set[str],
    ranks: Ranks,
) -> None:
    """Put the best weights back into the model, and those in `names` into `<job_dir>/best`.

    Weights that never learn are built again from where they came from, as with checkpoints: the
    best head on a frozen backbone takes kilobytes, not the half gigabyte of GPT-2.
    """
    best = state.best
    if best is not None and best.step != state.step:
        folder = checkpoint_path(job_dir / CHECKPOINTS, best.step)
        load_model_tensors(state.model, read_whole(folder).tensors("model"))
    restore_all_rows(state.model)
    if ranks.is_first:
        write_best(
            job_dir, model_tensors(state.model, names), fingerprint, metric, best, state.step
        )
    ranks.total(0)  # it is there when any rank returns


def write_best(
    job_dir: Path,
    tensors: dict[str, Tensor],
    fingerprint: str,
    metric: str,
    best: Best | None,
    step: int,
) -> None:
    """Make `<job_dir>/best`; without a best evaluation it is said to be of `step`."""
    record = {
        "job": fingerprint,
        "step": best.step if best else step,
        "metrics": best.metrics if best else {},
        "select_metric": metric,
    }
    write_whole(job_dir / BEST, {"model": tensors}, record)


def load_best(job_dir: Path, model: nn.Module) -> dict[str, Any]:
    """Give `model` the best weights of a finished job; what `best/state.json` says of them.

    What never learned is not among them: build `model` with the settings and seed of the job.

    Raises:
        CheckpointError: the weights are missing, damaged, or of another model.
    """
    best = read_whole(job_dir / BEST)
    load_model_tensors(model, best.tensors("model"))
    return best.state


def adopt(source: Path, job_dir: Path, fingerprint: str) -> int:
    """Make the checkpoint of another job the one from which this job goes on; its step.

    Where this job has this very checkpoint already, nothing is changed.

    Raises:
        CheckpointError: it is damaged, or cannot be written.
    """
    given, root = read_whole(source), job_dir / CHECKPOINTS
    own = checkpoint_path(root, given.step)
    record = given.state | {"job": fingerprint}
    if own.exists() and read_whole(own).state == record:  # values of the weights' last evaluation
        return given.step
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    tensors = {name: given.tensors(name) for name in ("model", "optimizer")}
    write_whole(own, tensors, {key: record[key] for key in record if key != "format"})
    return given.step
