"""Tables written a chunk at a time, aside, and renamed when whole.

The other half of `stream.py`: what that reads, this writes, in any of the same formats.
"""

import csv
import fcntl
import gzip
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from gpt2cls.data.stream import MISSING, table_format
from gpt2cls.errors import DataError, RequestError

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_FORMULA = re.compile("[ ]*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
"""What makes a spreadsheet run a cell, the full-width forms included (OWASP, "CSV Injection")."""
_DELIMITERS = {"csv": ",", "tsv": "\t"}

Columns = dict[str, Sequence[Any]]


class TableWriter(Protocol):
    """Takes the columns of one chunk after the other; the first chunk decides the columns."""

    def __call__(self, columns: Columns, num_rows: int) -> None: ...


def check_output(output: Path, source: Path) -> None:
    """Refuse an output that cannot or must not be written.

    Raises:
        RequestError: it is the input, a folder, of no known format, or lies in no writable folder.
    """
    kind, gzipped = table_format(output)
    if kind == "parquet" and gzipped:
        raise RequestError(f"{output}: Parquet is compressed already; leave out .gz")
    folder = output.parent
    if not folder.is_dir():
        raise RequestError(f"{output}: there is no folder {folder}; make it first")
    if output.exists() and not output.is_file():
        raise RequestError(f"{output}: is there and is not a file; name a file")
    if output.exists() and source.exists() and output.samefile(source):
        raise RequestError(f"{output}: is the input itself; name another output")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RequestError(f"{output}: the folder {folder} cannot be written to; choose another")


@contextmanager
def written_aside(output: Path) -> Iterator[Path]:
    """A hidden file beside `output` that takes its name when the block ends well.

    Whatever ends the block early, there is nothing half-written under the name, and what was
    there stays. A process that is killed leaves its hidden file; the next one removes it.
    """
    _remove_leftovers(output)
    aside = output.parent / f".{output.name}.{os.getpid()}.part"
    try:
        held = os.open(aside, os.O_CREAT | os.O_RDWR | os.O_TRUNC, 0o666)
    except OSError as error:
        raise RequestError(f"{output}: cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(held, fcntl.LOCK_EX)  # held while this process lives: not a leftover
        yield aside
        os.fsync(held)
        os.replace(aside, output)
    finally:
        aside.unlink(missing_ok=True)
        os.close(held)


def _remove_leftovers(output: Path) -> None:
    for aside in output.parent.glob(f".{_glob_text(output.name)}.*.part"):
        try:
            with aside.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                aside.unlink()
        except OSError:
            continue  # another process writes it, or has just finished


def _glob_text(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


@contextmanager
def open_writer(output: Path, *, spreadsheet_safe: bool = False) -> Iterator[TableWriter]:
    """A writer of `output`, in the format of its ending; the file appears when the block ends."""
    kind, gzipped = table_format(output)
    with ExitStack() as stack:
        aside = stack.enter_context(written_aside(output))
        if kind == "parquet":
            write = _parquet_writer(aside, stack)
        else:
            opener: Any = gzip.open if gzipped else open
            options = {"compresslevel": 6} if gzipped else {}
            file = stack.enter_context(opener(aside, "wt", encoding="utf-8", newline="", **options))
            write = _TEXT_WRITERS[kind](file, stack)
        yield _neutralised(write) if spreadsheet_safe else write


def _neutralised(write: TableWriter) -> TableWriter:
    """Column names and texts that a spreadsheet would run get a leading apostrophe."""

    def safe(value: Any) -> Any:
        if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value):
            return "'" + value
        return value

    def safe_column(column: Sequence[Any]) -> Sequence[Any]:
        values = as_list(column)
        return [safe(v) for v in values] if any(isinstance(v, str) for v in values) else column

    def write_safe(columns: Columns, num_rows: int) -> None:
        write({safe(name): safe_column(column) for name, column in columns.items()}, num_rows)

    return write_safe


def as_list(column: Sequence[Any]) -> Sequence[Any]:
    """The column as plain Python values."""
    if isinstance(column, np.ndarray):
        return column.tolist()
    return column.to_pylist() if hasattr(column, "to_pylist") else column


def _delimited_writer(delimiter: str) -> Callable[[IO[str], ExitStack], TableWriter]:
    def start(file: IO[str], stack: ExitStack) -> TableWriter:
        rows = csv.writer(_UnixLines(file), delimiter=delimiter, lineterminator="\r\n")
        names: list[str] = []

        def write(columns: Columns, num_rows: int) -> None:
            if not names:
                names.extend(columns)
                rows.writerow(names)
            if new := [name for name in columns if name not in names]:
                raise DataError(
                    f"{', '.join(map(repr, new))}: a column that the first rows do not have; "
                    "write to .jsonl, where rows may differ"
                )
            nothing = [""] * num_rows
            cells = [_cells(columns[name]) if name in columns else nothing for name in names]
            rows.writerows(zip(*cells, strict=True))

        return write

    return start


class _UnixLines:
    """Ends rows with a line feed; asked for that, csv would leave carriage returns unquoted."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, row: str) -> None:
        self._file.write(row[:-2] + "\n")


def _cells(column: Sequence[Any]) -> list[str]:
    if isinstance(column, np.ndarray) and column.dtype.kind == "f":
        return [f"{value:.7g}" for value in column.tolist()]
    return [value if isinstance(value, str) else _cell(value) for value in as_list(column)]


def _cell(value: Any) -> str:
    if value is None or value is MISSING:
        return ""
    return json.dumps(value, ensure_ascii=False, default=str) if _is_json(value) else str(value)


def _is_json(value: Any) -> bool:
    return isinstance(value, bool | list | dict)


def _json_rows(columns: Columns, num_rows: int) -> Iterator[str]:
    names, values = list(columns), [_json_values(column) for column in columns.values()]
    for cells in zip(*values, strict=True) if values else [()] * num_rows:
        row = {n: v for n, v in zip(names, cells, strict=True) if v is not MISSING}
        yield json.dumps(row, ensure_ascii=False, default=str)


def _json_values(column: Sequence[Any]) -> Sequence[Any]:
    if isinstance(column, np.ndarray) and column.dtype.kind == "f":
        return [float(f"{value:.7g}") for value in column.tolist()]
    return as_list(column)


def _jsonl_writer(file: IO[str], stack: ExitStack) -> TableWriter:
    def write(columns: Columns, num_rows: int) -> None:
        file.writelines(row + "\n" for row in _json_rows(columns, num_rows))

    return write


def _json_writer(file: IO[str], stack: ExitStack) -> TableWriter:
    between = "[\n"

    def write(columns: Columns, num_rows: int) -> None:
        nonlocal between
        for row in _json_rows(columns, num_rows):
            file.write(between + row)
            between = ",\n"

    # Called only when all went well, before the file closes.
    def finish(kind: Any, *_: Any) -> None:
        if kind is None:
            file.write("[]\n" if between == "[\n" else "\n]\n")

    stack.push(finish)
    return write


def _parquet_writer(aside: Path, stack: ExitStack) -> TableWriter:
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer: Any = None

    def write(columns: Columns, num_rows: int) -> None:
        nonlocal writer
        schema = writer.schema if writer else None
        try:
            table = pa.table({n: _arrow(c, schema, n) for n, c in columns.items()})
            if writer is None:
                writer = stack.enter_context(pq.ParquetWriter(aside, table.schema))
            writer.write_table(table.select(writer.schema.names))
        except (pa.ArrowInvalid, pa.ArrowTypeError, KeyError, ValueError) as error:
            raise DataError(
                f"the rows do not fit one Parquet schema: {error}; write to .jsonl, "
                "where rows may differ"
            ) from error

    return write


def _arrow(column: Sequence[Any], schema: Any, name: str) -> Any:
    import pyarrow as pa

    if isinstance(column, pa.Array | pa.ChunkedArray | np.ndarray):
        return pa.array(column) if isinstance(column, np.ndarray) else column
    wanted = None if schema is None else schema.field(name).type
    values = [None if value is MISSING else value for value in column]
    array = pa.array(values, wanted)
    return array.cast(pa.string()) if pa.types.is_null(array.type) else array


_TEXT_WRITERS: dict[str, Callable[[IO[str], ExitStack], TableWriter]] = {
    **{kind: _delimited_writer(delimiter) for kind, delimiter in _DELIMITERS.items()},
    "jsonl": _jsonl_writer,
    "json": _json_writer,
}
