"""Tables of any size, read a chunk at a time with every column kept as it is.

CSV and TSV values stay text ("007" stays "007"), JSON values stay what they are, Parquet columns
stay Arrow columns. No more than a chunk is in memory, however long the file or a line in it is.
"""

import csv
import gzip
import itertools
import json
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gpt2cls.errors import DataError

FORMATS = ("csv", "tsv", "jsonl", "json", "parquet")
CHUNK_ROWS = 10_000
CHUNK_BYTES = 32 * 2**20
MAX_LINE_CHARACTERS = 16 * 2**20
"""A longer line is not a row but a missing line break or quote."""
MAX_COLUMNS = 10_000
MAX_WHOLE_CHARACTERS = 2**28
"""Of a JSON object of columns, which can only be read whole."""
MISSING = object()
"""Stands in a chunk for a key that a JSON object does not have, which is not the same as null."""

READ_CHARACTERS = 2**18
_BETWEEN = re.compile(r"[ \t\r\n,]*")
_UNDECODED = re.compile("[\udc80-\udcff]")
_DELIMITERS = {"csv": ",", "tsv": "\t"}
_BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


@dataclass(frozen=True)
class Chunk:
    """Some rows of a file: its columns in order, as lists or Arrow arrays."""

    columns: dict[str, Sequence[Any]]
    places: Sequence[int]
    """Line (text formats) or row (JSON array, Parquet) of each row, counted from 1."""
    before_place: str
    """How a place is named, up to its number: `train.csv:` or `train.parquet, row `."""

    def where(self, row: int) -> str:
        return f"{self.before_place}{self.places[row]}"

    def __len__(self) -> int:
        return len(self.places)


def table_format(path: Path) -> tuple[str, bool]:
    """The format by the file's name, and whether it is gzipped.

    Raises:
        DataError: the name says no known format.
    """
    suffixes = [suffix.lower().lstrip(".") for suffix in path.suffixes]
    gzipped = suffixes[-1:] == ["gz"]
    name = (suffixes[:-1] if gzipped else suffixes)[-1:]
    found = "jsonl" if name == ["ndjson"] else "".join(name)
    if found not in FORMATS:
        endings = ", ".join(f".{known}" for known in FORMATS)
        raise DataError(f"{path}: the ending says no known format; use {endings} (or with .gz)")
    return found, gzipped


def read_chunks(path: Path, *, chunk_rows: int = CHUNK_ROWS) -> Iterator[Chunk]:
    """The file's rows in order; at least one chunk, which has the columns but maybe no rows.

    Raises:
        DataError: not readable as its ending says; names the line or row.
    """
    kind, gzipped = table_format(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        if kind == "parquet":
            yield from _parquet_chunks(path, gzipped, chunk_rows)
            return
        with _open_text(path, gzipped) as file:
            if kind in _DELIMITERS:
                yield from _csv_chunks(file, path, _DELIMITERS[kind], chunk_rows)
            else:
                records = _jsonl_records if kind == "jsonl" else _json_records
                yield from _record_chunks(records(file, path), path, kind, chunk_rows)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


@contextmanager
def _open_text(path: Path, gzipped: bool) -> Iterator[IO[str]]:
    """Text in UTF-8 or UTF-16; bytes that are neither become surrogates, found line by line."""
    opener: Any = gzip.open if gzipped else open
    with opener(path, "rb") as file:
        encoding = _encoding(file.read(4))
    with opener(path, "rt", encoding=encoding, errors="surrogateescape", newline="") as file:
        yield file


def _encoding(start: bytes) -> str:
    for mark, encoding in _BOMS:
        if start.startswith(mark):
            return encoding
    # ASCII in UTF-16 without a byte order mark: every other byte is zero.
    if len(start) == 4 and start[1] == start[3] == 0 and start[0]:
        return "utf-16-le"
    if len(start) == 4 and start[0] == start[2] == 0 and start[1]:
        return "utf-16-be"
    return "utf-8"


def _lines(file: IO[str], path: Path) -> Iterator[str]:
    """Lines with their ends, each of bounded length and rightly decoded."""
    for number in itertools.count(1):
        line = file.readline(MAX_LINE_CHARACTERS)
        if not line:
            return
        if len(line) == MAX_LINE_CHARACTERS:
            raise DataError(
                f"{path}:{number}: a line of over {MAX_LINE_CHARACTERS} characters; "
                "is a line break or a closing quote missing?"
            )
        _check_characters(line, f"{path}:{number}")
        yield line


def _check_characters(text: str, where: str) -> None:
    if not text.isascii() and (bad := _UNDECODED.search(text)):
        byte = ord(bad[0]) - 0xDC00
        raise DataError(
            f"{where}: byte 0x{byte:02x} at character {bad.start() + 1} is neither "
            "UTF-8 nor UTF-16; save the file as UTF-8. If it is Latin-1: "
            "iconv -f latin1 -t utf-8 OLD > NEW"
        )
    if "\0" in text:
        raise DataError(f"{where}: a NUL character; is this a text file? Remove it")


def _csv_chunks(file: IO[str], path: Path, delimiter: str, chunk_rows: int) -> Iterator[Chunk]:
    csv.field_size_limit(MAX_LINE_CHARACTERS)
    reader = csv.reader(_lines(file, path), delimiter=delimiter, strict=True)
    records = _csv_records(reader, path)
    _, names = next(records, (1, []))
    _check_header(names, path)
    for rows, places in _csv_rows(records, len(names), path, chunk_rows):
        values = zip(*rows, strict=True) if rows else ((),) * len(names)
        yield Chunk(dict(zip(names, values, strict=True)), places, f"{path}:")


def _csv_records(reader: Any, path: Path) -> Iterator[tuple[int, list[str]]]:
    """(first line, values) of each row that is not blank."""
    line = 0
    try:
        for row in reader:
            if row:
                yield line + 1, row
            line = reader.line_num
    except csv.Error as error:
        raise DataError(
            f"{path}:{line + 1}: {error} (in the row that begins here); is a quote missing or not "
            "doubled?"
        ) from error


def _check_header(names: Sequence[str], path: Path) -> None:
    if not names:
        raise DataError(f"{path}: empty; the first line must name the columns")
    if len(names) > MAX_COLUMNS:
        raise DataError(
            f"{path}:1: {len(names):,} columns, at most {MAX_COLUMNS:,} are read; leave out those "
            "that are neither text nor label"
        )
    if len(set(names)) < len(names):
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise DataError(f"{path}:1: column {twice!r} is there twice; rename one")


def _csv_rows(
    records: Iterator[tuple[int, list[str]]], num_columns: int, path: Path, chunk_rows: int
) -> Iterator[tuple[list[list[str]], list[int]]]:
    rows: list[list[str]] = []
    places: list[int] = []
    size = 0
    for first_line, row in records:
        if len(row) != num_columns:
            raise DataError(
                f"{path}:{first_line}: {len(row)} values in a table of {num_columns} columns; "
                "is a quote or a delimiter missing?"
            )
        rows.append(row)
        places.append(first_line)
        size += sum(map(len, row))
        if len(rows) == chunk_rows or size > CHUNK_BYTES:
            yield rows, places
            rows, places, size = [], [], 0
    yield rows, places


def _jsonl_records(file: IO[str], path: Path) -> Iterator[tuple[int, Any, int]]:
    """(line, object, characters) of each line that is not blank."""
    for number, line in enumerate(_lines(file, path), start=1):
        if line.isspace():
            continue
        try:
            yield number, json.loads(line), len(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: not JSON: {error}") from error


def _json_records(file: IO[str], path: Path) -> Iterator[tuple[int, Any, int]]:
    """(row, object, characters) of an array of objects, without reading it whole."""
    decoder = json.JSONDecoder()
    text, at = file.read(READ_CHARACTERS), 0
    if text.lstrip().startswith("{"):
        yield from _json_columns(text + file.read(MAX_WHOLE_CHARACTERS), path)
        return
    if not text.lstrip().startswith("["):
        raise DataError(f"{path}: must hold an array of objects; one object a line is .jsonl")
    text = text.lstrip()[1:]
    for row in itertools.count(1):
        while True:
            at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]
            if text.startswith("]", at):
                return
            try:
                record, end = decoder.raw_decode(text, at)
                break
            except ValueError as error:
                more = file.read(READ_CHARACTERS)
                if not more or len(text) - at > MAX_LINE_CHARACTERS:
                    raise DataError(f"{path}, row {row}: not JSON: {error}") from error
                text, at = text[at:] + more, 0
            except RecursionError as error:
                raise DataError(f"{path}, row {row}: nested too deeply") from error
        _check_characters(text[at:end], f"{path}, row {row}")
        yield row, record, end - at
        at = end


def _json_columns(text: str, path: Path) -> Iterator[tuple[int, Any, int]]:
    """(row, object, characters) of an object of columns, each an array of equal length."""
    if len(text) > MAX_WHOLE_CHARACTERS:
        raise DataError(f"{path}: too large for an object of columns; write one object a line")
    _check_characters(text, str(path))
    try:
        columns = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}; one object a line is .jsonl") from error
    if not all(isinstance(values, list) for values in columns.values()):
        raise DataError(
            f"{path}: must hold an array of objects, or one object of arrays; one object a line "
            "is .jsonl"
        )
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{path}: its columns differ in length: {lengths}")
    for row, values in enumerate(zip(*columns.values(), strict=True), start=1):
        yield row, dict(zip(columns, values, strict=True)), 0


def _record_chunks(
    records: Iterator[tuple[int, Any, int]], path: Path, kind: str, chunk_rows: int
) -> Iterator[Chunk]:
    before_place = f"{path}:" if kind == "jsonl" else f"{path}, row "
    rows: list[dict[str, Any]] = []
    places: list[int] = []
    size = 0

    def chunk() -> Chunk:
        names = dict.fromkeys(itertools.chain.from_iterable(rows))
        columns: dict[str, Sequence[Any]] = {
            name: [row.get(name, MISSING) for row in rows] for name in names
        }
        return Chunk(columns, places, before_place)

    for place, record, characters in records:
        if not isinstance(record, dict):
            found = type(record).__name__
            raise DataError(f"{before_place}{place}: {found} where an object is due")
        rows.append(record)
        places.append(place)
        size += characters
        if len(rows) == chunk_rows or size > CHUNK_BYTES:
            yield chunk()
            rows, places, size = [], [], 0
    yield chunk()


def _parquet_chunks(path: Path, gzipped: bool, chunk_rows: int) -> Iterator[Chunk]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if gzipped:  # Parquet is read from its end, so it needs a real file
        with gzip.open(path) as packed, tempfile.NamedTemporaryFile(suffix=".parquet") as whole:
            shutil.copyfileobj(packed, whole)
            whole.flush()
            yield from _parquet_chunks(Path(whole.name), False, chunk_rows)
        return
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        _check_header(names, path)
        row_bytes = _row_bytes(file.metadata)
        batches = file.iter_batches(batch_size=max(1, min(chunk_rows, CHUNK_BYTES // row_bytes)))
        empty = pa.Table.from_batches([], file.schema_arrow)
        first = 1
        for batch in itertools.chain(batches, () if file.metadata.num_rows else (empty,)):
            places = range(first, first + batch.num_rows)
            yield Chunk(dict(zip(names, batch.columns, strict=True)), places, f"{path}, row ")
            first += batch.num_rows
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file: {error}") from error


def _row_bytes(metadata: Any) -> int:
    """Mean size of a row, uncompressed."""
    groups = range(metadata.num_row_groups)
    total = sum(metadata.row_group(group).total_byte_size for group in groups)
    return int(max(1, total // max(1, metadata.num_rows)))
