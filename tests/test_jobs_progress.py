"""Progress as a person reads it: whole lines of the event file, worded; plain off a terminal."""

import io
import json

import pytest
from rich.console import Console

from jobs.console import console_of
from jobs.joblog import JobLog
from jobs.progress import EventTail, Progress, shown


def event(kind, step, *, metrics=None, **more):
    return {"kind": kind, "step": step, "time_ms": 1, "metrics": metrics or {}, **more}


def a_step(step, speed=100.0):
    values = {"train/loss": 1.5, "train/lr": 2e-3, "train/tokens_per_second": speed}
    return event("step", step, metrics=values)


START = event("start", 0, num_steps=113, steps_per_epoch=113, precision="fp32", why="asked for")
EVAL = event("eval", 113, metrics={"eval/accuracy": 0.889, "eval/loss": 0.5, "eval/other": 1.0})
STOP = event("stop", 113, reason="finished")


def write(path, *events):
    with path.open("a") as file:
        file.writelines(json.dumps(one) + "\n" for one in events)


def test_a_torn_line_is_waited_for_and_then_read_once(tmp_path):
    path = tmp_path / "events.jsonl"
    tail = EventTail(path)
    assert tail.read_new() == []
    line = json.dumps(a_step(2))
    path.write_text(json.dumps(a_step(1)) + "\n" + line[:20])
    assert [one["step"] for one in tail.read_new()] == [1]
    assert tail.read_new() == []
    with path.open("a") as file:
        file.write(line[20:] + "\n")
    assert [one["step"] for one in tail.read_new()] == [2]


def test_a_resumed_job_shows_only_what_is_new(tmp_path):
    path = tmp_path / "events.jsonl"
    write(path, a_step(1))
    tail = EventTail(path, from_end=True)
    write(path, a_step(2))
    assert [one["step"] for one in tail.read_new()] == [2]


def test_the_time_left_is_that_of_the_steps_and_not_of_what_was_done_before_the_first():
    progress = Progress()
    progress.message(START)
    for step, time_ms in ((1, 600_000), (13, 612_000)):
        progress.message(a_step(step) | {"time_ms": time_ms})
    assert progress.line(a_step(13) | {"time_ms": 612_000}).endswith("left 1:40")


def test_a_line_tells_step_epoch_loss_rate_speed_and_time_left():
    progress = Progress()
    progress.message(START)
    progress.message(a_step(12))
    words = progress.line(a_step(12))
    assert words.startswith(
        "step 12/113  epoch 0.11  loss 1.5000  lr 2.00e-03  100 tok/s  left -:--"
    )


def test_the_speed_is_a_mean_over_the_last_steps():
    progress = Progress()
    progress.message(START)
    for step, speed in enumerate([9e9] * 5 + [100.0, 300.0] * 10, start=1):
        progress.message(a_step(step, speed))
    assert " 200 tok/s " in progress.line(a_step(25, 300.0))


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (START, "training from step 0: 113 steps, fp32 (asked for)"),
        ({**START, "step": 40}, "training from the checkpoint of step 40: 113 steps"),
        (EVAL, "step 113/113  validation  loss 0.5000  accuracy 0.8890"),
        (event("skipped", 3), "step 3: gradients overflowed in fp16; step skipped"),
        ({"kind": "lost", "lost": {"1": "killed"}}, "workers lost (rank 1: killed); restarting"),
        (event("note", 3, text="checkpoint of step 3 is damaged"), "checkpoint of step 3"),
        (STOP, "training ended: finished"),
    ],
    ids=lambda value: value.get("kind") if isinstance(value, dict) else None,
)
def test_an_event_that_deserves_it_has_a_line_of_its_own(one, words):
    progress = Progress()
    progress.message(START)
    said = progress.message(one)
    assert said is not None
    assert said.startswith(words)


def test_steps_and_checkpoints_are_no_lines_of_their_own():
    assert Progress().message(a_step(3)) is None
    assert Progress().message(event("checkpoint", 3)) is None


def what_is_shown(tmp_path, console):
    events = tmp_path / "events.jsonl"
    with shown(events, tmp_path / "attempts.jsonl", JobLog(tmp_path / "job.log", console)):
        write(events, START, *(a_step(step) for step in range(12, 114)), EVAL, STOP)
    return console.file.getvalue()


def test_off_a_terminal_lines_are_few_plain_and_begin_with_the_step(tmp_path):
    lines = what_is_shown(tmp_path, console_of(io.StringIO())).splitlines()
    assert lines[1].startswith("step 12/113  epoch ")
    assert lines[2].startswith("step 113/113  validation ")
    assert lines[3].startswith("step 113/113  epoch 1.00")
    assert lines[4:] == ["training ended: finished"]
    assert all("\x1b" not in line and "val accuracy" not in line for line in lines)
    log = (tmp_path / "job.log").read_text().splitlines()
    assert [line.partition(" ")[2] for line in log] == lines


def test_on_a_terminal_one_line_lives_and_tells_the_last_validation(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    text = what_is_shown(tmp_path, console)
    assert "step 113/113  epoch 1.00" in text
    assert "val accuracy 0.89" in text
    assert "step 12/113" not in text
