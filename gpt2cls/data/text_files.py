"""Whole files that are one text each: their encoding, and folders of them."""

import codecs
import gzip
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa

from gpt2cls.data.locate import class_folders
from gpt2cls.data.rows import Origin, Place, Rows
from gpt2cls.errors import DataError

MAX_TEXT_BYTES = 2**24
"""A longer text would be cut to a ten-thousandth of itself anyway."""
CHUNK_BYTES = 2**26
PART_BYTES = MAX_TEXT_BYTES
"""Of a corpus in one large file: about as much of it is one text."""
_TOO_LONG = f"longer than {MAX_TEXT_BYTES:,} bytes, too long for one text"
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_class_folders(folder: Path, name: str, *, fallback: str | None = None) -> Rows:
    """Every file of every folder in `folder`, labelled with the folder's name.

    Args:
        folder: holds one folder per class, each of which holds text files.
        name: how the folder is named in messages.
        fallback: the encoding of a file that is not Unicode, where that is known beforehand.

    Raises:
        DataError: a file cannot be read as text, or a class folder holds a folder.
    """
    files = [file for label in class_folders(folder) for file in _files(label, name)]
    named = [(f"{name}/{file.parent.name}/{file.name}", file) for file in files]
    labels = pa.array([file.parent.name for file in files], pa.large_string())
    return replace(read_text_files(named, fallback), labels=pa.chunked_array([labels]))


def read_text_files(files: Sequence[tuple[str, Path]], fallback: str | None = None) -> Rows:
    """Every file as one text without a label; each with how it is named in messages.

    Raises:
        DataError: a file cannot be read as text.
    """
    chunks = [*_texts(files, fallback)]
    places = [Place(shown, 1, is_one_row=True) for shown, _ in files]
    return Rows(pa.chunked_array(chunks, pa.large_string()), None, None, Origin(places))


def _texts(files: Iterable[tuple[str, Path]], fallback: str | None = None) -> Iterator[pa.Array]:
    """A text per file, in chunks of a little more than CHUNK_BYTES characters."""
    texts, size = [], 0
    for shown, file in files:
        text = decode(_content(file, shown), shown, fallback=fallback)
        texts.append(text)
        size += len(text)
        if size > CHUNK_BYTES:
            yield pa.array(texts, pa.large_string())
            texts, size = [], 0
    if texts:
        yield pa.array(texts, pa.large_string())


def corpus_parts(files: Sequence[tuple[str, Path]]) -> Iterator[pa.Array]:
    """As `read_text_files`, but a file too long for one text is several, each of whole lines.

    A chunk of short files, and as much of a long one as becomes one text, are held at a time.

    Raises:
        DataError: a file cannot be read as text, or has a line that is too long for one text.
    """
    for is_long, some in groupby(files, key=lambda file: _is_long(file[1])):
        if is_long:
            yield from (part for file in some for part in _in_parts(*file))
        else:
            yield from _texts(some)


def _is_long(file: Path) -> bool:
    return file.suffix == ".gz" or file.stat().st_size > MAX_TEXT_BYTES


def _in_parts(shown: str, file: Path) -> Iterator[pa.Array]:
    opener: Any = gzip.open if file.suffix == ".gz" else open
    held: list[bytes] = []
    size = num_lines = 0
    try:
        with opener(file, "rb") as opened:
            while line := opened.readline(MAX_TEXT_BYTES + 1):
                if not num_lines and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    words = "UTF-16, which long files cannot be: iconv -f utf-16 -t utf-8"
                    raise DataError(f"{shown}: {words} OLD > NEW")
                if len(line) > MAX_TEXT_BYTES:
                    raise DataError(f"{shown}:{num_lines + 1}: {_TOO_LONG}")
                held.append(line)
                size += len(line)
                num_lines += 1
                if size >= PART_BYTES:
                    yield _part(held, shown, num_lines)
                    held, size = [], 0
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{shown}: cannot be read: {error}") from error
    if held or not num_lines:
        yield _part(held, shown, num_lines)


def _part(lines: list[bytes], shown: str, num_lines: int) -> pa.Array:
    text = decode(b"".join(lines), shown, first_line=num_lines - len(lines) + 1)
    return pa.array([text], pa.large_string())


def decode(data: bytes, where: str, *, fallback: str | None = None, first_line: int = 1) -> str:
    """The text that UTF-8 or (with a byte order mark) UTF-16 bytes stand for.

    Raises:
        DataError: the bytes are something else; nothing is guessed.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if fallback is not None:
            return data.decode(fallback)
        line = data.count(b"\n", 0, error.start) + first_line
        raise DataError(
            f"{where}:{line}: byte 0x{data[error.start]:02x} is not {encoding}. If the text is "
            "Latin-1, convert it: iconv -f latin1 -t utf-8 OLD > NEW"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + first_line
        raise DataError(
            f"{where}:{line}: a NUL character, which is not text. Remove it; if the file is UTF-16 "
            "without a byte order mark, convert it: iconv -f utf-16le -t utf-8 OLD > NEW"
        )
    return text


def _files(folder: Path, name: str) -> list[Path]:
    children = sorted(child for child in folder.iterdir() if not child.name.startswith("."))
    inner = [child.name for child in children if child.is_dir()]
    if inner:
        raise DataError(
            f"{name}/{folder.name}: the folder of a class must hold only files; "
            f"{inner[0]!r} is a folder. Move its files up, or make it a class of its own"
        )
    return children


def _content(file: Path, shown: str) -> bytes:
    opener: Any = gzip.open if file.suffix == ".gz" else open
    try:
        with opener(file, "rb") as opened:
            data: bytes = opened.read(MAX_TEXT_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{shown}: cannot be read: {error}") from error
    if len(data) > MAX_TEXT_BYTES:
        raise DataError(
            f"{shown}: {_TOO_LONG}; a file with a text in each row needs an ending such as .csv"
        )
    return data
