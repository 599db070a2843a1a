"""Data in object storage: each object is copied to this machine once, then read like any file.

Credentials are what the environment says, as the makers of each storage have it.
"""

import shutil
import tempfile
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

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
    sources = {name: getattr(config, name, None) for name in _SPLITS}
    given = {
        name: value if isinstance(value, tuple) else (value,) for name, value in sources.items()
    }
    addresses = [one for of_split in given.values() for one in of_split if is_object(one)]
    if not addresses:
        return config
    paths = copies(list(dict.fromkeys(addresses)), cache_dir)
    changed: dict[str, Any] = {}
    for name, of_split in given.items():
        if not any(map(is_object, of_split)):
            continue
        local = [str(path) for one in of_split for path in paths.get(one, [one])]
        if len(local) > 1 and isinstance(config, DataConfig):
            raise DataError(f"data.{name} = {sources[name]}: {len(local)} objects; name one")
        changed[name] = local[0] if len(local) == 1 else tuple(local)
    return config.model_copy(update=changed)


def copies(addresses: list[str], cache_dir: Path) -> dict[str, list[Path]]:
    """Local copies by address: of an object, or of those in a folder or under a pattern.

    Raises:
        DataError: there is none, it cannot be read, or there is no room for the copies.
    """
    found = {address: _found(address) for address in addresses}
    shelf_dir = cache_dir / "objects"
    shelf_dir.mkdir(parents=True, exist_ok=True)
    limit = shelf.limit_bytes(shelf_dir)
    size_bytes = sum(one.info.size for of_address in found.values() for one in of_address)
    if size_bytes > limit:
        sizes = f"{size_bytes / 1e9:.3g} GB, and {limit / 1e9:.3g} GB may be kept on this disk"
        raise DataError(f"{', '.join(addresses)}: no room for copies: {sizes}")
    # First of all what is here: together they fit, so none goes for another one of them.
    for one in (one for of_address in found.values() for one in of_address):
        shelf.note_use(shelf_dir / one.key)
    return {
        address: [_copied(one, address, shelf_dir, limit) for one in of_address]
        for address, of_address in found.items()
    }


@dataclass(frozen=True)
class _Object:
    storage: "FileSystem"
    info: "FileInfo"

    @property
    def key(self) -> str:
        info = self.info
        version = f"{self.storage.type_name} {info.path} {info.size} {info.mtime_ns}"
        return sha256(version.encode()).hexdigest()[:32]


def _found(address: str) -> list[_Object]:
    from pyarrow.fs import FileSystem

    if words := address_fault(address):
        raise DataError(f"an address in object storage must be {words}")
    parts = urlsplit(address)
    folder, _, name = parts.path.rpartition("/")
    pattern = unquote(name) if "*" in name else None
    asked = parts._replace(path=parts.path if pattern is None else folder)
    try:
        storage, path = FileSystem.from_uri(urlunsplit(asked))
        infos = _files(storage, path)
    except (OSError, ValueError) as error:
        raise _unreadable(address, error) from error
    if pattern is not None:
        infos = [info for info in infos if fnmatchcase(info.base_name, pattern)]
    if not infos:
        raise DataError(f"{address}: no such object in this storage")
    return [_Object(storage, info) for info in sorted(infos, key=lambda info: info.path)]


def _files(storage: "FileSystem", path: str) -> list["FileInfo"]:
    """The object, or those directly in the folder; no markers such as `_SUCCESS`."""
    from pyarrow.fs import FileSelector, FileType

    info = storage.get_file_info(path)
    if info.type != FileType.Directory:
        return [info] if info.type == FileType.File else []
    return [
        one
        for one in storage.get_file_info(FileSelector(path))
        if one.type == FileType.File and one.size and not one.base_name.startswith((".", "_"))
    ]


def _copied(one: _Object, address: str, shelf_dir: Path, limit: int) -> Path:
    folder, info = shelf_dir / one.key, one.info
    copy: Path = folder / info.base_name
    if copy.is_file():
        return copy
    shelf.make_room(shelf_dir, info.size, limit)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=shelf_dir))
    try:
        with (
            one.storage.open_input_stream(info.path) as source,
            (aside / copy.name).open("wb") as f,
        ):
            shutil.copyfileobj(source, f, 1 << 20)
        if (aside / copy.name).stat().st_size != info.size:
            raise OSError("it changed while it was read; run the job again")
        try:
            aside.rename(folder)
        except OSError:
            if not copy.is_file():  # else another job was faster
                raise
    except OSError as error:
        raise _unreadable(address, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return copy


def _unreadable(address: str, error: Exception) -> DataError:
    words = " ".join(str(error).split())
    return DataError(f"{address}: cannot be read: {words[:300]}")
