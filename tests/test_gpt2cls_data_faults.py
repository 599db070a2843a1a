"""Bad sources are refused with their file, their row, the cause and a way out."""

import gzip
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt2cls.data.sources import Columns, read_source
from gpt2cls.errors import DataError

COLUMNS = Columns("text", "label")

CASES = {
    "an empty file": ("rows.csv", b"", ["rows.csv", "empty"]),
    "a row with too few values": ("rows.csv", b"text,label\na,x\nb\n", ["rows.csv:3", "1 values"]),
    "a row with too many values": ("rows.csv", b"text,label\na,b,c\n", ["rows.csv:2", "3 values"]),
    "a Latin-1 byte": (
        "rows.csv",
        b"text,label\nfine,x\ncaf\xe9,y\n",
        ["rows.csv:3", "0xe9", "iconv -f latin1 -t utf-8"],
    ),
    "a NUL byte": ("rows.csv", b"text,label\na\0b,x\n", ["rows.csv:2", "NUL"]),
    "a quote that is never closed": (
        "rows.csv",
        b'text,label\na,x\n"b,y\nc,z\n',
        ["rows.csv:3", "quote"],
    ),
    "text after a closing quote": ("rows.csv", b'text,label\n"a"b,x\n', ["rows.csv:2", "quote"]),
    "a column named twice": ("rows.csv", b"text,text,label\na,b,c\n", ["'text'", "twice"]),
    "very many columns": (
        "rows.csv",
        b"text,label" + b",c" * 1_000_000 + b"\n",
        ["rows.csv:1", "1,000,002 columns", "10,000"],
    ),
    "columns with other names": (
        "rows.csv",
        b"Text ,labels\na,x\n",
        ["no column 'text'", "'Text '", "no column 'label'", "'labels'"],
    ),
    "semicolons": ("rows.csv", b"text;label\na;x\n", ["'text;label'", "semicolons"]),
    "damaged gzip": ("rows.csv.gz", gzip.compress(b"text,label\na,x\n" * 99)[:-9], ["rows.csv.gz"]),
    "a file that is not gzip": ("rows.csv.gz", b"text,label\na,x\n", ["rows.csv.gz", "gzip"]),
    "a line that is not JSON": (
        "rows.jsonl",
        b'{"text": "a", "label": "x"}\n{a\n',
        ["rows.jsonl:2"],
    ),
    "a line that is no object": ("rows.jsonl", b"[1]\n", ["rows.jsonl:1", "list"]),
    "JSON nested without end": ("rows.jsonl", b"[" * 200_000 + b"\n", ["rows.jsonl:1"]),
    "a JSON array nested without end": ("rows.json", b"[" * 200_000, ["rows.json"]),
    "a text that is a number": (
        "rows.jsonl",
        b'{"text": 7, "label": "x"}\n',
        ["rows.jsonl:1", "int"],
    ),
    "a row without a text": (
        "rows.jsonl",
        b'{"text": "a", "label": "x"}\n{"label": "x"}\n',
        ["rows.jsonl:2", "'text'", "missing"],
    ),
    "half a character": ("rows.jsonl", b'{"text": "\\ud800", "label": "x"}\n', ["rows.jsonl:1"]),
    "half a character in a label": (
        "rows.jsonl",
        b'{"text": "a", "label": "\\udfff"}\n',
        ["rows.jsonl:1", "'label'", "half"],
    ),
    "half a character in a list": (
        "rows.jsonl",
        b'{"text": "a", "label": ["\\udfff"]}\n',
        ["rows.jsonl:1", "'label'", "half"],
    ),
    "an escaped NUL": (
        "rows.jsonl",
        b'{"text": "a\\u0000", "label": "x"}\n',
        ["rows.jsonl:1", "NUL"],
    ),
    "a label that is an object": (
        "rows.jsonl",
        b'{"text": "a", "label": {}}\n',
        ["rows.jsonl:1", "dict"],
    ),
    "one label here and a list there": (
        "rows.jsonl",
        b'{"text": "a", "label": "x"}\n{"text": "a", "label": ["x"]}\n',
        ["rows.jsonl:1", "rows.jsonl:2", "list"],
    ),
    "an empty label in a list": (
        "rows.jsonl",
        b'{"text": "a", "label": ["x", " "]}\n',
        ["rows.jsonl:1", "empty"],
    ),
    "a similarity": (
        "rows.jsonl",
        b'{"text": "a", "label": 3.8}\n',
        ["rows.jsonl:1", "3.8", "regression"],
    ),
    "columns of unequal length": (
        "rows.json",
        b'{"text": ["a"], "label": []}',
        ["differ in length"],
    ),
    "an object that is no table": ("rows.json", b'{"data": 3}', ["rows.json", "array of objects"]),
    "no Parquet": ("rows.parquet", b"PAR1 not really", ["rows.parquet"]),
    "an ending that says nothing": ("rows.xlsx", b"PK", ["rows.xlsx", ".csv"]),
}


@pytest.mark.parametrize(("name", "data", "said"), CASES.values(), ids=CASES.keys())
def test_a_bad_file_is_refused_with_its_place_and_cause(name, data, said, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as refused:
        read_source(name, COLUMNS, base_dir=tmp_path)
    assert [part for part in said if part not in str(refused.value)] == []


def test_parquet_columns_must_hold_text_and_labels(tmp_path):
    when = pa.array([0, 1], pa.timestamp("s"))
    table = pa.table({"text": ["a", "b"], "number": [1, 2], "when": when})
    pq.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"rows\.parquet.*'number' holds int64, not text"):
        read_source("rows.parquet", Columns("number", None), base_dir=tmp_path)
    with pytest.raises(DataError, match=r"rows\.parquet.*'when' holds timestamp"):
        read_source("rows.parquet", Columns("text", "when"), base_dir=tmp_path)


def test_a_class_folder_names_the_file_and_line_of_a_byte_that_is_not_unicode(tmp_path):
    for name in ("pos", "neg"):
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "data" / "neg" / "7.txt").write_bytes(b"one\ncaf\xe9")
    with pytest.raises(DataError, match=r"data/neg/7\.txt:2: byte 0xe9"):
        read_source("data", COLUMNS, base_dir=tmp_path)


def test_a_folder_in_a_class_folder_is_refused(tmp_path):
    (tmp_path / "data" / "pos" / "more").mkdir(parents=True)
    with pytest.raises(DataError, match="'more' is a folder"):
        read_source("data", COLUMNS, base_dir=tmp_path)


def test_a_damaged_saved_data_set_is_refused(tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text(json.dumps({"_data_files": "no"}))
    with pytest.raises(DataError, match="saved: not a folder"):
        read_source("saved", COLUMNS, base_dir=tmp_path)


def test_lists_in_one_file_and_single_labels_in_another_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": "x"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "a", "label": ["x"]}\n')
    with pytest.raises(DataError, match=r"b\.jsonl:1: lists of labels here"):
        read_source("*.jsonl", COLUMNS, base_dir=tmp_path)


def test_a_separator_for_a_column_of_lists_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": ["x"]}\n')
    with pytest.raises(DataError, match="nothing to split"):
        read_source("a.jsonl", Columns("text", "label", "|"), base_dir=tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_line_without_end_is_refused_in_bounded_memory(tmp_path):
    """Ten gigabytes of one line, packed; reading may add 600 MB of address space."""
    path = tmp_path / "rows.csv.gz"
    block = gzip.compress(b"x" * 10_000_000)  # gzip members may follow each other
    path.write_bytes(gzip.compress(b"text,label\n") + block * 1000)
    code = f"""
import resource
from pathlib import Path
from gpt2cls.data.sources import Columns, read_source
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 600 * 2**20,) * 2)
read_source("rows.csv.gz", Columns("text", "label"), base_dir=Path({str(tmp_path)!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "DataError" in done.stderr
    assert "rows.csv.gz:2: a line of over" in done.stderr


def test_a_data_set_that_cannot_be_reached_is_told_in_one_sentence(tmp_path):
    code = """
from pathlib import Path
from gpt2cls.data.sources import Columns, read_source
from gpt2cls.errors import DataError
try:
    read_source("hf:nobody/nothing", Columns("text", "label"), base_dir=Path())
except DataError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"HF_HUB_OFFLINE": "1", "HOME": str(tmp_path), "PATH": ""},
    )
    assert done.stdout.startswith("hf:nobody/nothing: "), done.stderr
    assert "save_to_disk" in done.stdout


def test_a_folder_here_is_not_taken_for_a_data_set_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "imdb").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="'imdb' is also a file or folder here"):
        read_source("hf:imdb", COLUMNS, base_dir=tmp_path)
