"""What is still to be told to MLflow: an append-only file per job, and how far it was told.

Knows files only. A line of the spool is one JSON object with a key "op"; the lines of a rank's
`events.jsonl` are read as metrics too, so that they need not be written a second time. Where
delivery stands is in `delivered.json`, replaced whole after each delivery; after a kill the next
reader goes on from there, and what was sent but not noted is sent again, identical.
"""

import fcntl
import hashlib
import json
import math
import os
import re
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from jobs.masking import mask_value

MAX_PARAM = 6000  # MLflow cuts longer ones without a word
MAX_TAG = 8000
MAX_KEY = 250
_READ_BYTES = 1 << 20
_MAX_LINE_BYTES = 16 << 20
_NOT_IN_KEY = re.compile(r"[^/\w.\- ]")


@dataclass(frozen=True)
class Point:
    """One value of one metric."""

    key: str
    value: float
    time_ms: int
    step: int


@dataclass
class Position:
    """How far delivery has come."""

    spool: int = 0
    events: int = 0
    steps: dict[str, int] = field(default_factory=dict)
    """The newest step of each metric: a resumed attempt repeats steps, the record does not."""

    def accept(self, points: Iterable[Point]) -> list[Point]:
        """The points that are new, remembered as told."""
        new = []
        for point in points:
            if point.step > self.steps.get(point.key, -1):
                self.steps[point.key] = point.step
                new.append(point)
        return new


class Spool:
    """The folder `<job_dir>/record` of one job; any thread may append."""

    def __init__(self, job_dir: Path) -> None:
        self.job_dir = job_dir
        self.folder = job_dir / "record"
        self.path = self.folder / "spool.jsonl"
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None

    def append(self, op: str, **values: Any) -> None:
        """Write one line; it survives this process, whatever happens to it."""
        line = json.dumps({"op": op, **values}, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            if self._file is None:
                self._file = _open_for_append(self.path)
            self._file.write(line)
            self._file.flush()

    def metrics(
        self, values: Mapping[str, float], *, step: int, time_ms: int | None = None
    ) -> None:
        self.append("metrics", step=step, time_ms=time_ms or now_ms(), metrics=dict(values))

    def params(self, values: Mapping[str, Any]) -> None:
        self._settings("params", values, MAX_PARAM)

    def tags(self, values: Mapping[str, Any]) -> None:
        self._settings("tags", values, MAX_TAG)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Have a file of the job folder uploaded as it is when its turn comes."""
        self.append("artifact", path=str(path), folder=folder)

    def status(self, status: str, time_ms: int | None = None) -> None:
        self.append("status", status=status, time_ms=time_ms or now_ms())
        self.set_head(ended=status)

    def reopen(self) -> None:
        """Another attempt begins: the end that was told is none."""
        self.append("reopen")
        self.set_head(ended=None)

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def position(self) -> Position:
        return Position(**(_read_json(self.folder / "delivered.json") or {}))

    def set_position(self, position: Position) -> None:
        write_json(self.folder / "delivered.json", asdict(position))

    def head(self) -> dict[str, Any]:
        """What the run is: job id, experiment, name, start, and its id once known."""
        return _read_json(self.folder / "run.json") or {}

    def set_head(self, **values: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "run.json", self.head() | values)

    def page(self, uri: str) -> str | None:
        """The address of the run in the pages of its server; None: it is not there yet."""
        head = self.head()
        if not head.get("run_id") or not head.get("experiment_id"):
            return None
        return f"{uri}/#/experiments/{head['experiment_id']}/runs/{head['run_id']}"

    def is_delivered(self) -> bool:
        """Nothing is left but, at most, a torn last line that nobody will finish."""
        position = self.position()
        left = (self.path, position.spool), (self.events_path, position.events)
        return not any(read_lines(path, offset)[0] for path, offset in left)

    def num_points_left(self) -> int:
        """Points that are written and were not told yet; some may have been told in part."""
        position, number = self.position(), 0
        for path, offset in ((self.path, position.spool), (self.events_path, position.events)):
            while True:
                lines, end = read_lines(path, offset)
                number += sum(len(points_of(line)) for _, line in lines)
                if end == offset:
                    break
                offset = end
        return number

    @property
    def events_path(self) -> Path:
        return self.job_dir / "events.jsonl"

    def _settings(self, op: str, values: Mapping[str, Any], limit: int) -> None:
        """Long values go whole into an artifact, and shortened, marked, under their key."""
        short = {}
        for name, value in values.items():
            key, text = metric_key(name), mask_value(name, value_text(value))
            if len(text) > limit:
                path = self.folder / "long" / f"{key.replace('/', '_')}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
                self.artifact(path, f"long_{op}")
                mark = f"... [{len(text)} characters; whole in artifact long_{op}/{path.name}]"
                text = text[: limit - len(mark)] + mark
            short[key] = text
        if short:
            self.append(op, values=short)


class DeliveryLock:
    """At most one process delivers a spool; the lock goes with the process."""

    def __init__(self, spool: Spool) -> None:
        self._path = spool.folder / "delivery.lock"
        self._file: BinaryIO | None = None

    def take(self) -> bool:
        if self._file is None:
            file = self._path.open("ab")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                return False
            self._file = file
        return True

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def read_lines(path: Path, offset: int) -> tuple[list[tuple[int, dict[str, Any]]], int]:
    """Whole lines from `offset` on, each with the offset after it, and the offset after all.

    A line without its end is waited for; one that is not JSON (its writer was killed half-way and
    another went on behind it) is passed over.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(_READ_BYTES)
            while b"\n" not in data and len(data) < _MAX_LINE_BYTES:
                more = file.read(_READ_BYTES)
                if not more:
                    break
                data += more
    except FileNotFoundError:
        return [], offset
    lines = []
    for line in data.split(b"\n")[:-1]:
        offset += len(line) + 1
        with suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                lines.append((offset, value))
    return lines, offset


def points_of(line: Mapping[str, Any]) -> list[Point]:
    """The metrics in a line of either file."""
    metrics, step = line.get("metrics"), line.get("step")
    if not isinstance(metrics, dict) or not isinstance(step, int):
        return []
    time_ms = int(line.get("time_ms", 0))
    return [
        Point(metric_key(key), float(value), time_ms, step)
        for key, value in metrics.items()
        if isinstance(value, (int, float))
    ]


def metric_key(name: str) -> str:
    """`name` as MLflow takes it; changed ones end in a mark, so that two never become one."""
    key = _NOT_IN_KEY.sub("_", name)
    key = "/".join(part for part in key.split("/") if part.strip(". ")) or "_"
    if key == name and len(key) <= MAX_KEY:
        return key
    mark = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{key[: MAX_KEY - 7]}_{mark}"


def value_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    aside = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
    aside.write_text(json.dumps(value))
    aside.replace(path)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _open_for_append(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab+")
    if file.tell() and _last_byte(file) != b"\n":
        file.write(b"\n")  # a predecessor was killed in mid-line
    return file


def _last_byte(file: BinaryIO) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)
