"""What a job says is shown and kept; secrets and markup are neither."""

import io
import re

from jobs.console import WIDTH_OFF_A_TERMINAL, console_of
from jobs.joblog import JobLog
from jobs.tables import plain_table

SECRET = "hf_" + "a" * 30


def a_log(tmp_path):
    console = console_of(io.StringIO())
    return JobLog(tmp_path / "job.log", console), console.file


def test_a_line_is_shown_as_it_is_and_kept_with_its_time(tmp_path):
    log, screen = a_log(tmp_path)
    log.say("label [bold] of 3 rows")
    assert screen.getvalue() == "label [bold] of 3 rows\n"
    kept = log.path.read_text()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ label \[bold\] of 3 rows\n", kept)


def test_a_secret_is_neither_shown_nor_kept(tmp_path):
    log, screen = a_log(tmp_path)
    log.say(f"backbone {SECRET}: http://me:hunter2@host/x")
    log.write(f"token={SECRET}")
    for text in (screen.getvalue(), log.path.read_text()):
        assert SECRET not in text
        assert "hunter2" not in text
        assert "***" in text


def test_what_is_only_for_the_log_is_not_shown(tmp_path):
    log, screen = a_log(tmp_path)
    log.write("detail")
    assert screen.getvalue() == ""
    assert log.path.read_text().endswith(" detail\n")


def test_a_long_value_of_a_table_is_not_cut_in_two(tmp_path):
    log, screen = a_log(tmp_path)
    job_id = "a-long-name-of-a-job-" * 4 + "20260101-abcd"
    log.show(plain_table(["job", "reason"], [[job_id, "x" * 80]]))
    assert len(job_id) + 80 < WIDTH_OFF_A_TERMINAL
    for text in (screen.getvalue(), log.path.read_text()):
        assert job_id in text
        assert "x" * 80 in text
