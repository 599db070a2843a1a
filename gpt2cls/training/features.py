"""Pooled vectors on disk, for a backbone that does not learn: computed once, not every epoch.

A folder of the cache holds `features.npy` [N, F] in fp32 and is named after all that the vectors
depend on: weights, tokens and precision. It is written aside and renamed when whole.
"""

import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from gpt2cls.data.batches import FeatureRows, TokenRows
from gpt2cls.training.compute import Compute
from gpt2cls.training.evaluating import pooled_features
from gpt2cls.training.precision import Name

_FILE = "features.npy"
TELL_EVERY_S = 10.0


def features_key(model: nn.Module, source: TokenRows, precision: Name) -> str:
    """A fingerprint of all that the vectors depend on: content, not names or times of files."""
    digest = hashlib.blake2b(precision.encode(), digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(("backbone.", "pooling.")):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    # The limit too: which padded shapes there are decides the last bits of a sum.
    digest.update(f"{model.pooling.kind} {source.max_length}".encode())  # type: ignore[union-attr]
    for array in (source.data.offsets, source.data.tokens):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def kept_features(
    model: nn.Module,
    source: TokenRows,
    cache_dir: Path,
    compute: Compute,
    *,
    job: str,
    tell: Callable[[str], None],
) -> FeatureRows:
    """The rows of `source` with their pooled vectors, from the cache or computed by all ranks.

    Args:
        model: its backbone and pooling must not change any more.
        source: the rows.
        cache_dir: on storage that all ranks share.
        compute: each rank computes its share; the vectors are kept in fp32.
        tell: takes words about the progress.
        job: keeps two jobs that compute the same vectors at once out of each other's way.
    """
    key = features_key(model, source, compute.precision)
    ranks = compute.ranks
    folder = cache_dir / key
    # All ranks take the same branch: no rank can make the folder before the others have looked.
    if ranks.total(float(_is_whole(folder, source))) < ranks.world:
        aside = cache_dir / f".{key}.{job}.writing"
        _compute(model, source, aside, compute, tell)
        if ranks.is_first:
            _publish(aside, folder)
        ranks.total(0)  # published
    return FeatureRows(source, np.load(folder / _FILE, mmap_mode="r"))


class Progress:
    """Says now and then how much of a long work is done."""

    def __init__(self, num_rows: int, tell: Callable[[str], None]) -> None:
        self.num_rows, self.tell = num_rows, tell
        self.done, self.told_s = 0, time.monotonic()

    def add(self, num_rows: int) -> None:
        self.done += num_rows
        if time.monotonic() - self.told_s > TELL_EVERY_S:
            self.told_s = time.monotonic()
            self.tell(f"features: {self.done / self.num_rows:.0%} of the texts")


def _compute(
    model: nn.Module,
    source: TokenRows,
    aside: Path,
    compute: Compute,
    tell: Callable[[str], None],
) -> None:
    num_rows, ranks = len(source.data.lengths), compute.ranks
    width: int = model.pooling.width  # type: ignore[union-attr, assignment]
    if ranks.is_first:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        _open(aside, "w+", (num_rows, width)).flush()
    ranks.total(0)  # the file is there for all
    out_NF = _open(aside, "r+", (num_rows, width))
    tell(f"the backbone is frozen: computing its features of {num_rows:,} texts, once")
    progress = Progress(num_rows // ranks.world, tell)
    pooled_features(model, source, out_NF, compute, progress.add)
    out_NF.flush()
    ranks.total(0)  # every rank has written its rows


def _open(folder: Path, mode: Literal["r+", "w+"], shape: tuple[int, int]) -> Any:
    return np.lib.format.open_memmap(folder / _FILE, mode, np.float32, shape)


def _is_whole(folder: Path, source: TokenRows) -> bool:
    try:
        return len(np.load(folder / _FILE, mmap_mode="r")) == len(source.data.lengths)
    except (OSError, ValueError):  # not there, or cut short
        return False


def _publish(aside: Path, folder: Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)  # not whole, or we would not have computed
        aside.rename(folder)
    except OSError:
        if not (folder / _FILE).is_file():
            raise
        shutil.rmtree(aside)  # another job was faster with the same vectors
