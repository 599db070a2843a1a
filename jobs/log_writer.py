"""The process that stores what an attempt prints: a pipe in, numbered files of whole lines out.

A process of its own, because a thread would go with the attempt, and with it what is still in the
pipe. It imports little, so that it is there at once, and ends when nobody can write any more.
"""

import fcntl
import os
import re
import signal
import time
from contextlib import suppress

from jobs.masking import mask

MAX_LINE_CHARS = 16 << 10
_SLACK_BYTES = 1 << 10
"""Kept beyond the limit until secrets are masked, so that a cut never leaves half of one."""
_MAX_KEPT_BYTES = MAX_LINE_CHARS + _SLACK_BYTES
_CHUNK_BYTES = 64 << 10
_FILE_NAME = re.compile(r"([0-9]{6,9})\.log", re.ASCII)

# ECMA-48: a control sequence (colours, cursor); a string up to its end (titles, links); two bytes.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[PX^_][^\x1b]*\x1b\\"
    r"|\x1b[ -/]*[0-~]"
)
_UNSEEN = re.compile(  # but the tab: bytes for a terminal, breaks of lines, changes of direction
    r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def file_name(number: int) -> str:
    return f"{number:06d}.log"


def file_number(name: str) -> int | None:
    """Which file of a log has this name; None: it is none."""
    match = _FILE_NAME.fullmatch(name)
    return int(match[1]) if match else None


def clean(text: str) -> str:
    r"""The text without escape sequences, what else cannot be seen as `\x07` or `\u202e`."""
    if text.isprintable():  # nearly every line
        return text
    return _UNSEEN.sub(_as_seen, _ESCAPES.sub("", text))


def _as_seen(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def line_text(kept: bytes, size_bytes: int) -> str:
    """What is stored of a line of which only the beginning may have been kept."""
    text = mask(clean(kept.decode("utf-8", "replace")))
    if size_bytes <= MAX_LINE_CHARS and len(text) <= MAX_LINE_CHARS:
        return text
    num_chars = len(text) - (_SLACK_BYTES if size_bytes > len(kept) else 0)
    return f"{text[: min(max(num_chars, 0), MAX_LINE_CHARS)]} ...[cut: {size_bytes:,} bytes]"


class LineCutter:
    """Makes lines of chunks, in bounded memory; of a progress bar the last state is the line."""

    def __init__(self) -> None:
        self._kept = b""
        self._size_bytes = 0
        self._is_returned = False  # a carriage return was the last: what comes now overwrites
        self._is_begun = False

    def feed(self, chunk: bytes) -> list[str]:
        """The lines that the chunk completes."""
        *ends, rest = chunk.split(b"\n")
        lines = []
        for piece in ends:
            self._add(piece)
            lines.append(self._take())
        self._add(rest)
        self._is_begun |= bool(rest)
        return lines

    def end(self) -> list[str]:
        """The last line, if nobody ended it."""
        return [self._take()] if self._is_begun else []

    def _add(self, piece: bytes) -> None:
        states = piece.rstrip(b"\r")
        if states:
            _, returned, state = states.rpartition(b"\r")
            if returned or self._is_returned:
                self._kept, self._size_bytes = b"", 0
            self._kept += state[: _MAX_KEPT_BYTES - len(self._kept)]
            self._size_bytes += len(state)
            self._is_returned = False
        self._is_returned |= len(states) < len(piece)

    def _take(self) -> str:
        text = line_text(self._kept, self._size_bytes)
        self._kept, self._size_bytes, self._is_returned, self._is_begun = b"", 0, False, False
        return text


class RotatedLog:
    """Appends to numbered files of a folder; the oldest but the first go when there are too many.

    Nothing that was written is ever changed, and a file gets no more once the next one is there:
    somebody who reads meanwhile needs no lock. A disk that is full makes lines go missing, not the
    job: how much is said when there is room again.
    """

    def __init__(self, folder: str, max_bytes: int, file_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._file_bytes = min(file_bytes, max_bytes)
        self._sizes_bytes = _sizes_bytes(folder)
        # Not the newest one: who wrote it may have been killed in the middle of a line.
        self._number = max(self._sizes_bytes, default=-1) + 1
        self._sizes_bytes[self._number] = 0
        self._file: int | None = None
        self._torn = b""  # the rest of a line whose beginning is in the file
        self._lost_bytes = 0
        self._why = ""

    def append(self, lines: bytes) -> None:
        while lines:
            part = lines if self._torn else self._fitting(lines)
            self._store(part)
            lines = lines[len(part) :]

    def close(self) -> None:
        if self._torn or self._lost_bytes:
            self._store(b"")
        self._close_file()

    def _fitting(self, lines: bytes) -> bytes:
        """The lines that the file takes, or those that the next one takes."""
        room_bytes = self._file_bytes - self._sizes_bytes[self._number]
        if len(lines) <= room_bytes:
            return lines
        end = lines.rfind(b"\n", 0, max(room_bytes, 0)) + 1
        if end == 0 and self._sizes_bytes[self._number] > 0:
            self._rotate()
            return self._fitting(lines)
        return lines[: end or lines.find(b"\n") + 1]

    def _rotate(self) -> None:
        self._close_file()
        self._number += 1
        self._sizes_bytes[self._number] = self._file_bytes  # as it will be
        for number in sorted(self._sizes_bytes)[1:-1]:
            if sum(self._sizes_bytes.values()) <= self._max_bytes:
                break
            self._remove(number)
        self._sizes_bytes[self._number] = 0

    def _remove(self, number: int) -> None:
        try:
            os.unlink(os.path.join(self._folder, file_name(number)))
        except FileNotFoundError:
            pass
        except OSError:
            return  # it still counts, and is tried again
        del self._sizes_bytes[number]

    def _store(self, lines: bytes) -> None:
        note = self._note() if self._lost_bytes else b""
        data = self._torn + note + lines
        num_written = self._write(data)
        if num_written <= len(self._torn) and num_written < len(data):
            self._torn = self._torn[num_written:]
            self._lost_bytes += len(lines)
        else:
            end = data.find(b"\n", num_written - 1) + 1
            self._torn, self._lost_bytes = data[num_written:end], len(data) - end

    def _note(self) -> bytes:
        text = f"... {self._lost_bytes:,} bytes of log were dropped here: {self._why} ..."
        return stamped([text])

    def _write(self, data: bytes) -> int:
        """How many bytes came to the file; fewer than there are when it failed."""
        num_written = 0
        try:
            if self._file is None:
                path = os.path.join(self._folder, file_name(self._number))
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
                _lock(self._file)
            while num_written < len(data):
                num_written += os.write(self._file, memoryview(data)[num_written:])
        except OSError as error:
            self._why = error.strerror or "error"
            self._close_file()  # a file that went stale is opened anew
        self._sizes_bytes[self._number] += num_written
        return num_written

    def _close_file(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            with suppress(OSError):
                os.close(file)


def _lock(file: int) -> None:
    """So that who follows the log sees that there is more to come; not where there are no locks."""
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sizes_bytes(folder: str) -> dict[int, int]:
    try:
        with os.scandir(folder) as entries:
            files = [(file_number(entry.name), entry) for entry in entries]
            return {
                number: entry.stat(follow_symlinks=False).st_size
                for number, entry in files
                if number is not None
            }
    except OSError:
        return {}


def stamped(lines: list[str]) -> bytes:
    """The lines as they stand in a file, each with the time now."""
    now_ms = time.time_ns() // 1_000_000
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_ms // 1000))
    prefix = f"{stamp}.{now_ms % 1000:03d}Z "
    return "".join([f"{prefix}{line}\n" for line in lines]).encode()


def store_all(source: int, log: RotatedLog) -> None:
    """Store what comes from a pipe until nobody has its other end."""
    cutter = LineCutter()
    while chunk := os.read(source, _CHUNK_BYTES):
        log.append(stamped(cutter.feed(chunk)))
    log.append(stamped(cutter.end()))
    log.close()


def main(folder: str, max_bytes: str, file_bytes: str) -> None:
    """Store what comes on standard input.

    Not as a child of the attempt: who kills its children, or adds up what they use, does not mean
    this one.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the end is that of the pipe
    if os.fork():
        os._exit(0)
    store_all(0, RotatedLog(folder, int(max_bytes), int(file_bytes)))
