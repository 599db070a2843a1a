"""What happened in training, one JSON object a line, for whoever follows a run or records it.

Steps are global and appear once: a resumed run makes some steps again, but does not write what
the file already says about them. Times never go back.
"""

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

ONCE_PER_STEP = frozenset({"step", "eval", "checkpoint", "skipped"})
FLUSH_AFTER_S = 0.2


class EventWriter:
    """The one writer of an event file; goes on where a former writer was cut off.

    Without a path it writes nothing: what ranks other than the first have. `watch` is called with
    every event, after it was written and whether or not the file had it already.
    """

    def __init__(
        self, path: Path | None, watch: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        self.file: BinaryIO | None = None
        self.watch = watch
        self.last_step: dict[str, int] = {}
        if path is None:
            return
        self.last_step, self.last_time_ms, size = _read_end(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("ab")
        self.file.truncate(size)  # a line that was cut off in the middle
        self.flushed_s = time.monotonic()

    def write(self, kind: str, step: int, metrics: dict[str, float], **more: Any) -> None:
        """Append one event, unless the file already has this kind of event for this step."""
        if self.file is None:
            return
        # JSON has no NaN: a metric without a value is left out.
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        event = {"kind": kind, "step": step, "metrics": finite, **more}
        if kind not in ONCE_PER_STEP or step > self.last_step.get(kind, -1):
            self.last_step[kind] = step
            self._append(event)
        if self.watch is not None:
            self.watch(event)

    def _append(self, event: dict[str, Any]) -> None:
        assert self.file is not None, "write() has looked"
        self.last_time_ms = max(self.last_time_ms, time.time_ns() // 1_000_000)
        self.file.write(json.dumps({"time_ms": self.last_time_ms, **event}).encode() + b"\n")
        if event["kind"] != "step" or time.monotonic() - self.flushed_s > FLUSH_AFTER_S:
            self.flush()

    def note(self, step: int, words: str) -> None:
        self.write("note", step, {}, text=words)

    def flush(self) -> None:
        if self.file is not None:
            self.file.flush()
            self.flushed_s = time.monotonic()

    def sync(self) -> None:
        """All events so far are on disk: what a checkpoint must not be ahead of."""
        self.flush()
        if self.file is not None:
            os.fsync(self.file.fileno())

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def _read_end(path: Path) -> tuple[dict[str, int], int, int]:
    """The last step of each kind, the last time, and the size up to the last whole line."""
    last_step: dict[str, int] = {}
    last_time_ms, size = 0, 0
    if not path.exists():
        return last_step, last_time_ms, size
    with path.open("rb") as file:
        for line in file:
            try:
                event = json.loads(line)
                kind, step, time_ms = event["kind"], int(event["step"]), int(event["time_ms"])
            except (ValueError, KeyError, TypeError):
                break
            if not line.endswith(b"\n"):
                break
            last_step[kind] = max(step, last_step.get(kind, -1))
            last_time_ms, size = max(last_time_ms, time_ms), size + len(line)
    return last_step, last_time_ms, size
