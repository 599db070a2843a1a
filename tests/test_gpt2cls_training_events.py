import json
import math

from gpt2cls.training.events import EventWriter


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_event_is_a_line_with_kind_step_time_and_metrics(tmp_path):
    path = tmp_path / "job" / "events.jsonl"
    writer = EventWriter(path)
    writer.write("start", 0, {}, num_steps=7)
    writer.write("eval", 3, {"eval/loss": 0.5, "eval/ece": math.nan})
    start, evaluation = read(path)
    assert start["num_steps"] == 7
    assert evaluation["metrics"] == {"eval/loss": 0.5}  # JSON has no NaN
    assert evaluation["time_ms"] >= start["time_ms"] > 1_600_000_000_000


def test_a_second_writer_tells_only_what_is_new(tmp_path):
    path = tmp_path / "events.jsonl"
    first = EventWriter(path)
    for step in (1, 2, 3):
        first.write("step", step, {"train/loss": 1.0})
    first.write("eval", 2, {"eval/loss": 1.0})
    first.close()
    second = EventWriter(path)
    second.write("start", 2, {})
    for step in (3, 4):
        second.write("step", step, {"train/loss": 2.0})
        second.write("eval", step, {"eval/loss": 2.0})
    second.close()
    told = [(event["kind"], event["step"]) for event in read(path)]
    assert told[4:] == [("start", 2), ("eval", 3), ("step", 4), ("eval", 4)]


def test_times_never_go_back_even_if_the_clock_does(tmp_path):
    path = tmp_path / "events.jsonl"
    ahead = {"kind": "step", "step": 1, "time_ms": 9_000_000_000_000, "metrics": {}}
    path.write_text(json.dumps(ahead) + "\n")
    writer = EventWriter(path)
    writer.write("step", 2, {})
    writer.close()
    assert read(path)[1]["time_ms"] == 9_000_000_000_000


def test_a_line_that_was_cut_off_is_removed_and_told_again(tmp_path):
    path = tmp_path / "events.jsonl"
    for torn in ('{"kind": "step", "st', '{"kind": "step", "step": 2, "time_ms": 1}', "\0\0\0"):
        whole = json.dumps({"kind": "step", "step": 1, "time_ms": 1, "metrics": {}}) + "\n"
        path.write_text(whole + torn)
        writer = EventWriter(path)
        writer.write("step", 2, {})
        writer.close()
        assert [event["step"] for event in read(path)] == [1, 2]


def test_steps_reach_the_disk_before_a_checkpoint_does(tmp_path):
    writer = EventWriter(tmp_path / "events.jsonl")
    for step in range(1, 4):
        writer.write("step", step, {})
    writer.sync()
    assert len(read(tmp_path / "events.jsonl")) == 3
    writer.close()
