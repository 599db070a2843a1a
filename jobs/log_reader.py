"""Reads the logs of a job: of all its attempts, from any line on, also while they are written.

Trusts nothing it reads: what a job left in its folder may be anything, so no symbolic link is
followed, every text is cleaned, and no line, however long, is held whole.
"""

import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from gpt2cls.errors import RequestError
from jobs.log_places import (
    count_lines,
    is_begin_of_line,
    is_being_written,
    log_files,
    opened,
    whole_lines,
)
from jobs.log_writer import clean, line_text

_MAX_CHARS = 16 << 20
"""Of the texts of one answer."""
_LINGER_S = 5.0
_CURSOR = re.compile(r"([0-9]{1,9}):([0-9]{1,9}):([0-9]{1,15})")
_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{3})?Z) (.*)", re.ASCII | re.DOTALL)
# Of ours, or of torch without the space, behind Ray's prefix if there is one; or in that prefix.
_RANK = re.compile(
    r"(?:\([^()]{0,200}\) ?)?\[rank ?([0-9]{1,6})\]"
    r"|\([^()]{0,200}\brank=([0-9]{1,6})\b[^()]{0,200}\)"
)


@dataclass(frozen=True)
class Line:
    """One line of a log, or a remark that lines are missing."""

    attempt: int
    rank: int | None
    """Of the worker that wrote it, where the line says so."""
    at: str
    """In UTC; empty where the log has none, as in a table of a job's own narrative."""
    text: str
    cursor: str
    """To go on from behind this line."""


class _Position(NamedTuple):
    """A place in the logs; those are in order. The narrative of a job is file 0 of attempt 0."""

    attempt: int
    file: int
    offset: int


def read_lines(
    job_dir: Path,
    *,
    after: str | None = None,
    attempt: int | None = None,
    grep: str | None = None,
    limit: int = 10_000,
    tail: int | None = None,
) -> list[Line]:
    """Lines of all attempts in order, or of one; with `tail`, the last so many of them.

    The cursor of a line, given as `after`, goes on behind it. An answer may end before `limit`
    (the texts of one are limited as well), so there is no more only when nothing comes. `grep` is
    a plain text, of which case does not matter; where lines were dropped is told in any case.

    Raises:
        RequestError: `after` is no cursor of these logs, or a number is out of range.
    """
    if limit < 1 or (tail is not None and tail < 0):
        raise RequestError(f"limit = {limit}, tail = {tail}: must be at least 1 and 0")
    reader = _Reader(job_dir, after, attempt, grep)
    if tail is None:
        return _first(reader.more(), limit)
    if not grep:
        reader.skip_to_last(tail)
    return _last(reader.more(), min(tail, limit))


def follow(
    job_dir: Path,
    is_over: Callable[[], bool],
    *,
    poll_s: float = 0.3,
    after: str | None = None,
    attempt: int | None = None,
    grep: str | None = None,
) -> Iterator[Line]:
    """Lines as they are written, until `is_over()` and all was read.

    What came in the last moment may still be on its way to the log, through a pipe; something that
    outlives its job and could go on writing for ever is waited for shortly.

    Raises:
        RequestError: `after` is no cursor of these logs.
    """
    reader = _Reader(job_dir, after, attempt, grep)
    num_quiet, quiet_from_s = 0, time.monotonic()
    while num_quiet < 2:
        position, is_now_over = reader.position, is_over()
        is_waited_for = time.monotonic() < quiet_from_s + _LINGER_S and is_being_written(job_dir)
        yield from reader.more()
        is_quiet = is_now_over and reader.position == position
        if not is_quiet:
            quiet_from_s = time.monotonic()
        num_quiet = num_quiet + 1 if is_quiet and not is_waited_for else 0
        if num_quiet < 2:
            time.sleep(poll_s)


def _first(lines: Iterable[Line], limit: int) -> list[Line]:
    kept: list[Line] = []
    num_chars = 0
    for line in islice(lines, limit):
        num_chars += len(line.text)
        kept.append(line)
        if num_chars > _MAX_CHARS:
            break
    return kept


def _last(lines: Iterable[Line], limit: int) -> list[Line]:
    kept: deque[Line] = deque()
    num_chars = 0
    for line in lines:
        kept.append(line)
        num_chars += len(line.text)
        while len(kept) > limit or num_chars > _MAX_CHARS:
            num_chars -= len(kept.popleft().text)
    return list(kept)


class _Reader:
    """Reads on from a position, which moves along."""

    def __init__(
        self, job_dir: Path, after: str | None, attempt: int | None, grep: str | None
    ) -> None:
        self.position = _position(after)
        self._job_dir, self._attempt = job_dir, attempt
        self._needle = (grep or "").casefold()

    def more(self) -> Iterator[Line]:
        """The whole lines that are there by now."""
        # Listed first: a file with a successor in the list is complete when it is read.
        files = self._files()
        for i, (attempt, number) in enumerate(files):
            with opened(self._job_dir, attempt, number) as file:
                if file is None:
                    continue  # dropped meanwhile: at the next one it is told
                yield from self._rest(file, attempt, number)
            if i + 1 < len(files):
                self.position = _Position(attempt, number + 1, 0)

    def skip_to_last(self, num_lines: int) -> None:
        """Pass over the files before those that hold the last so many lines."""
        for attempt, number in reversed(self._files()):
            if (attempt, number) == self.position[:2]:
                return
            with opened(self._job_dir, attempt, number) as file:
                num_lines -= count_lines(file) if file else 0
            if num_lines <= 0:
                self.position = _Position(attempt, number, 0)
                return

    def _files(self) -> list[tuple[int, int]]:
        """From the position on: attempt and number of each."""
        return [
            (attempt, number)
            for attempt, number in log_files(self._job_dir)
            if (attempt, number) >= self.position[:2] and self._attempt in (None, attempt or 1)
        ]

    def _rest(self, file: BinaryIO, attempt: int, number: int) -> Iterator[Line]:
        offset, num_missing = 0, number
        if attempt == self.position.attempt:
            num_missing = number - self.position.file
            offset = 0 if num_missing else self.position.offset
        if not is_begin_of_line(file, offset):
            raise _bad_cursor(_cursor(self.position))
        for kept, size_bytes, end in whole_lines(file, offset):
            at, text = _at_and_text(kept, size_bytes)
            if num_missing:
                self.position = _Position(attempt, number, 0)
                size_text = _size_text(num_missing * self._file_bytes(file, attempt))
                remark = f"... about {size_text} of log were dropped here ..."
                yield Line(attempt, None, at, remark, _cursor(self.position))
                num_missing = 0
            self.position = _Position(attempt, number, end)
            if not self._needle or self._needle in text.casefold():
                yield Line(attempt or 1, _rank(text), at, text, _cursor(self.position))

    def _file_bytes(self, file: BinaryIO, attempt: int) -> int:
        """Of a file that is full, as the first one is when others were dropped."""
        with opened(self._job_dir, attempt, 0) as first:
            return os.fstat((first or file).fileno()).st_size


def _position(cursor: str | None) -> _Position:
    if cursor is None:
        return _Position(0, 0, 0)
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise _bad_cursor(cursor)
    return _Position(*map(int, match.groups()))


def _cursor(position: _Position) -> str:
    return ":".join(map(str, position))


def _bad_cursor(cursor: str) -> RequestError:
    return RequestError(
        f"after = {cursor[:60]!r}: not the cursor of a line of this job's log; "
        "give one that came with a line, or none to read from the start"
    )


def _at_and_text(kept: bytes, size_bytes: int) -> tuple[str, str]:
    if size_bytes > len(kept):
        whole = line_text(kept, size_bytes)
    else:
        whole = clean(kept.decode("utf-8", "replace"))
    match = _STAMP.fullmatch(whole)
    return (match[1], match[2]) if match else ("", whole)


def _rank(text: str) -> int | None:
    match = _RANK.match(text) if text[:1] in "([" else None
    return int(match[1] or match[2]) if match else None


def _size_text(size_bytes: int) -> str:
    return f"{size_bytes:,} bytes" if size_bytes < 1e6 else f"{size_bytes / 1e6:,.0f} MB"
