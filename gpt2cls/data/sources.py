"""Read any accepted source into rows."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from gpt2cls.data.hub import read_hub, read_saved
from gpt2cls.data.keys import row_keys
from gpt2cls.data.locate import BUILTIN, Located, check_source_exists, corpus_folder, locate
from gpt2cls.data.rows import Columns, Origin, Place, Rows, join_rows
from gpt2cls.data.splitting import hold_out
from gpt2cls.data.tables import read_table
from gpt2cls.data.text_files import read_class_folders
from gpt2cls.errors import DataError

__all__ = ["Columns", "Origin", "Place", "Rows", "check_source_exists", "read_source"]

BUILTIN_TEST_SHARE = 0.1


def read_source(source: str, columns: Columns, *, base_dir: Path) -> dict[str, Rows]:
    """The splits of a source: files, globs and folders have one, called "train".

    A label that is missing is null; what to do about it is the caller's to decide.

    Args:
        source: as DataConfig.train describes it; a relative path is meant from `base_dir`.
        columns: which columns to read. Class folders have none: a file is a text, and its
            folder's name is the label.
        base_dir: the folder of the job file.

    Raises:
        DataError: not there, not readable, a column missing, or a value that cannot be used.
    """
    return _read(locate(source, base_dir=base_dir), source, columns, base_dir)


def source_parts(source: str, columns: Columns, *, base_dir: Path) -> Iterator[dict[str, Rows]]:
    """As `read_source`, one file after another where there are several."""
    located = locate(source, base_dir=base_dir)
    if located.kind != "files":
        yield _read(located, source, columns, base_dir)
        return
    for path in located.paths:
        yield {"train": _read_files(replace(located, paths=(path,)), columns, base_dir)}


def _read(located: Located, source: str, columns: Columns, base_dir: Path) -> dict[str, Rows]:
    if located.kind == "hub":
        return read_hub(source, columns)
    if located.kind == "saved":
        return read_saved(located.paths[0], source, columns)
    if located.kind == "files":
        return {"train": _read_files(located, columns, base_dir)}
    if columns.separator is not None or len(columns.texts) == 2:
        raise DataError(f"{source}: has one text and one label a row; no pairs and no separator")
    if columns.choices is not None:
        raise DataError(f"{source}: has no column of answers; leave data.choices out")
    if columns.is_number:
        raise DataError(f"{source}: its labels are names of classes; set data.task to classes")
    if located.kind == "builtin":
        return _read_builtin()
    return {"train": read_class_folders(located.paths[0], source)}


def _read_files(located: Located, columns: Columns, base_dir: Path) -> Rows:
    parts = [read_table(path, _shown(path, base_dir), columns) for path in located.paths]
    parts = [part for part in parts if len(part)] or parts[:1]
    kinds = {part.is_multi_label: part for part in parts}
    if len(kinds) > 1:
        raise DataError(
            f"{kinds[True].where(0)}: lists of labels here, but single ones at "
            f"{kinds[False].where(0)}; make every label a list"
        )
    return join_rows(parts)


def _shown(path: Path, base_dir: Path) -> str:
    return str(path.relative_to(base_dir)) if path.is_relative_to(base_dir) else str(path)


def _read_builtin() -> dict[str, Rows]:
    """BBC News: one of its 2,225 files is Latin-1, the others are UTF-8."""
    rows = read_class_folders(corpus_folder(), BUILTIN, fallback="latin-1")
    assert rows.labels is not None
    classes = np.unique(rows.labels.to_numpy(), return_inverse=True)[1]
    is_test = hold_out(row_keys(rows.texts), classes, BUILTIN_TEST_SHARE, seed=(0,))
    return {"train": _filtered(rows, ~is_test), "test": _filtered(rows, is_test)}


def _filtered(rows: Rows, mask: np.ndarray) -> Rows:
    assert rows.labels is not None
    return Rows(rows.texts.filter(mask), None, rows.labels.filter(mask), rows.origin.keep(mask))
