"""Folders that are expensive to make and are named after what they hold.

Several processes may ask for the same folder at once: one makes it, the others wait for it.
A folder that is torn (a file missing, cut short or altered) is made again.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "manifest.json"
_CHUNK_BYTES = 4 * 2**20


def cached_folder(parent: Path, key: str, make: Callable[[Path], None]) -> Path:
    """The folder `parent/key`; `make` fills an empty folder if there is no sound one yet."""
    folder = parent / key
    if is_whole(folder):
        return folder
    parent.mkdir(parents=True, exist_ok=True)
    with _locked(parent / f"{key}.lock"):
        if not is_whole(folder):  # perhaps somebody made it while this process waited
            _replace(folder, make)
    return folder


def _replace(folder: Path, make: Callable[[Path], None]) -> None:
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        made = aside / "made"
        made.mkdir()
        make(made)
        seal(made)
        if folder.exists():  # torn; moved, so that a process that still reads it is not disturbed
            os.rename(folder, aside / "torn")
        os.rename(made, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def seal(folder: Path) -> None:
    """Write the sizes and checksums of all files into the manifest, and wait for the disk."""
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    manifest = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    for path in (*files, folder / MANIFEST):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_whole(folder: Path) -> bool:
    """Whether the folder has a manifest and every file is as the manifest says."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return all(
            (folder / name).stat().st_size == entry["bytes"]
            and sha256(folder / name) == entry["sha256"]
            for name, entry in manifest.items()
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock; the kernel lets go of it when the process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def hash_texts(column: "pa.ChunkedArray") -> str:
    """A hash of the texts and their order; how they are cut into chunks does not matter."""
    import pyarrow as pa

    lengths, content = hashlib.sha256(), hashlib.sha256()
    for chunk in column.chunks:
        texts = chunk.cast(pa.large_string())
        if not len(texts):
            continue
        _, offset_bytes, text_bytes = texts.buffers()
        offsets = np.frombuffer(offset_bytes, np.int64)[texts.offset :][: len(texts) + 1]
        lengths.update(np.diff(offsets).tobytes())
        if text_bytes is not None:
            content.update(memoryview(text_bytes)[offsets[0] : offsets[-1]])
    return lengths.hexdigest() + content.hexdigest()
