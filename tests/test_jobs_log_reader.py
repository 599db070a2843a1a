"""Logs are read from any line on, across files and attempts, whatever lies in the folder."""

import os

import pytest

from gpt2cls.errors import RequestError
from jobs.console import messages
from jobs.joblog import JobLog
from jobs.log_reader import follow, read_lines
from jobs.log_writer import RotatedLog, stamped

SECRET = "hf_" + "a" * 30


def a_log(job_dir, lines, *, attempt=1, max_bytes=1 << 20, file_bytes=1 << 20):
    folder = job_dir / "attempts" / str(attempt) / "log"
    folder.mkdir(parents=True, exist_ok=True)
    log = RotatedLog(str(folder), max_bytes, file_bytes)
    for line in lines:
        log.append(stamped([line]))
    log.close()
    return folder


def texts(lines):
    return [line.text for line in lines]


@pytest.fixture
def job_dir(tmp_path):
    """Two attempts in many files; of the first one some were dropped."""
    a_log(tmp_path, [f"one {i}" for i in range(60)], max_bytes=1000, file_bytes=200)
    a_log(tmp_path, [f"Two {i}" for i in range(30)], attempt=2, file_bytes=200)
    a_log(tmp_path, ["ten"], attempt=10)
    return tmp_path


def test_all_attempts_are_read_in_order_and_what_is_missing_is_told(job_dir):
    lines = read_lines(job_dir)
    of_one = [line.text for line in lines if line.attempt == 1]
    assert of_one[:7] == [
        *[f"one {i}" for i in range(6)],
        "... about 930 bytes of log were dropped here ...",
    ]
    assert of_one[7:] == [f"one {i}" for i in range(36, 60)]
    assert texts(lines)[len(of_one) :] == [*[f"Two {i}" for i in range(30)], "ten"]
    assert [line.attempt for line in lines][-2:] == [2, 10]


def test_reading_on_from_any_line_gives_the_same_as_reading_at_once(job_dir):
    lines = read_lines(job_dir)
    for i, line in enumerate(lines):
        assert read_lines(job_dir, after=line.cursor) == lines[i + 1 :]


@pytest.mark.parametrize("options", [{}, {"attempt": 2}, {"grep": "5"}])
def test_pages_give_the_same_as_reading_at_once(job_dir, options):
    pages, after = [], None
    while page := read_lines(job_dir, after=after, limit=7, **options):
        pages += page
        after = page[-1].cursor
    assert pages == read_lines(job_dir, **options)
    assert len(pages) > 7


def test_who_reads_on_in_a_file_that_was_dropped_is_told_and_goes_on(tmp_path):
    a_log(tmp_path, ["a" * 170, "b" * 170, "c" * 170], file_bytes=200)
    cursors = [line.cursor for line in read_lines(tmp_path)]
    (tmp_path / "attempts/1/log/000001.log").unlink()
    remark = "... about 196 bytes of log were dropped here ..."
    assert texts(read_lines(tmp_path, after=cursors[0])) == [remark, "c" * 170]
    assert texts(read_lines(tmp_path, after=cursors[1])) == [remark, "c" * 170]
    assert read_lines(tmp_path, after=cursors[2]) == []


@pytest.mark.parametrize(
    "cursor",
    ["", "x", "1:0", "1:0:3", "1:0:999999", "-1:0:0", "1:0:0\n", "\u0661:0:0", "1:0:" + "9" * 99],
)
def test_a_cursor_that_is_none_of_this_log_is_refused(job_dir, cursor):
    with pytest.raises(RequestError, match=r"after = .*: not the cursor of a line"):
        read_lines(job_dir, after=cursor)


def test_a_number_out_of_range_is_refused(job_dir):
    for options in ({"limit": 0}, {"tail": -1}):
        with pytest.raises(RequestError, match="must be at least 1 and 0"):
            read_lines(job_dir, **options)


@pytest.mark.parametrize(
    ("grep", "found"),
    [
        ("TWO 1", ["Two 1", *[f"Two {i}" for i in range(10, 20)]]),
        ("t.o", []),
        ("two 29", ["Two 29"]),
    ],
)
def test_a_plain_text_is_searched_for_whatever_its_case(job_dir, grep, found):
    assert texts(read_lines(job_dir, attempt=2, grep=grep)) == found


@pytest.mark.parametrize("num_lines", [0, 1, 5, 31, 33, 45, 500])
def test_the_last_lines_are_those_at_the_end_of_all(job_dir, num_lines):
    lines = read_lines(job_dir)
    assert read_lines(job_dir, tail=num_lines) == lines[len(lines) - min(num_lines, len(lines)) :]
    found = read_lines(job_dir, grep="two")
    assert read_lines(job_dir, grep="two", tail=num_lines)[-3:] == (
        found[-3:] if num_lines > 3 else found[len(found) - num_lines :]
    )


def test_the_last_lines_do_not_go_back_behind_the_cursor(job_dir):
    lines = read_lines(job_dir)
    for num_lines in (4, 20):
        assert read_lines(job_dir, after=lines[-4].cursor, tail=num_lines) == lines[-3:]


def test_an_answer_is_bounded_and_the_next_one_goes_on(tmp_path):
    a_log(tmp_path, ["x" * 16384] * 1100, max_bytes=64 << 20, file_bytes=4 << 20)
    lines = read_lines(tmp_path)
    rest = read_lines(tmp_path, after=lines[-1].cursor)
    assert 1000 < len(lines) < 1100
    assert len(lines) + len(rest) == 1100
    assert len(read_lines(tmp_path, tail=1100)) == 1024


@pytest.mark.parametrize(
    ("text", "rank"),
    [
        ("[rank 3] step 5", 3),
        ("[rank0]: Traceback", 0),
        ("(RayTrainWorker pid=77, ip=10.0.0.2) [rank 12] step 5", 12),
        ("(RayTrainWorker rank=4 pid=77) step 5", 4),
        ("(RayTrainWorker pid=77, ip=10.0.0.2) step 5", None),
        ("step 5 of [rank 3]", None),
        ("[ranking] 3", None),
        ("", None),
    ],
)
def test_the_rank_is_what_the_line_says(tmp_path, text, rank):
    a_log(tmp_path, [text])
    [line] = read_lines(tmp_path)
    assert (line.rank, line.text) == (rank, text)


def test_the_narrative_of_a_job_is_read_where_there_are_no_attempts_of_the_queue(tmp_path):
    log = JobLog(tmp_path / "job.log", messages())
    log.write("started")
    log.path.open("a").write("label  rows\n\x1b[1mreal\x1b[0m  3\x07\n")
    log.write("ended")
    lines = read_lines(tmp_path)
    assert texts(lines) == ["started", "label  rows", "real  3\\x07", "ended"]
    assert [line.attempt for line in lines] == [1, 1, 1, 1]
    assert [len(line.at) for line in lines] == [20, 0, 0, 20]
    for i, line in enumerate(lines):
        assert read_lines(tmp_path, after=line.cursor, attempt=1) == lines[i + 1 :]
    assert read_lines(tmp_path, attempt=2) == []


def test_the_narrative_is_not_told_twice_where_there_are_attempts(tmp_path):
    (tmp_path / "job.log").write_text("2026-01-01T00:00:00Z started\n")
    (tmp_path / "attempts").mkdir()
    assert read_lines(tmp_path) == []
    a_log(tmp_path, ["started"])
    assert texts(read_lines(tmp_path)) == ["started"]


def test_a_job_that_has_said_nothing_has_no_lines(tmp_path):
    assert read_lines(tmp_path) == []
    assert read_lines(tmp_path / "gone", tail=3) == []
    assert list(follow(tmp_path, lambda: True, poll_s=0)) == []


def test_a_long_line_of_another_writer_is_cut(tmp_path):
    (tmp_path / "job.log").write_bytes(b"x " * 500_000 + b"\nnext\n")
    long, after = read_lines(tmp_path)
    assert long.text.endswith("x  ...[cut: 1,000,000 bytes]")
    assert len(long.text) < 17_000
    assert after.text == "next"


def test_a_line_that_has_no_end_yet_is_not_given_and_later_given_whole(tmp_path):
    folder = a_log(tmp_path, ["one"])
    with (folder / "000000.log").open("a") as file:
        file.write("2026-01-01T00:00:00.000Z tw")
        file.flush()
        [one] = read_lines(tmp_path)
        file.write("o\n")
    assert texts(read_lines(tmp_path, after=one.cursor)) == ["two"]


def test_what_a_killed_writer_left_of_a_line_is_passed_over(tmp_path):
    folder = a_log(tmp_path, ["one"])
    with (folder / "000000.log").open("a") as file:
        file.write("2026-01-01T00:00:00.000Z tw")
    a_log(tmp_path, ["three"])
    assert texts(read_lines(tmp_path)) == ["one", "three"]


@pytest.mark.parametrize(
    "link", ["job.log", "attempts", "attempts/1", "attempts/1/log", "attempts/1/log/000001.log"]
)
def test_a_symbolic_link_is_not_followed(tmp_path, link):
    outside = tmp_path / "outside"
    a_log(outside, ["secret"])
    (outside / "job.log").write_text("secret\n")
    (outside / "attempts/1/log/000001.log").write_text("secret\n")
    (tmp_path / "job" / link).parent.mkdir(parents=True)
    (tmp_path / "job" / link).symlink_to(outside / link)
    assert read_lines(tmp_path / "job") == []


def test_what_is_no_log_file_is_passed_over(tmp_path):
    folder = a_log(tmp_path, ["one"])
    os.mkfifo(folder / "000001.log")
    (folder / "000002.log").mkdir()
    (folder / "notes.txt").write_text("no\n")
    (tmp_path / "attempts" / "README").touch()
    assert texts(read_lines(tmp_path)) == ["one"]


def test_a_follower_goes_on_behind_a_cursor_and_searches(job_dir):
    cursor = read_lines(job_dir, attempt=2)[4].cursor
    lines = follow(job_dir, lambda: True, poll_s=0, after=cursor, attempt=2, grep="9")
    assert texts(lines) == ["Two 9", "Two 19", "Two 29"]


def test_a_follower_looks_once_more_after_the_end(tmp_path):
    looks = iter([False, True, True, True, True])
    folder = a_log(tmp_path, ["one"])

    def is_over():
        over = next(looks)
        if over:
            with (folder / "000000.log").open("ab") as file:
                file.write(stamped(["late"]))
        return over

    lines = follow(tmp_path, is_over, poll_s=0)
    assert [next(lines).text for _ in range(3)] == ["one", "late", "late"]


def test_a_follower_waits_for_what_is_on_its_way_but_not_for_ever(tmp_path, monkeypatch):
    folder = tmp_path / "attempts" / "1" / "log"
    folder.mkdir(parents=True)
    log = RotatedLog(str(folder), 1000, 1000)
    log.append(stamped(["one"]))
    num_looks = 0

    def is_over():
        nonlocal num_looks
        num_looks += 1
        if num_looks == 20:
            log.append(stamped(["late"]))
        return True

    monkeypatch.setattr("jobs.log_reader._LINGER_S", 1.0)
    assert texts(follow(tmp_path, is_over, poll_s=0.01)) == ["one", "late"]
    assert num_looks > 25
    log.close()
    num_looks = 20
    assert texts(follow(tmp_path, is_over, poll_s=0.01)) == ["one", "late"]
    assert num_looks == 23
