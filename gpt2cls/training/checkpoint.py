"""Training state to and from folders that are whole or not there at all.

A checkpoint is `step-00000120/`: safetensors and JSON, written aside, then renamed; its manifest
of checksums is written last and marks it as complete. Knows files; knows no model.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpt2cls.errors import CheckpointError

FORMAT = 1
MANIFEST = "manifest.json"
STATE = "state.json"
_NAME = re.compile(r"step-(\d{8,})")
_KEEP_NEWEST = 2
_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


@dataclass(frozen=True)
class Checkpoint:
    """One whole checkpoint: what its `state.json` says, and where its tensors are."""

    folder: Path
    step: int
    state: dict[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        return load_file(self.folder / f"{name}.safetensors")


def checkpoint_path(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def save_checkpoint(
    root: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]
) -> Path:
    """Write the checkpoint of a step; then delete those that nothing needs any more.

    Raises:
        CheckpointError: the storage is full or cannot be written; older ones are as they were.
    """
    folder = checkpoint_path(root, step)
    write_whole(folder, tensors, {**state, "step": step})
    for old in _not_needed(root):
        shutil.rmtree(checkpoint_path(root, old), ignore_errors=True)
    return folder


def write_whole(folder: Path, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
    """Make `folder` of tensor files and a state, replacing the one that may be there."""
    aside = folder.with_name(f".{folder.name}.writing")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for name, named in tensors.items():
            contiguous = {key: tensor.contiguous() for key, tensor in named.items()}
            save_file(contiguous, aside / f"{name}.safetensors")
        _write_json(aside / STATE, {"format": FORMAT, **state})
        sums = {path.name: _sum_and_sync(path) for path in sorted(aside.iterdir())}
        _write_json(aside / MANIFEST, {"format": FORMAT, "sha256": sums})
        _sum_and_sync(aside / MANIFEST)
        _rename_over(aside, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(_storage_words(folder, error)) from error


def _rename_over(aside: Path, folder: Path) -> None:
    # A folder cannot be renamed over a full one: the old one steps aside first.
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    _sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _storage_words(folder: Path, error: Exception) -> str:
    where = next(path for path in folder.parents if path.exists())
    usage = shutil.disk_usage(where)
    # safetensors wraps the fault of the system in an error of its own, as text.
    number = getattr(error, "errno", None)
    is_full = number in _STORAGE or "os error 28" in str(error) or "os error 27" in str(error)
    return (
        f"{'storage full or not writable: ' if is_full else ''}cannot write {folder}: {error} "
        f"({usage.free / 2**20:,.0f} MiB of {usage.total / 2**20:,.0f} MiB are free). Checkpoints "
        "written before are kept; make room, then resume the job."
    )


def find_checkpoint(root: Path, job: str) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint of this job, and words about each that had to be passed over.

    Reads only, so that every rank may call it. `job` is the fingerprint given in `state["job"]`.

    Raises:
        CheckpointError: there are checkpoints but none can be used.
    """
    notes: list[str] = []
    steps = _steps(root)
    for step in reversed(steps):
        folder = checkpoint_path(root, step)
        if fault := _fault(folder):
            notes.append(f"checkpoint of step {step} is damaged ({fault}) and was passed over")
            continue
        state = json.loads((folder / STATE).read_text())
        _check_owner(folder, state, job)
        return Checkpoint(folder, step, state), notes
    if steps:
        raise CheckpointError(
            f"{root}: no checkpoint can be used: {'; '.join(notes)}. To begin again from step 0, "
            "delete this folder, or run the job anew."
        )
    return None, notes


def read_whole(folder: Path) -> Checkpoint:
    """A folder of `write_whole`, verified.

    Raises:
        CheckpointError: it is not there or damaged.
    """
    if fault := _fault(folder):
        raise CheckpointError(f"{folder}: {fault}")
    state = json.loads((folder / STATE).read_text())
    return Checkpoint(folder, int(state["step"]), state)


def remove_half_written(root: Path) -> None:
    """Delete what a killed process left behind; call it while nobody writes."""
    for path in root.glob(".*.writing"):
        shutil.rmtree(path, ignore_errors=True)
    for path in root.glob(".*.old"):
        whole = path.with_name(path.name[1:].removesuffix(".old"))
        if whole.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:  # killed between the two renames
            path.rename(whole)


def not_needed(references: dict[int, int | None]) -> list[int]:
    """Steps whose checkpoints may go, given the step of the best one that each refers to.

    The newest stays, the one before it (the newest may prove damaged), and the best of both.
    """
    newest = sorted(references)[-_KEEP_NEWEST:]
    keep = {*newest, *(references[step] for step in newest)}
    return sorted(set(references) - keep)


def _not_needed(root: Path) -> list[int]:
    references: dict[int, int | None] = {}
    for step in _steps(root):
        try:
            best = json.loads((checkpoint_path(root, step) / STATE).read_text()).get("best")
        except (OSError, ValueError):
            best = None  # damaged: it refers to nothing
        references[step] = best["step"] if best else None
    return not_needed(references)


def _steps(root: Path) -> list[int]:
    if not root.is_dir():
        return []
    matches = (_NAME.fullmatch(path.name) for path in root.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def _check_owner(folder: Path, state: dict[str, Any], job: str) -> None:
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder}: format {state.get('format')!r}, this version reads format {FORMAT}; resume "
            "with the version that wrote it, or delete the checkpoints to begin again"
        )
    if state.get("job") != job:
        raise CheckpointError(
            f"{folder}: written by a job with other settings or data (its fingerprint is "
            f"{state.get('job')!r}, this job's {job!r}); resume that job, or give this one a "
            "folder of its own"
        )


def _fault(folder: Path) -> str | None:
    """Why the folder cannot be trusted, or None."""
    try:
        sums = json.loads((folder / MANIFEST).read_text())["sha256"]
    except FileNotFoundError:
        return f"{MANIFEST} is missing: it was never completed"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    for name, expected in sums.items():
        try:
            if _sum(folder / name) != expected:
                return f"{name} does not match its checksum"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error}"
    return None


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sum_and_sync(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1))
