import json

import pytest

from jobs.spool import (
    DeliveryLock,
    Point,
    Position,
    Spool,
    metric_key,
    points_of,
    read_lines,
)


def test_what_was_appended_is_read_in_order(tmp_path):
    spool = Spool(tmp_path)
    spool.params({"train.lr": 1e-4, "data.text": ["a", "b"]})
    spool.metrics({"test/accuracy": 0.9}, step=7, time_ms=5)
    spool.status("FINISHED", time_ms=9)
    lines, end = read_lines(spool.path, 0)
    assert [line["op"] for _, line in lines] == ["params", "metrics", "status"]
    assert lines[0][1]["values"] == {"train.lr": "0.0001", "data.text": '["a", "b"]'}
    assert points_of(lines[1][1]) == [Point("test/accuracy", 0.9, 5, 7)]
    assert (end, lines[-1][0]) == (spool.path.stat().st_size,) * 2


def test_reading_goes_on_where_it_stopped(tmp_path):
    spool = Spool(tmp_path)
    spool.metrics({"a": 1.0}, step=1)
    _, offset = read_lines(spool.path, 0)
    spool.metrics({"a": 2.0}, step=2)
    lines, _ = read_lines(spool.path, offset)
    assert [line["step"] for _, line in lines] == [2]


def test_a_line_without_its_end_is_waited_for(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"step": 1}\n{"st')
    lines, offset = read_lines(path, 0)
    assert [line["step"] for _, line in lines] == [1]
    with path.open("a") as file:
        file.write('ep": 2}\n')
    assert read_lines(path, offset)[0][0][1] == {"step": 2}


def test_the_torn_line_of_a_killed_writer_does_not_spoil_the_next_ones(tmp_path):
    (tmp_path / "record").mkdir()
    spool = Spool(tmp_path)
    spool.path.write_text('{"op":"params","values":{}}\n{"op":"met')
    spool.metrics({"a": 1.0}, step=1)
    assert [line["op"] for _, line in read_lines(spool.path, 0)[0]] == ["params", "metrics"]


def test_a_line_longer_than_one_read_comes_whole(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text(json.dumps({"text": "x" * 3_000_000}) + '\n{"step": 1}\n')
    lines, offset = read_lines(path, 0)
    lines += read_lines(path, offset)[0] if len(lines) == 1 else []
    assert [len(line) for _, line in lines] == [1, 1]


def test_steps_that_a_resumed_attempt_repeats_are_told_once():
    position = Position()
    first = [Point("train/loss", 0.5, step, step) for step in range(5)]
    again = [Point("train/loss", 0.5, 100 + step, step) for step in range(2, 8)]
    assert position.accept(first) == first
    assert [point.step for point in position.accept(again)] == [5, 6, 7]
    assert position.accept([Point("eval/accuracy", 1.0, 1, 3)]) != []


def test_delivery_ends_at_a_torn_last_line(tmp_path):
    spool = Spool(tmp_path)
    spool.status("FINISHED")
    assert not spool.is_delivered()
    spool.set_position(Position(spool=spool.path.stat().st_size))
    (tmp_path / "events.jsonl").write_text('{"kind": "st')
    assert Spool(tmp_path).is_delivered()


def test_a_long_value_is_shortened_in_sight_and_kept_whole_beside(tmp_path):
    spool = Spool(tmp_path)
    spool.params({"data.labels": "x" * 7000})
    (_, artifact), (_, params) = read_lines(spool.path, 0)[0]
    value = params["values"]["data.labels"]
    assert len(value) == 6000
    assert value.endswith("[7000 characters; whole in artifact long_params/data.labels.txt]")
    assert (tmp_path / artifact["path"]).read_text() == "x" * 7000


def test_passwords_do_not_enter_the_spool(tmp_path):
    spool = Spool(tmp_path)
    spool.params({"data.train": "s3://me:hunter2@host/x", "hub.token": "hunter2"})
    assert "hunter2" not in spool.path.read_text()


@pytest.mark.parametrize("name", ["f1/<b>", "a(b", "x" * 300, "../up", "a//b", "p@1"])
def test_a_name_that_mlflow_would_refuse_is_changed_and_stays_distinct(name):
    key = metric_key(name)
    assert key != name
    assert len(key) <= 250
    assert metric_key(name + "?") != key


@pytest.mark.parametrize("name", ["train/loss", "eval/f1 b-c_d.e", "test/f1/体育"])
def test_a_good_name_stays_as_it_is(name):
    assert metric_key(name) == name


def test_only_one_process_delivers_a_spool(tmp_path):
    spool = Spool(tmp_path)
    spool.set_head(job_id="j")
    first, second = DeliveryLock(spool), DeliveryLock(spool)
    assert first.take()
    assert first.take()
    assert not second.take()
    first.release()
    assert second.take()
