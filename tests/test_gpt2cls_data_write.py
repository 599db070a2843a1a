import csv
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt2cls.data.stream import MISSING, read_chunks
from gpt2cls.data.write import as_list, check_output, open_writer
from gpt2cls.errors import DataError, RequestError

ROWS = {"text": ["a,b", 'say "x"\nand y'], "n": [1, None], "p": np.array([0.25, 1e-9], np.float32)}


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json", "parquet", "csv.gz", "json.gz"])
def test_what_is_written_reads_back_the_same(tmp_path, ending):
    path = tmp_path / f"t.{ending}"
    with open_writer(path) as write:
        write(ROWS, 2)
        write(ROWS, 2)
    found = [chunk.columns for chunk in read_chunks(path)]
    assert list(as_list(found[0]["text"])) == ROWS["text"] * 2
    assert [float(p) for p in as_list(found[0]["p"])] == pytest.approx([0.25, 1e-9] * 2)
    assert list(tmp_path.iterdir()) == [path]


def test_json_keeps_values_and_leaves_absent_keys_absent(tmp_path):
    with open_writer(tmp_path / "t.jsonl") as write:
        write({"a": [1, MISSING], "b": [None, {"deep": [True]}]}, 2)
    lines = (tmp_path / "t.jsonl").read_text().splitlines()
    assert list(map(json.loads, lines)) == [{"a": 1, "b": None}, {"b": {"deep": [True]}}]


def test_a_json_array_without_rows_is_an_empty_array(tmp_path):
    with open_writer(tmp_path / "t.json"):
        pass
    assert json.loads((tmp_path / "t.json").read_text()) == []


def test_parquet_keeps_the_types_it_was_given(tmp_path):
    days = pa.array([1, 2], pa.timestamp("ns"))
    with open_writer(tmp_path / "t.parquet") as write:
        write({"day": days, "none": [None, None]}, 2)
        write({"day": days, "none": ["now", "text"]}, 2)
    table = pq.read_table(tmp_path / "t.parquet")
    assert table["day"].type == pa.timestamp("ns")
    assert table["none"].to_pylist() == [None, None, "now", "text"]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_column_that_appears_late_is_refused_where_rows_must_be_alike(tmp_path, ending):
    with pytest.raises(DataError, match="jsonl"), open_writer(tmp_path / f"t.{ending}") as write:
        write({"a": [1]}, 1)
        write({"a": ["x"], "b": [2]}, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_former_file_and_nothing_else(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("former")
    with pytest.raises(KeyboardInterrupt), open_writer(path) as write:
        write(ROWS, 2)
        raise KeyboardInterrupt
    assert path.read_text() == "former"
    assert list(tmp_path.iterdir()) == [path]


def test_the_leftover_of_a_killed_process_goes_but_a_live_ones_stays(tmp_path):
    leftover = tmp_path / ".t.csv.99999.part"
    leftover.write_text("half")
    with open_writer(tmp_path / "t.csv"):
        assert not leftover.exists()
        live = tmp_path / f".t.csv.{os.getpid()}.part"
        with open_writer(tmp_path / "t.csv.gz"):
            assert live.exists()


@pytest.mark.parametrize(
    ("value", "safe"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("+SUM(A1)", "'+SUM(A1)"),
        ("-x", "'-x"),
        ("@x", "'@x"),
        ("\tx", "'\tx"),
        ("\rx", "'\rx"),
        ("  =x", "'  =x"),
        ("\uff1dx", "'\uff1dx"),
        ("-12.5", "-12.5"),
        ("a=b", "a=b"),
    ],
)
def test_a_cell_that_a_spreadsheet_would_run_is_neutralised_only_when_asked(tmp_path, value, safe):
    for asked, expected in ((True, safe), (False, value)):
        with open_writer(tmp_path / "t.csv", spreadsheet_safe=asked) as write:
            write({"text": [value], "n": [-5]}, 1)
        with (tmp_path / "t.csv").open(newline="") as file:
            assert list(csv.reader(file)) == [["text", "n"], [expected, "-5"]]


def test_column_names_are_neutralised_too(tmp_path):
    with open_writer(tmp_path / "t.csv", spreadsheet_safe=True) as write:
        write({"=x": ["a"]}, 1)
    assert (tmp_path / "t.csv").read_text() == "'=x\na\n"


def test_an_output_that_cannot_or_must_not_be_written_is_refused(tmp_path):
    source = tmp_path / "in.csv"
    source.write_text("text\n")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "link.csv").symlink_to(source)
    for name, says in {
        "in.csv": "the input itself",
        "link.csv": "the input itself",
        "folder.csv": "is not a file",
        "none/out.csv": "no folder",
        "out.doc": "no known format",
        "out.parquet.gz": "compressed already",
    }.items():
        with pytest.raises(RequestError, match=says):
            check_output(tmp_path / name, source)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RequestError, match="cannot be written"):
        check_output(tmp_path / "out.csv", tmp_path / "in.csv")
