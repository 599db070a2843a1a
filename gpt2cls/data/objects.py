"""Data in object storage: each object is copied to this machine once, then read like any file.

Credentials are what the environment says, as the makers of each storage have it.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from gpt2cls.config import CorpusConfig, DataConfig
from gpt2cls.data.locate import address_fault, is_object
from gpt2cls.errors import DataError
from gpt2cls.training import shelf

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

_SPLITS = ("train", "validation", "test")

C = TypeVar("C", DataConfig, CorpusConfig)


def with_local_files(config: C, cache_dir: Path) -> C:
    """The data of a job with local copies in the place of objects.

    Args:
        config: its sources may be addresses.
        cache_dir: copies are kept in `objects` there, by address, size and time of change.

    Raises:
        DataError: an object is not there or cannot be read, or there is no room for its copy.
    """
    changed: dict[str, Any] = {}
    for name in _SPLITS:
        given: Any = getattr(config, name, None)
        if isinstance(given, tuple) and any(map(is_object, given)):
            pieces = [copies(s, cache_dir) if is_object(s) else [s] for s in given]
            changed[name] = tuple(str(path) for paths in pieces for path in paths)
        elif is_object(given):
            paths = [str(path) for path in copies(given, cache_dir)]
            if len(paths) > 1 and isinstance(config, DataConfig):
                raise DataError(f"data.{name} = {given}: {len(paths)} objects; name one of them")
            changed[name] = paths[0] if len(paths) == 1 else tuple(paths)
    return config.model_copy(update=changed)


def copies(address: str, cache_dir: Path) -> list[Path]:
    """Local copies of an object, or of those in a folder or under a pattern, by their names.

    Raises:
        DataError: there is none, it cannot be read, or there is no room for its copy.
    """
    from pyarrow.fs import FileSystem

    if words := address_fault(address):
        raise DataError(f"an address in object storage must be {words}")
    pattern = PurePosixPath(urlsplit(address).path).name
    folder = address.rpartition("/")[0] if "*" in pattern else address
    try:
        storage, path = FileSystem.from_uri(folder)
        found = list(_files(storage, path))
    except (OSError, ValueError) as error:
        raise _unreadable(address, error) from error
    if "*" in pattern:
        found = [info for info in found if fnmatchcase(info.base_name, pattern)]
    if not found:
        raise DataError(f"{address}: no such object in this storage")
    try:
        return _on_shelf(storage, sorted(found, key=lambda i: i.path), cache_dir / "objects")
    except OSError as error:
        raise _unreadable(address, error) from error


def _files(storage: "FileSystem", path: str) -> Iterator["FileInfo"]:
    """The object, or those directly in the folder."""
    from pyarrow.fs import FileSelector, FileType

    info = storage.get_file_info(path)
    among = [info]
    if info.type == FileType.Directory:
        among = storage.get_file_info(FileSelector(path))
    yield from (one for one in among if one.type == FileType.File)


def _on_shelf(storage: "FileSystem", found: list["FileInfo"], shelf_dir: Path) -> list[Path]:
    shelf_dir.mkdir(parents=True, exist_ok=True)
    limit, size_bytes = shelf.limit_bytes(shelf_dir), sum(info.size for info in found)
    if size_bytes > limit:
        gigabytes = f"{size_bytes / 1e9:.3g} GB, and {limit / 1e9:.3g} GB may be kept on this disk"
        raise OSError(f"no room for copies: {gigabytes}")
    return [_copy(storage, info, shelf_dir, limit) for info in found]


def _copy(storage: "FileSystem", info: "FileInfo", shelf_dir: Path, limit: int) -> Path:
    version = f"{storage.type_name} {info.path} {info.size} {info.mtime_ns}"
    folder = shelf_dir / sha256(version.encode()).hexdigest()[:32]
    copy: Path = folder / info.base_name
    if copy.is_file():
        shelf.note_use(folder)
        return copy
    shelf.make_room(shelf_dir, info.size, limit)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=shelf_dir))
    try:
        with storage.open_input_stream(info.path) as source, (aside / copy.name).open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
        if (aside / copy.name).stat().st_size != info.size:
            raise OSError(f"{info.path}: changed while it was read; run the job again")
        with contextlib.suppress(OSError):  # another job was faster
            aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return copy


def _unreadable(address: str, error: Exception) -> DataError:
    words = " ".join(str(error).split())
    return DataError(f"{address}: cannot be read: {words[:300]}")
