"""What stages of pipelines have made, each in a folder named after all that decided it.

A folder appears whole, by a rename, and is believed only as long as every file in it is as it
was when it was made.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gpt2cls.data.cache import sha256
from gpt2cls.data.keys import fingerprint

ABOUT = "stage.json"
RESULT = "result.json"
_FORMAT = 1
"""Raised when a stage of the same settings and inputs makes something else than before."""


@dataclass(frozen=True)
class Made:
    """What one stage made."""

    folder: Path
    about: dict[str, Any]

    @property
    def output(self) -> Path | None:
        """The model folder, the file or the folder of files that was made; None: there is none."""
        name = self.about["output"]
        return self.folder / name if name else None

    def part(self, what: str) -> Path:
        """What a reference of another stage stands for."""
        assert self.output is not None
        is_whole = what in ("model", "output")
        return self.output if is_whole else self.output / f"{what}.parquet"

    @property
    def result(self) -> dict[str, Any]:
        """The document of the job that made it."""
        return dict(json.loads((self.folder / RESULT).read_text(encoding="utf-8")))


def address_of(
    settings: Mapping[str, Any], content: Mapping[str, Any], parents: Mapping[str, str]
) -> str:
    """The name of what comes of these settings and inputs.

    Args:
        settings: of the job, as far as they decide its result.
        content: a hash of what each input holds.
        parents: addresses of the stages that were needed.
    """
    document = {
        "format": _FORMAT,
        "version": version("gpt2cls"),
        "settings": settings,
        "content": content,
        "parents": dict(sorted(parents.items())),
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def hash_of_folder(folder: Path) -> str:
    """Of the names and contents of all files in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return fingerprint(
        part.encode()
        for path in files
        for part in (path.relative_to(folder).as_posix(), sha256(path))
    )


def folder_of(cache_dir: Path, address: str) -> Path:
    return cache_dir / "stages" / address


def find(cache_dir: Path, address: str) -> tuple[Made | None, str | None]:
    """What has this address, if it is sound; else, where there is something, why it is not."""
    folder = folder_of(cache_dir, address)
    if not folder.is_dir():
        return None, None
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if fault := _fault(folder, about["files"]):
            return None, fault
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return None, f"{folder / ABOUT} cannot be read: {error}"
    return Made(folder, about), None


def _fault(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> str | None:
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != entry["bytes"] or sha256(path) != entry["sha256"]:
            return f"{path} was altered after it was made"
    return None


def keep(
    cache_dir: Path, address: str, aside: Path, about: Mapping[str, Any], result: Mapping[str, Any]
) -> Made:
    """Move what lies in the folder `aside` to its address.

    If something sound has come there meanwhile, that is kept and `aside` is dropped.
    """
    (aside / RESULT).write_text(json.dumps(result), encoding="utf-8")
    files = {
        path.relative_to(aside).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(aside.rglob("*"))
        if path.is_file()
    }
    whole = {"format": _FORMAT, "address": address, **about, "files": files}
    (aside / ABOUT).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    _to_disk(aside)
    folder = folder_of(cache_dir, address)
    folder.parent.mkdir(parents=True, exist_ok=True)
    made, _ = find(cache_dir, address)
    if made is None:
        torn = aside.with_name(f"{aside.name}-torn")
        if folder.exists():
            os.rename(folder, torn)
        os.rename(aside, folder)
        shutil.rmtree(torn, ignore_errors=True)
    shutil.rmtree(aside, ignore_errors=True)
    return made or Made(folder, whole)


def forget(made: Made) -> None:
    """Take something out of the store; another process may have done so already."""
    aside = made.folder.with_name(f".{made.folder.name}-{os.getpid()}")
    with suppress(FileNotFoundError):
        os.rename(made.folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


def _to_disk(folder: Path) -> None:
    """Wait until all files are on the disk: a rename must not come there before them."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
