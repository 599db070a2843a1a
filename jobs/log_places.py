"""Where the logs of a job lie, and how their files are opened: whatever the job put there.

No symbolic link below the job's folder is followed, and no line, however long, is held whole.
"""

import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from jobs.log_writer import MAX_LINE_CHARS, file_name, file_number
from jobs.logs import LOG_DIR

_ATTEMPTS_DIR = "attempts"
_ATTEMPT = re.compile(r"[1-9][0-9]{0,8}")
_NARRATIVE = "job.log"
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE, errno.ENXIO}
_PIECE_BYTES = 8 * MAX_LINE_CHARS  # no line that we stored is longer
_BLOCK_BYTES = 1 << 20


def log_files(job_dir: Path) -> list[tuple[int, int]]:
    """Attempt and number of each file of the logs of a job, in order.

    A job without attempts of the queue has its own narrative: file 0 of attempt 0.
    """
    names = _names(job_dir, _ATTEMPTS_DIR)
    if names is None:  # an attempt of the queue has the same narrative in its log
        return [(0, 0)]
    attempts = sorted(int(name) for name in names if _ATTEMPT.fullmatch(name))
    return [(attempt, number) for attempt in attempts for number in _numbers(job_dir, attempt)]


def _numbers(job_dir: Path, attempt: int) -> list[int]:
    """Of the files of an attempt.

    Of files made during a listing, it may hold the newer one alone, as if the older one had been
    dropped; a second listing has all that are older than those of the first.
    """
    names, again = (_names(job_dir, _ATTEMPTS_DIR, str(attempt), LOG_DIR) for _ in range(2))
    newest = max(_numbers_in(names), default=-1)
    return sorted(number for number in _numbers_in(again) if number <= newest)


def _numbers_in(names: list[str] | None) -> list[int]:
    return [number for name in names or [] if (number := file_number(name)) is not None]


def _parts(attempt: int, number: int) -> tuple[str, ...]:
    """Where a file lies in the folder of its job."""
    if attempt == 0:
        return (_NARRATIVE,)
    return (_ATTEMPTS_DIR, str(attempt), LOG_DIR, file_name(number))


def _names(job_dir: Path, *parts: str) -> list[str] | None:
    """What a folder holds; None: there is no such folder."""
    with _descriptor(job_dir, *parts) as folder:
        is_folder = folder is not None and stat.S_ISDIR(os.fstat(folder).st_mode)
        return os.listdir(folder) if is_folder else None


@contextmanager
def opened(job_dir: Path, attempt: int, number: int) -> Iterator[BinaryIO | None]:
    """A file of the logs; None: there is no such file, or it is none."""
    with _descriptor(job_dir, *_parts(attempt, number)) as descriptor:
        if descriptor is None or not stat.S_ISREG(os.fstat(descriptor).st_mode):
            yield None
        else:
            with open(descriptor, "rb", closefd=False) as file:
                yield file


@contextmanager
def _descriptor(job_dir: Path, *parts: str) -> Iterator[int | None]:
    """What lies below a job's folder, reached without a symbolic link; None: nothing does."""
    try:
        descriptor = _open(job_dir, *parts)
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open(job_dir: Path, *parts: str) -> int:
    descriptor = os.open(job_dir, os.O_RDONLY | os.O_DIRECTORY)
    for part in parts:
        outer = descriptor
        try:  # not blocking: it may be a pipe that nobody writes
            descriptor = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=outer)
        finally:
            os.close(outer)
    return descriptor


def is_being_written(job_dir: Path) -> bool:
    """Whether somebody has the newest file open to write; no where locks do not work."""
    for attempt, number in log_files(job_dir)[-1:]:
        with opened(job_dir, attempt, number) as file, suppress(OSError):
            if file is not None:
                return not _can_lock(file)
    return False


def _can_lock(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_begin_of_line(file: BinaryIO, offset: int) -> bool:
    if offset == 0:
        return True
    file.seek(offset - 1)
    return file.read(1) == b"\n"


def whole_lines(file: BinaryIO, offset: int) -> Iterator[tuple[bytes, int, int]]:
    """From an offset on: the beginning of each line, its bytes without the end, and what follows.

    What has no end is still being written, or was torn when its writer was killed.
    """
    file.seek(offset)
    while kept := file.readline(_PIECE_BYTES):
        last, size_bytes = kept, len(kept)
        while not last.endswith(b"\n"):
            last = file.readline(_PIECE_BYTES)
            if not last:
                return
            size_bytes += len(last)
        offset += size_bytes
        yield kept.removesuffix(b"\n"), size_bytes - 1, offset


def count_lines(file: BinaryIO) -> int:
    return sum(block.count(b"\n") for block in iter(lambda: file.read(_BLOCK_BYTES), b""))
