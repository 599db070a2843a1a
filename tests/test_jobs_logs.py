"""What an attempt prints is stored, whatever it prints and however it ends."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from jobs.log_reader import follow, read_lines
from jobs.log_writer import LineCutter, RotatedLog, line_text, stamped

HEAD = """
import os, signal, subprocess, sys, time
from pathlib import Path
import jobs.logs
folder, max_bytes, file_bytes = sys.argv[1:]
with jobs.logs.captured(Path(folder), max_bytes=int(max_bytes), file_bytes=int(file_bytes)):
"""
NOTE = re.compile(r"\.{3} ([0-9,]+) bytes of log were dropped here: No space left on device \.{3}")
SECRET = "hf_" + "a" * 30


def start(job_dir, code, *, max_bytes=64 << 20, file_bytes=4 << 20, number=1):
    """An attempt, a process of its own, that runs the code with its output captured."""
    body = "".join(f"    {line}\n" for line in code.splitlines())
    folder = job_dir / "attempts" / str(number)
    command = [sys.executable, "-c", HEAD + body, str(folder), str(max_bytes), str(file_bytes)]
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, start_new_session=True, env=environment(), **pipes)


def environment():
    return {name: os.environ[name] for name in os.environ if name != "PYTHONUNBUFFERED"}


def texts_of(job_dir, process):
    """All that is stored, when the process was told to go on and has ended.

    The one that stores has the standard error that the attempt began with, so both have ended.
    """
    _, errors = process.communicate(b"\n", timeout=60)
    assert errors == b""
    return [line.text for line in read_lines(job_dir, limit=100_000)]


def writers(job_dir):
    """The processes that store the logs of a job."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = process.cmdline()
            if any(word.startswith(str(job_dir)) for word in words) and "-S" in words:
                found.append(process)
    return found


def until(is_so):
    deadline_s = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline_s, "it did not come about"
        time.sleep(0.02)


def log_dir(job_dir):
    return job_dir / "attempts" / "1" / "log"


def sizes_bytes(job_dir):
    return [path.stat().st_size for path in log_dir(job_dir).iterdir()]


def test_a_line_of_either_stream_is_stored_with_its_time(tmp_path):
    process = start(tmp_path, "print('out')\nprint('err', file=sys.stderr)")
    assert texts_of(tmp_path, process) == ["out", "err"]
    stored = (log_dir(tmp_path) / "000000.log").read_text().splitlines()
    for line in stored:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (out|err)", line)


def test_what_children_of_children_print_is_stored(tmp_path):
    code = "subprocess.run(['sh', '-c', 'sh -c \"echo deep; echo deeper >&2\"'])"
    assert texts_of(tmp_path, start(tmp_path, code)) == ["deep", "deeper"]


@pytest.mark.parametrize("kill", ["os.kill(os.getpid(), 9)", "os.killpg(0, 9)", "os.killpg(0, 15)"])
def test_lines_printed_right_before_a_kill_are_there(tmp_path, kill):
    process = start(tmp_path, f"for i in range(5000):\n    print('line', i)\n{kill}")
    assert texts_of(tmp_path, process) == [f"line {i}" for i in range(5000)]
    assert process.returncode in (-9, -15)


def test_a_line_without_an_end_is_stored_when_its_writer_is_killed(tmp_path):
    process = start(tmp_path, "os.write(1, b'half a li')\nos.kill(os.getpid(), 9)")
    assert texts_of(tmp_path, process) == ["half a li"]


def test_a_signal_to_stop_does_not_stop_what_stores(tmp_path):
    process = start(tmp_path, "print('one')\ninput()\nprint('two')")
    until(lambda: read_lines(tmp_path))
    [writer] = writers(tmp_path)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        writer.send_signal(number)
    assert texts_of(tmp_path, process) == ["one", "two"]
    assert [path.name for path in log_dir(tmp_path).iterdir()] == ["000000.log"]  # by one process


@pytest.mark.parametrize("restart_s", [0.01, 60], ids=["at once", "not before the end"])
def test_the_job_goes_on_when_what_stores_its_log_is_killed(tmp_path, restart_s):
    code = f"jobs.logs._RESTART_S = {restart_s}\nprint('one')\ninput()\nprint('two')"
    process = start(tmp_path, code)
    until(lambda: read_lines(tmp_path))
    [writer] = writers(tmp_path)
    writer.kill()
    until(lambda: writer not in writers(tmp_path))
    if restart_s < 1:
        until(lambda: writers(tmp_path))
    assert texts_of(tmp_path, process) == ["one", "two"]
    assert process.returncode == 0


def test_a_line_of_100_megabytes_is_cut_with_a_mark_and_takes_no_memory(tmp_path):
    code = "for _ in range(1600):\n    os.write(1, b'x' * 65536)\nprint()\nprint('next')\ninput()"
    process = start(tmp_path, code)
    until(lambda: len(read_lines(tmp_path)) == 2)
    [writer] = writers(tmp_path)
    status = Path(f"/proc/{writer.pid}/status").read_text()
    assert int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) < 40 << 10
    long, after = texts_of(tmp_path, process)
    assert long == "x" * 16384 + " ...[cut: 104,857,600 bytes]"
    assert after == "next"


def test_after_the_end_output_goes_where_it_went_and_all_is_stored(tmp_path):
    code = "print('inside')\nprint('not ', end='')\nprint('ended', end='', file=sys.stderr)"
    folder = str(tmp_path / "attempts" / "1")
    after = "\nprint('outside', os.listdir(folder + '/log'), flush=True)"
    after += "\nprint(open(folder + '/log/000000.log').read().count('Z '))"
    body = HEAD + "".join(f"    {line}\n" for line in code.splitlines()) + after
    command = [sys.executable, "-c", body, folder, "1000", "1000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
    assert done.stdout == "outside ['000000.log']\n2\n"
    assert done.stderr == ""


def test_a_child_that_stays_does_not_hold_the_attempt_up_and_is_stored_still(tmp_path):
    code = "jobs.logs._DRAIN_S = 0.1\nsubprocess.Popen(['sh', '-c', 'read x; echo late'])"
    process = start(tmp_path, code)
    process.wait(timeout=30)
    assert read_lines(tmp_path) == []
    assert texts_of(tmp_path, process) == ["late"]


def test_what_stores_is_no_child_of_the_attempt(tmp_path):
    process = start(tmp_path, "print('one')\ninput()")
    until(lambda: read_lines(tmp_path))
    until(lambda: psutil.Process(process.pid).children() == [])
    assert len(writers(tmp_path)) == 1
    assert texts_of(tmp_path, process) == ["one"]


def test_what_stores_imports_nothing_heavy():
    code = "import sys, jobs.log_writer; print(len(sys.modules), 'subprocess' in sys.modules)"
    root = os.path.dirname(os.path.dirname(__file__))
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.append({root!r}); {code}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    num_modules, has_subprocess = done.stdout.split()
    assert int(num_modules) < 70
    assert has_subprocess == "False"


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"plain \xc3\xa9 \t text", "plain \u00e9 \t text"),
        (b"\x1b[1;31mred\x1b[0m \x9b", "red \ufffd"),
        ("\x9b31mred \x85".encode(), "red \\x85"),
        (b"\x1b]0;a title\x07seen", "seen"),
        (b"\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        (b"\x1bP1;2|data\x1b\\seen \x1b(B", "seen "),
        (b"\x1b\x1b[m[31m", "\\x1b[31m"),
        (b"bell \x07 null \x00 back \x08 del \x7f", "bell \\x07 null \\x00 back \\x08 del \\x7f"),
        ("a\u202eb\u2028c\u2066d\ufeff".encode(), "a\\u202eb\\u2028c\\u2066d\\ufeff"),
        (b"\xff\xfe bad \xc3", "\ufffd\ufffd bad \ufffd"),
        (b"10%\r50%\r100%", "100%"),
        (b"10%\r100%\r", "100%"),
        (b"windows\r\r", "windows"),
        (b"bar 10%\r\x1b[Kdone", "done"),
        (b"</script><b>&amp;", "</script><b>&amp;"),
        (b"", ""),
    ],
)
def test_a_line_is_shown_as_a_person_may_see_it(raw, text):
    chunk = raw + b"\nnext\n"
    assert LineCutter().feed(chunk) == [text, "next"]
    cutter = LineCutter()
    assert [line for byte in chunk for line in cutter.feed(bytes([byte]))] == [text, "next"]


@pytest.mark.parametrize(
    "raw", [f"key {SECRET} x", f"\x1b[1m{SECRET[:9]}\x1b[0m{SECRET[9:]}", "x " * 8185 + SECRET]
)
def test_a_secret_is_not_stored_nor_a_part_of_it(raw):
    cutter = LineCutter()
    data = raw.encode() + b"\n"
    lines = cutter.feed(data[:20]) + cutter.feed(data[20:])
    assert "***" in lines[0]
    assert "aaaa" not in lines[0]


def test_a_long_line_is_cut_before_what_may_be_half_a_secret():
    colours = b"\x1b[0m" * 2000  # so that what is kept, 17 KiB, is less than 16 KiB of text
    [text] = LineCutter().feed(colours + b"x " * 4700 + SECRET.encode() + b" x" * 4700 + b"\n")
    assert SECRET[:3] not in text
    assert text.endswith("x  ...[cut: 26,833 bytes]")


def test_a_line_that_grows_when_it_is_made_visible_is_cut_too():
    text = line_text(b"\0" * 16384, 16384)
    assert text == "\\x00" * 4096 + " ...[cut: 16,384 bytes]"


def test_a_secret_that_is_printed_is_nowhere_in_the_files(tmp_path):
    process = start(tmp_path, f"print('token={SECRET}')\nprint('http://me:{SECRET}@host')")
    assert texts_of(tmp_path, process) == ["token=***", "http://***@host"]


def test_a_log_keeps_its_bounds_on_disk_its_beginning_and_its_end(tmp_path):
    code = "for i in range(20000):\n    print('line', i)"
    process = start(tmp_path, code, max_bytes=200_000, file_bytes=50_000)
    most_bytes = 0
    while process.poll() is None:
        with suppress(FileNotFoundError):  # deleted while its size was asked for
            most_bytes = max(most_bytes, sum(sizes_bytes(tmp_path)))
    texts = texts_of(tmp_path, process)
    assert max(most_bytes, sum(sizes_bytes(tmp_path))) <= 250_000
    assert sum(sizes_bytes(tmp_path)) > 130_000
    assert (texts[0], texts[-1]) == ("line 0", "line 19999")
    [gap] = [text for text in texts if not text.startswith("line")]
    num_missing = 20000 - len(texts) + 1
    told_bytes = int(re.sub(r"\D", "", gap))
    assert told_bytes == pytest.approx(num_missing * len(stamped(["line 12345"])), rel=0.02)


def test_a_writer_that_follows_a_killed_one_begins_a_file_and_keeps_the_bounds(tmp_path):
    (tmp_path / "000000.log").write_bytes(b"x" * 900)
    (tmp_path / "000001.log").write_bytes(b"x" * 900 + b"\ntorn")
    log = RotatedLog(str(tmp_path), 2000, 1000)
    for _ in range(3):
        log.append(stamped(["y" * 870]))
    log.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000.log", "000004.log"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small file system can be mounted by root only")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder, *, but_bytes=0):
    status = os.statvfs(folder)
    (folder / "filler").write_bytes(b"x" * (status.f_bavail * status.f_bsize - but_bytes))


def test_on_a_full_disk_the_job_goes_on_and_the_log_says_what_is_missing(small_disk):
    told = small_disk.parent / "told"
    code = (  # more than there is room for in the pipe and on the disk
        "for i in range(15000): print('meanwhile', 'x' * 90)\n"
        f"Path({str(told)!r}).touch()\ninput()\nprint('after')"
    )
    fill(small_disk, but_bytes=100_000)
    process = start(small_disk, code)
    until(told.exists)
    (small_disk / "filler").unlink()
    texts = texts_of(small_disk, process)
    assert process.returncode == 0
    assert texts[-1] == "after"
    assert len([text for text in texts if NOTE.fullmatch(text)]) == 1


@pytest.mark.parametrize("file_bytes", [64 << 20, 2000])
def test_all_is_stored_or_told_as_dropped_when_a_disk_is_full_at_times(small_disk, file_bytes):
    log_dir(small_disk).mkdir(parents=True)
    log = RotatedLog(str(log_dir(small_disk)), 64 << 20, file_bytes)
    for i in range(300):
        if i % 100 == 30:
            fill(small_disk, but_bytes=12_288)  # the last page ends within a line
        if i % 100 == 70:
            (small_disk / "filler").unlink()
        log.append(stamped([f"{i:04d}"] * 50))
    log.close()
    texts = [line.text for line in read_lines(small_disk, limit=20_000)]
    numbers = [int(text) for text in texts if not NOTE.fullmatch(text)]
    told_bytes = [int(note[1].replace(",", "")) for text in texts if (note := NOTE.fullmatch(text))]
    assert len(told_bytes) == 3
    assert numbers == sorted(numbers)
    line_bytes = len(stamped(["0000"]))
    assert len(numbers) * line_bytes + sum(told_bytes) == 300 * 50 * line_bytes


def test_a_line_torn_by_a_full_disk_is_ended_in_its_own_file(small_disk):
    log_dir(small_disk).mkdir(parents=True)
    fill(small_disk, but_bytes=8192)
    log = RotatedLog(str(log_dir(small_disk)), 1 << 20, 8221)  # after 8192, no line fits
    log.append(stamped(["text"] * 300))
    (small_disk / "filler").unlink()
    log.append(stamped(["text"] * 2))
    texts = [line.text for line in read_lines(small_disk)]
    assert [text for text in texts if not NOTE.fullmatch(text)] == ["text"] * 276


def test_each_line_of_two_attempts_is_followed_once_while_they_are_written(tmp_path):
    code = "for i in range(3000):\n    print({n}, i)\n    i % 100 or time.sleep(0.005)"
    processes = [start(tmp_path, code.format(n=1), file_bytes=5000, number=1)]

    def is_over():
        if len(processes) == 1 and processes[0].poll() is not None:
            processes.append(start(tmp_path, code.format(n=2), file_bytes=5000, number=2))
        return len(processes) == 2 and processes[1].poll() is not None

    lines = list(follow(tmp_path, is_over, poll_s=0.2))
    assert [line.text for line in lines] == [f"{n} {i}" for n in (1, 2) for i in range(3000)]
    assert [line.attempt for line in lines] == [1] * 3000 + [2] * 3000


def test_who_follows_a_log_that_is_dropped_from_misses_nothing_without_a_remark(tmp_path):
    code = "for i in range(20000):\n    print(i)\n    i % 500 or time.sleep(0.005)"
    process = start(tmp_path, code, max_bytes=20_000, file_bytes=5000)
    last = -1
    for line in follow(tmp_path, lambda: process.poll() is not None, poll_s=0.1):
        if line.text.startswith("..."):
            last = None
            continue
        assert last is None or int(line.text) == last + 1
        last = int(line.text)
    assert last == 19999
