"""Columns of texts that lie on disk and are mapped, so that a corpus may be larger than memory."""

import mmap
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

_SCHEMA = pa.schema([("text", pa.large_string())])


def mapped(chunks: Iterable[pa.Array], folder: Path) -> pa.ChunkedArray:
    """The texts of all chunks, in a file in `folder`; only one chunk is held at a time.

    The file has no name: it is gone with its last reader, however that one ends. Its pages come
    and go as they are read.

    Args:
        chunks: large_string without nulls.
        folder: on a disk that has room for them; it is made if it is not there.

    Raises:
        OSError: the disk is full, or not to be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        with pa.ipc.new_file(pa.PythonFile(file, "w"), _SCHEMA) as writer:
            for chunk in chunks:
                writer.write_batch(pa.record_batch([chunk], schema=_SCHEMA))
        file.flush()
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return pa.ipc.open_file(pa.py_buffer(pages)).read_all().column(0)
