"""What jobs share on disk, arrays and models: each in a folder named after all it depends on.

A folder is written aside and renamed when whole. The shelf is bounded: what was not read for the
longest time goes first. A job that reads an array keeps it: a mapped file outlives its name.
Knows files and bytes; does not know what they hold.
"""

import contextlib
import math
import os
import shutil
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

LIMIT_BYTES = 40 * 10**9
"""Of the whole shelf; half of it for one array, so that those of a training and of a validation
split have room side by side."""
FREE_SHARE = 0.5
"""Of the disk, were the shelf empty."""
ABANDONED_S = 24 * 3600.0
"""A folder that is being written and has not changed for this long belongs to a dead job."""

_FILE = "features.npy"


@dataclass(frozen=True)
class ArraySpec:
    shape: tuple[int, ...]
    dtype: DTypeLike

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def limit_bytes(cache_dir: Path) -> int:
    """What all folders of the shelf may take together on this disk."""
    free = shutil.disk_usage(cache_dir).free
    return min(LIMIT_BYTES, int(FREE_SHARE * (free + sum(map(_size, _folders(cache_dir))))))


def why_refused(size_bytes: int, limit: int) -> str | None:
    """Words when an array is too large for a shelf of `limit` bytes."""
    if size_bytes <= limit // 2:
        return None
    return f"{_gb(size_bytes)} GB, but a file may have {_gb(limit // 2)} GB on this disk"


def doomed(
    used_s: dict[Path, float], sizes: dict[Path, int], new_bytes: int, limit: int
) -> list[Path]:
    """Which folders go so that a new one has room: the least recently used first."""
    total, chosen = sum(sizes.values()) + new_bytes, []
    for folder in sorted(used_s, key=lambda folder: (used_s[folder], folder.name)):
        if total <= limit:
            break
        chosen.append(folder)
        total -= sizes[folder]
    return chosen


def make_room(cache_dir: Path, new_bytes: int, limit: int, *, spared_s: float = 0.0) -> None:
    """Remove abandoned folders, then the least recently used ones above the limit.

    What was used within the last `spared_s` seconds stays, whatever the limit.
    """
    for folder in _folders(cache_dir, being_written=True):
        if time.time() - _changed_s(folder) > ABANDONED_S:
            shutil.rmtree(folder, ignore_errors=True)
    whole = _folders(cache_dir)
    used_s = {folder: _changed_s(folder) for folder in whole}
    for folder in doomed(used_s, {folder: _size(folder) for folder in whole}, new_bytes, limit):
        if time.time() - used_s[folder] >= spared_s:
            shutil.rmtree(folder, ignore_errors=True)


def open_array(folder: Path, spec: ArraySpec) -> NDArray[Any] | None:
    """The array, mapped; None: not there, cut short, or another one."""
    try:
        array: NDArray[Any] = np.load(folder / _FILE, mmap_mode="r")
    except (OSError, ValueError):
        return None
    if array.shape != spec.shape or array.dtype != spec.dtype:
        return None
    note_use(folder)
    return array


def note_use(folder: Path) -> None:
    """It is the last to be removed now."""
    with contextlib.suppress(OSError):  # read-only, or just removed by another job
        now_ns = time.time_ns()  # the kernel's own clock here is only good to some milliseconds
        os.utime(folder, ns=(now_ns, now_ns))


def reserve(aside: Path, spec: ArraySpec) -> None:
    """Make the file of a new array, with all its blocks.

    Raises:
        OSError: the disk is full. Later a write through the mapping would kill the process.
    """
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    new_array(aside, spec, "w+").flush()
    if not hasattr(os, "posix_fallocate"):
        return  # not Linux
    with (aside / _FILE).open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, (aside / _FILE).stat().st_size)
        except OSError:
            shutil.rmtree(aside)
            raise


def new_array(aside: Path, spec: ArraySpec, mode: str = "r+") -> Any:
    return np.lib.format.open_memmap(aside / _FILE, mode, spec.dtype, spec.shape)


def publish(aside: Path, folder: Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)  # not sound, or it would not have been made anew
        aside.rename(folder)
    except OSError:
        if not (folder / _FILE).is_file():
            raise
        shutil.rmtree(aside)  # another job was faster with the same array


def _folders(cache_dir: Path, *, being_written: bool = False) -> list[Path]:
    found = cache_dir.iterdir() if cache_dir.is_dir() else ()
    return [path for path in found if path.name.startswith(".") == being_written]


def _size(folder: Path) -> int:
    return sum(status.st_size for status in _statuses(folder) if stat.S_ISREG(status.st_mode))


def _changed_s(folder: Path) -> float:
    """When the folder or a file in it last changed; a folder is touched each time it is opened."""
    return max((status.st_mtime for status in _statuses(folder)), default=0.0)


def _statuses(folder: Path) -> list[os.stat_result]:
    """Of the folder and of all in it; not of what another job has just removed."""
    found: list[os.stat_result] = []
    with contextlib.suppress(OSError):
        found.extend(path.stat() for path in (folder, *folder.rglob("*")))
    return found


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.3g}"
