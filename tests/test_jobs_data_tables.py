"""The data report as tables."""

import io

from gpt2cls.data.report import DataReport, Problem, TokenReport
from jobs.console import console_of
from jobs.data_tables import report_tables


def a_report(**changes):
    values = {
        "rows": 1200,
        "splits": {"train": 1000, "validation": 200},
        "kind": "single_label",
        "is_pair": False,
        "labels": {"rare": {"train": 10}, "common": {"train": 990, "validation": 200}},
        "tokens": {"train": TokenReport(mean=9.6, p50=9, p95=31, max=77, share_truncated=0.125)},
        "max_length": 32,
        "fingerprint": "f",
        "notes": ["rows of [b]train[/b] only"],
        "problems": [],
    }
    return DataReport(**(values | changes))


def shown(report):
    console = console_of(io.StringIO())
    console.print(report_tables(report))
    return console.file.getvalue()


def line_of(text, word):
    """The words of the first line that has this one."""
    (line, *_) = (line.split() for line in text.splitlines() if word in line.split())
    return line


def test_splits_are_told_with_the_lengths_that_are_known():
    text = shown(a_report())
    assert "Data: 1,200 rows, single-label" in text
    assert line_of(text, "1,000") == ["train", "1,000", "10", "9", "31", "77", "12.5%"]
    assert text.splitlines()[5].split() == ["validation", "200", *"-----"]


def test_classes_stand_with_the_largest_first_and_none_is_a_zero():
    text = shown(a_report())
    assert line_of(text, "rare") == ["rare", "10", "0"]
    assert text.index("common") < text.index("rare")
    assert "no problems found" in text


def test_of_very_many_classes_the_largest_are_shown():
    labels = {f"c{i:03d}": {"train": i} for i in range(100)}
    text = shown(a_report(labels=labels))
    assert "100 classes, the 30 largest" in text
    assert "c099" in text
    assert "c069" not in text


def test_a_problem_is_told_with_its_count_and_whole_examples():
    example = f"train.csv:17 {'x' * 60} is also at train.csv:2"
    text = shown(a_report(problems=[Problem(kind="same_texts", count=1234, examples=[example])]))
    assert "same texts" in text
    assert "1,234" in text
    assert example in text
    assert "no problems found" not in text


def test_what_data_says_is_never_taken_for_markup():
    assert "rows of [b]train[/b] only" in shown(a_report())
    text = shown(a_report(labels={"[red]x[/red]": {"train": 5}}))
    assert "[red]x[/red]" in text
