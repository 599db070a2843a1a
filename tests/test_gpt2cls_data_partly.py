"""Texts of which only some have a label are cleaned and divided, always alike."""

import csv
import json

import pyarrow.parquet as pq
import pytest

from gpt2cls.data.partly import divide, fingerprint_of
from gpt2cls.data.rows import Columns
from gpt2cls.data.sources import read_source
from gpt2cls.errors import DataError

COLUMNS = Columns("text", "label")


def read(path, columns=COLUMNS):
    return read_source(path.name, columns, base_dir=path.parent)["train"]


def write(path, rows, head=("text", "label")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return path


def many(num_labelled=20, num_bare=60):
    """Rows of two labels, and rows without one."""
    return [
        *[(f"goal {i}", "sport") for i in range(num_labelled // 2)],
        *[(f"bank {i}", "money") for i in range(num_labelled // 2)],
        *[(f"text {i}", "") for i in range(num_bare)],
    ]


def parts_of(path, columns=COLUMNS, *, test=0.2, keep_labels=None, seed=0):
    """Each part as a list of rows, and the report."""
    rows = read(path, columns)
    found = divide(rows, columns, path.name, test=test, keep_labels=keep_labels, seed=seed)
    parts = {
        name: list(zip(*(column.to_pylist() for column in part.values()), strict=True))
        for name, part in found.parts.items()
    }
    return parts, found.report


def test_the_test_is_a_share_of_each_label_and_in_no_other_part(tmp_path):
    rows = many()
    parts, report = parts_of(write(tmp_path / "a.csv", rows))
    assert report["labels"] == {
        "money": {"labelled": 8, "test": 2}, "sport": {"labelled": 8, "test": 2},
    }  # fmt: skip
    tested = {text for text, _ in parts["test"]}
    assert sorted([*parts["labelled"], *parts["test"]]) == sorted(row for row in rows if row[1])
    assert [text for (text,) in parts["unlabelled"]] == [text for text, label in rows if not label]
    assert [text for (text,) in parts["texts"]] == [t for t, _ in rows if t not in tested]


def test_the_same_rows_are_divided_alike_and_another_seed_divides_them_otherwise(tmp_path):
    path = write(tmp_path / "a.csv", many())
    assert parts_of(path) == parts_of(path)
    assert parts_of(path, seed=1)[0]["test"] != parts_of(path)[0]["test"]


def test_empty_and_repeated_texts_are_left_out_and_the_labelled_one_stays(tmp_path):
    more = [("", "sport"), (" \n", ""), ("text 0", ""), ("text 1", "sport"), ("goal 0", "")]
    parts, report = parts_of(write(tmp_path / "a.csv", [*many(), *more]))
    names = ("rows", "empty", "duplicates", "conflicting", "texts")
    assert [report[name] for name in names] == [85, 2, 3, 0, 76]
    assert ("text 1",) not in parts["unlabelled"]
    assert ("text 1", "sport") in [*parts["labelled"], *parts["test"]]


def test_a_text_with_different_labels_counts_as_one_without(tmp_path):
    rows = [*many(), ("goal 3", "money"), ("bank 3", "money")]
    parts, report = parts_of(write(tmp_path / "a.csv", rows))
    assert (report["conflicting"], report["duplicates"]) == (1, 2)
    assert ("goal 3",) in parts["unlabelled"]
    assert not [row for row in [*parts["labelled"], *parts["test"]] if row[0] == "goal 3"]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_null_is_no_label_whatever_the_format(tmp_path, ending):
    rows = [{"text": text, "label": label or None} for text, label in many()]
    path = tmp_path / f"a.{ending}"
    if ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        import pyarrow as pa

        pq.write_table(pa.Table.from_pylist(rows), path)
    assert parts_of(path) == parts_of(write(tmp_path / "a.csv", many()))


def test_several_labels_are_divided_too_and_an_empty_cell_is_no_label_yet(tmp_path):
    columns = Columns("text", "label", "|")
    rows = [(text, label and f"{label}|news") for text, label in many()]
    parts, report = parts_of(write(tmp_path / "a.csv", rows), columns)
    assert (report["labelled"], report["test"], report["unlabelled"]) == (16, 4, 60)
    assert report["labels"]["news"] == {"labelled": 16, "test": 4}
    assert parts["test"][0][1] == ["sport", "news"]


def test_labels_are_forgotten_evenly(tmp_path):
    rows = [(text, label or "none") for text, label in many(40, 60)]
    _, report = parts_of(write(tmp_path / "a.csv", rows), keep_labels=0.5)
    assert report["labels_hidden"] == 50
    assert report["unlabelled"] == 50
    assert {name: sum(found.values()) for name, found in report["labels"].items()} == {
        "money": 10, "none": 30, "sport": 10,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("", "x"), (" ", "")], "2 rows, all empty"),
        ([("a", ""), ("b", "")], "none of 2 rows has a label"),
        ([("a", "x"), ("b", "x"), ("c", "")], "one class"),
        ([("a", "x"), ("b", "y"), ("c", "")], "no row can be held out of 2"),
    ],
    ids=["no text", "no label", "one label", "too few"],
)
def test_what_cannot_be_divided_is_refused(tmp_path, rows, words):
    with pytest.raises(DataError, match=words):
        parts_of(write(tmp_path / "a.csv", rows))


def test_the_fingerprint_is_of_texts_and_labels(tmp_path):
    def of(rows, columns=COLUMNS):
        return fingerprint_of(read(write(tmp_path / "a.csv", rows), columns))

    rows = many()
    assert of(rows) == of(rows)
    assert len({of(rows), of(rows[1:]), of([("goal 0", ""), *rows[1:]]),
                of(rows, Columns("text", "label", "|"))}) >= 3  # fmt: skip
    pairs = [(text, label and f"{label}|x") for text, label in rows]
    other = [(text, label and f"{label}|y") for text, label in rows]
    assert of(pairs, Columns("text", "label", "|")) != of(other, Columns("text", "label", "|"))
