import gzip
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt2cls.data.stream import MISSING, read_chunks, table_format
from gpt2cls.data.write import as_list
from gpt2cls.errors import DataError


def read(path, **options):
    """All rows of the file as lists, and the place of the last row."""
    columns: dict[str, list] = {}
    place = None
    for chunk in read_chunks(path, **options):
        for name, values in chunk.columns.items():
            columns.setdefault(name, []).extend(as_list(values))
        if len(chunk):
            place = chunk.where(len(chunk) - 1)
    return columns, place


def written(tmp_path, name, content):
    path = tmp_path / name
    raw = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("t.csv", "id,text\n007,hello\n8,b\n", id="CSV"),
        pytest.param("t.tsv", "id\ttext\n007\thello\n8\tb\n", id="TSV"),
        pytest.param("t.csv.gz", "id,text\n007,hello\n8,b\n", id="gzipped CSV"),
        pytest.param(
            "t.csv", "\ufeffid,text\r\n007,hello\r\n8,b", id="BOM, CRLF, no last line end"
        ),
        pytest.param("t.csv", "id,text\n007,hello\n8,b\n".encode("utf-16"), id="UTF-16 with BOM"),
        pytest.param("t.csv", "id,text\n007,hello\n8,b\n".encode("utf-16-le"), id="UTF-16 without"),
        pytest.param("t.JSONL", '{"id":"007","text":"hello"}\n\n{"id":"8","text":"b"}', id="JSONL"),
        pytest.param("t.json", '[{"id":"007","text":"hello"},\n{"id":"8","text":"b"}]', id="JSON"),
    ],
)
def test_the_same_rows_come_from_every_text_format(tmp_path, name, content):
    columns, _ = read(written(tmp_path, name, content))
    assert columns == {"id": ["007", "8"], "text": ["hello", "b"]}


def test_a_quoted_line_break_belongs_to_its_value_and_places_are_lines_of_the_file(tmp_path):
    path = written(tmp_path, "t.csv", 'text\n"one\ntwo"\n\nthree\n')
    columns, place = read(path)
    assert columns == {"text": ["one\ntwo", "three"]}
    assert place == f"{path}:5"


def test_parquet_columns_keep_their_types_also_when_gzipped(tmp_path):
    table = pa.table({"n": pa.array([1, 2], pa.int16()), "text": ["a", None]})
    pq.write_table(table, tmp_path / "t.parquet")
    (tmp_path / "t.parquet.gz").write_bytes(gzip.compress((tmp_path / "t.parquet").read_bytes()))
    for name in ("t.parquet", "t.parquet.gz"):
        (chunk,) = read_chunks(tmp_path / name)
        assert chunk.columns["n"].type == pa.int16()
        assert as_list(chunk.columns["text"]) == ["a", None]


def test_json_objects_may_differ_and_an_absent_key_is_not_null(tmp_path):
    path = written(tmp_path, "t.jsonl", '{"a":1}\n{"b":null}\n')
    columns, _ = read(path)
    assert columns == {"a": [1, MISSING], "b": [MISSING, None]}


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.json", "t.parquet"])
def test_chunks_have_the_asked_size_and_keep_the_order(tmp_path, name):
    rows = [{"text": f"row {i}"} for i in range(25)]
    path = tmp_path / name
    if name == "t.parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name == "t.json":
        path.write_text(json.dumps(rows))
    elif name == "t.jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        path.write_text("text\n" + "\n".join(row["text"] for row in rows))
    chunks = list(read_chunks(path, chunk_rows=10))
    assert [len(chunk) for chunk in chunks if len(chunk)] == [10, 10, 5]
    assert read(path)[0]["text"] == [row["text"] for row in rows]


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_file_with_only_a_header_has_columns_and_no_rows(tmp_path, name):
    if name == "t.csv":
        written(tmp_path, name, "id,text\n")
    else:
        pq.write_table(pa.table({"id": pa.array([], pa.int64()), "text": []}), tmp_path / name)
    (chunk,) = read_chunks(tmp_path / name)
    assert list(chunk.columns) == ["id", "text"]
    assert len(chunk) == 0


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        pytest.param("t.csv", "", "empty", id="empty"),
        pytest.param("t.csv", "a,b\n1,2\n1,2,3\n", r"t\.csv:3: 3 values .* 2 columns", id="ragged"),
        pytest.param("t.csv", "a,b,a\n", r"'a' is there twice", id="a column twice"),
        pytest.param(
            "t.csv", b"text\nok\ncaf\xe9\n", r":3: byte 0xe9 at character 4", id="latin-1"
        ),
        pytest.param("t.csv", "text\na\0b\n", r"t\.csv:2: a NUL", id="NUL"),
        pytest.param("t.csv", 'a\n"x\ny\n', "quote missing", id="open quote"),
        pytest.param("t.csv.gz", b"", r"cannot be read|empty", id="empty gzip"),
        pytest.param("t.jsonl", '{"a":1}\n{"a":\n', r"t\.jsonl:2: not JSON", id="torn line"),
        pytest.param("t.jsonl", "[1]\n", r"t\.jsonl:1: list where an object", id="list line"),
        pytest.param("t.json", '[{"a":1},{"a":', r"row 2: not JSON", id="torn array"),
        pytest.param("t.json", '{"a":1}', "array of objects", id="an object alone"),
        pytest.param("t.json", "[1]", r"row 1: int where an object", id="array of numbers"),
        pytest.param("t.parquet", "no", "not a Parquet file", id="not Parquet"),
        pytest.param("t.xlsx", "no", "no known format", id="unknown ending"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(tmp_path, name, content, says):
    with pytest.raises(DataError, match=says):
        read(written(tmp_path, name, content))


def test_a_missing_and_a_torn_file_are_data_errors(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "t.csv")
    whole = gzip.compress(b"text\n" + b"words and more words\n" * 1000)
    (tmp_path / "t.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "t.csv.gz")


def test_a_line_without_end_is_refused_in_bounded_memory(tmp_path):
    path = tmp_path / "t.csv.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"text\n")
        for _ in range(100):
            file.write(b"x" * 2**20)
    tracemalloc.start()
    with pytest.raises(DataError, match=r":2: a line of over"):
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80e6  # of a line of 105 MB


def test_the_format_is_told_by_the_ending(tmp_path):
    assert table_format(tmp_path / "a.b.csv") == ("csv", False)
    assert table_format(tmp_path / "a.ndjson.gz") == ("jsonl", True)
