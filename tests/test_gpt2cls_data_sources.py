"""Every accepted kind of source gives the same rows, and says where each came from."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt2cls.data.sources import Columns, Rows, read_source

COLUMNS = Columns("text", "label")
ROWS = [
    {"text": "a goal in the last minute", "label": "sport"},
    {"text": 'two lines,\nand a "quote"', "label": "business"},
    {"text": "\u4e2d\u56fd \u00e9t\u00e9 \U0001f600", "label": "sport"},
]


def read(path: Path, columns: Columns = COLUMNS) -> Rows:
    return read_source(path.name, columns, base_dir=path.parent)["train"]


def as_dicts(rows: Rows) -> list[dict[str, str]]:
    pairs = zip(rows.texts.to_pylist(), rows.labels.to_pylist(), strict=True)
    return [{"text": text, "label": label} for text, label in pairs]


def table_bytes(kind: str, folder: Path) -> bytes:
    if kind in ("csv", "tsv"):
        quoted = [[row[key].replace('"', '""') for key in ("text", "label")] for row in ROWS]
        sep = "," if kind == "csv" else "\t"
        lines = [sep.join(("text", "label"))] + [sep.join(f'"{v}"' for v in row) for row in quoted]
        return "\r\n".join(lines).encode() + b"\r\n"
    if kind == "json":
        return json.dumps(ROWS, indent=1).encode()
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    path = folder / "made"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path.read_bytes()


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzipped"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_every_format_gives_the_same_rows(kind, packed, tmp_path):
    data = table_bytes(kind, tmp_path)
    path = tmp_path / (f"rows.{kind}.gz" if packed else f"rows.{kind}")
    path.write_bytes(gzip.compress(data) if packed else data)
    rows = read(path)
    assert as_dicts(rows) == ROWS
    assert rows.texts.type == pa.large_string()


def test_a_json_file_may_be_an_object_of_columns(tmp_path):
    path = tmp_path / "rows.json"
    columns = {key: [row[key] for row in ROWS] for key in ("text", "label")}
    path.write_text(json.dumps(columns), encoding="utf-8")
    assert as_dicts(read(path)) == ROWS


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_unicode_encodings_are_recognised(kind, encoding, tmp_path):
    path = tmp_path / f"rows.{kind}"
    path.write_bytes(table_bytes(kind, tmp_path).decode().encode(encoding))
    assert as_dicts(read(path)) == ROWS


def test_a_csv_row_is_named_by_the_line_on_which_it_begins(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(table_bytes("csv", tmp_path))
    rows = read(path)
    assert [rows.where(i) for i in range(3)] == ["rows.csv:2", "rows.csv:3", "rows.csv:5"]


def test_a_parquet_row_is_named_by_its_number(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    assert read(path).where(2) == "rows.parquet row 3"


def test_a_glob_reads_its_files_in_order_and_remembers_which_is_which(tmp_path):
    (tmp_path / "b.csv").write_text("text,label\nthird,y\n")
    (tmp_path / "a.jsonl").write_text(
        '{"text": "first", "label": "x"}\n\n{"text": "second", "label": "y"}\n'
    )
    rows = read_source("*.*", COLUMNS, base_dir=tmp_path)["train"]
    assert rows.texts.to_pylist() == ["first", "second", "third"]
    assert [rows.where(i) for i in range(3)] == ["a.jsonl:1", "a.jsonl:3", "b.csv:2"]


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path):
    (tmp_path / "rows[1].csv").write_text("text,label\na,x\n")
    assert len(read_source("rows[1].csv", COLUMNS, base_dir=tmp_path)["train"]) == 1


def test_a_folder_of_class_folders_gives_a_row_for_every_file(tmp_path):
    for name, text in (("pos/1.txt", "good"), ("pos/2.txt", "fine"), ("neg/1.txt", "bad\n")):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text(text)
    (tmp_path / "data" / "pos" / ".DS_Store").write_bytes(b"\0\xff")
    (tmp_path / "data" / "neg" / "2.txt.gz").write_bytes(gzip.compress(b"worse"))
    rows = read_source("data", COLUMNS, base_dir=tmp_path)["train"]
    assert rows.texts.to_pylist() == ["bad\n", "worse", "good", "fine"]
    assert rows.labels.to_pylist() == ["neg", "neg", "pos", "pos"]
    assert rows.where(3) == "data/pos/2.txt"


def test_columns_that_were_not_asked_for_do_not_matter(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"text": "a", "n": {"deep": [1]}, "label": "x"}\n{"label": "y", "text": "b"}\n'
    )
    assert read(path).labels.to_pylist() == ["x", "y"]


def test_pairs_and_lists_of_labels_are_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "q", "b": "r", "tags": ["x", "y"]}\n{"a": "s", "b": null, "tags": []}\n')
    rows = read(path, Columns(("a", "b"), "tags"))
    assert rows.pairs.to_pylist() == ["r", ""]
    assert rows.labels.to_pylist() == [["x", "y"], []]
    assert rows.is_multi_label


def test_a_separator_makes_several_labels_of_one_column(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\na,x | y\nb,\nc,x||\n")
    rows = read(path, Columns("text", "label", separator="|"))
    assert rows.labels.to_pylist() == [["x", "y"], [], ["x"]]


def test_texts_can_be_read_without_labels(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text\nx\ny\n")
    assert read(path, Columns("text", None)).labels is None


def test_the_built_in_set_has_a_stratified_test_split_without_shared_texts():
    splits = read_source("bbc-news", COLUMNS, base_dir=Path())
    train, test = splits["train"], splits["test"]
    assert len(train) + len(test) == 2225
    assert 215 <= len(test) <= 230
    assert not set(train.texts.to_pylist()) & set(test.texts.to_pylist())
    assert set(test.labels.to_pylist()) == {
        "business",
        "entertainment",
        "politics",
        "sports",
        "tech",
    }
    assert train.where(0).startswith("bbc-news/business/")


def test_the_built_in_set_prints_nothing_when_it_is_read():
    code = (
        "from pathlib import Path; from gpt2cls.data.sources import Columns, read_source;"
        "read_source('bbc-news', Columns('text', 'label'), base_dir=Path())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b""


@pytest.fixture
def saved(tmp_path):
    """A data set with class numbers, saved with an index mapping, and one unlabelled row."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "tags": datasets.List(datasets.ClassLabel(names=["p", "q"])),
        }
    )
    columns = {"text": ["a", "b", "c"], "label": [0, 1, -1], "tags": [[0], [], [1, 0]]}
    train = datasets.Dataset.from_dict(columns, features=features).select([2, 1, 0])
    test = datasets.Dataset.from_dict({k: v[:1] for k, v in columns.items()}, features=features)
    datasets.disable_progress_bars()
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "saved")
    return tmp_path


def test_a_saved_data_set_keeps_its_splits_and_its_class_names(saved):
    splits = read_source("saved", COLUMNS, base_dir=saved)
    assert set(splits) == {"train", "test"}
    assert splits["train"].texts.to_pylist() == ["c", "b", "a"]
    assert splits["train"].labels.to_pylist() == [None, "yes", "no"]
    assert splits["train"].where(1) == "saved[train] row 2"


def test_lists_of_class_numbers_become_names(saved):
    rows = read_source("saved", Columns("text", "tags"), base_dir=saved)["train"]
    assert rows.labels.to_pylist() == [["q", "p"], [], ["p"]]


def test_one_split_of_a_saved_data_set_can_be_named(saved):
    rows = read_source("saved/test", COLUMNS, base_dir=saved)["train"]
    assert rows.labels.to_pylist() == ["no"]
