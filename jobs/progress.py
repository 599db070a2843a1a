"""Training progress as a person sees it: a live line on a terminal, plain lines elsewhere."""

import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.text import Text

from jobs.joblog import JobLog

_POLL_S = 0.25
_OF_LABELS = ("eval/accuracy", "eval/macro_f1", "eval/micro_f1", "eval/pearson", "eval/mse")
_OF_TEXTS = ("eval/perplexity", "eval/bits_per_byte")
_PLAIN_EVERY_S = 2.0
_SPEED_STEPS = 20
"""Texts differ in length, so the speed of one step alone says little."""


class EventTail:
    """The whole lines that were added to a file of JSON lines since the last look."""

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self.path = path
        self.offset = path.stat().st_size if from_end and path.exists() else 0

    def read_new(self) -> list[dict[str, Any]]:
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        return [json.loads(line) for line in whole.splitlines() if line.strip()]


class Progress:
    """Words for the events of training; remembers what the current line needs."""

    def __init__(self) -> None:
        self.num_steps = 0
        self.steps_per_epoch = 1
        self.first: tuple[int, int] | None = None
        """Step and time (ms) of this attempt's first step: what came before it is no measure."""
        self.speeds: deque[float] = deque(maxlen=_SPEED_STEPS)
        self.validation = ""
        """Of the live line: how the last validation went."""

    def line(self, event: dict[str, Any]) -> str:
        """The state after a step: step, epoch, loss, learning rate, tokens/s, time left."""
        step, metrics = event["step"], event["metrics"]
        speed = sum(self.speeds) / max(len(self.speeds), 1)
        first_step, first_ms = self.first or (step, event["time_ms"])
        left = "-:--"
        if step > first_step:
            step_ms = (event["time_ms"] - first_ms) / (step - first_step)
            left_s = int(step_ms * (self.num_steps - step) / 1000)
            left = f"{left_s // 60}:{left_s % 60:02d}"
        return (
            f"step {step}/{self.num_steps}  epoch {step / self.steps_per_epoch:.2f}  "
            f"loss {metrics.get('train/loss', float('nan')):.4f}  "
            f"lr {metrics.get('train/lr', 0):.2e}  "
            f"{speed:,.0f} tok/s  "
            f"left {left}"
        )

    def message(self, event: dict[str, Any]) -> str | None:
        """A line of its own for an event that deserves one."""
        kind, metrics = event["kind"], event.get("metrics", {})
        if kind == "step" and "train/tokens_per_second" in metrics:
            self.speeds.append(metrics["train/tokens_per_second"])
            self.first = self.first or (event["step"], event["time_ms"])
        if kind == "start":
            self.num_steps = event["num_steps"]
            self.steps_per_epoch = event["steps_per_epoch"]
            self.first = None
            begin = (
                f"from the checkpoint of step {event['step']}" if event["step"] else "from step 0"
            )
            return (
                f"training {begin}: {self.num_steps} steps, {event['precision']} ({event['why']})"
                f"{_sizes(event)}"
            )
        if kind == "eval":
            shown = ("eval/loss", *_OF_LABELS, *_OF_TEXTS)
            words = "  ".join(f"{k[5:]} {metrics[k]:.4f}" for k in shown if k in metrics)
            if "eval/accuracy" in metrics:
                self.validation = f"  val accuracy {metrics['eval/accuracy']:.2f}"
            return f"step {event['step']}/{self.num_steps}  validation  {words}"
        if kind == "skipped":
            return f"step {event['step']}: gradients overflowed in fp16; step skipped, scale halved"
        if kind == "lost":
            words = "; ".join(f"rank {rank}: {why}" for rank, why in event["lost"].items())
            return f"workers lost ({words}); restarting from the last checkpoint"
        if kind == "stop":
            return f"training ended: {event['reason']}"
        if kind == "note":
            return str(event["text"])
        return None


def _sizes(event: dict[str, Any]) -> str:
    if "parameters_of" not in event:  # of an older version, whose job is resumed
        return ""
    parts = ", ".join(f"{name} {size:,}" for name, size in event["parameters_of"].items())
    return (
        f"; {event['parameters']:,} parameters ({parts}), {event['trained_parameters']:,} of "
        "them learn"
    )


@contextmanager
def shown(events: Path, attempts: Path, log: JobLog) -> Iterator[None]:
    """Show what is appended to the two files while the body runs."""
    stop = threading.Event()
    thread = threading.Thread(
        target=_show,
        args=(EventTail(events, from_end=True), EventTail(attempts, from_end=True), log, stop),
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _show(events: EventTail, attempts: EventTail, log: JobLog, stop: threading.Event) -> None:
    live = Live(Text(""), console=log.console, auto_refresh=False, transient=True)
    with live:
        screen = Screen(log, live)
        finished = False
        while not finished:
            finished = stop.wait(_POLL_S)  # after the stop, one more look
            for event in events.read_new():
                screen.show(event)
            for line in attempts.read_new():
                screen.show({"kind": "lost", **line})
            screen.refresh()


class Screen:
    """Every message is a line; of the steps, the live line, or elsewhere one line in a while."""

    def __init__(self, log: JobLog, live: Live) -> None:
        self.log, self.live = log, live
        self.progress = Progress()
        self.newest: dict[str, Any] | None = None
        """The newest step, until it is shown."""
        self.said_s = 0.0

    def show(self, event: dict[str, Any]) -> None:
        if event["kind"] == "stop" and not self.log.console.is_terminal:
            self._say_newest()  # the last step is always told
        if (message := self.progress.message(event)) is not None:
            self.log.say(message)
        if event["kind"] == "step":
            self.newest = event
            if not self.log.console.is_terminal and time.monotonic() - self.said_s > _PLAIN_EVERY_S:
                self._say_newest()

    def refresh(self) -> None:
        """Bring the live line up to date, where there is one."""
        if self.newest is not None and self.log.console.is_terminal:
            line = self.progress.line(self.newest) + self.progress.validation
            self.live.update(Text(line), refresh=True)
            self.newest = None

    def _say_newest(self) -> None:
        if self.newest is not None:
            self.log.say(self.progress.line(self.newest))
            self.newest, self.said_s = None, time.monotonic()
