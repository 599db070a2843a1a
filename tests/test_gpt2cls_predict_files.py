import csv
import gzip
import json
import os
import signal
import subprocess
import sys

import pandas as pd
import pyarrow.parquet as pq
import pytest
from test_gpt2cls_predict import TEXTS, saved_model

from gpt2cls.errors import DataError, RequestError
from gpt2cls.predict import Predictor
from gpt2cls.predict_files import predict_file

ADDED = ["label", "score", "p_business", "p_sport", "p_world"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def predictor(model):
    return Predictor.load(model, device="cpu")


def csv_file(path, rows, header=("id", "text", "price")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_columns_and_order_are_kept_and_the_predictions_are_those_of_the_frame(predictor, tmp_path):
    rows = [(f"{i:03}", text, "1.50") for i, text in enumerate(TEXTS)]
    source = csv_file(tmp_path / "in.csv", rows)
    seen = []
    done = predict_file(
        predictor, source, tmp_path / "out.csv", progress=seen.append, chunk_rows=25
    )
    found = rows_of(tmp_path / "out.csv")
    assert (done, seen) == (60, [25, 50, 60])
    assert list(found[0]) == ["id", "text", "price", *ADDED]
    assert [(row["id"], row["text"], row["price"]) for row in found] == rows
    frame = predictor.predict_frame(pd.DataFrame({"text": TEXTS}))
    assert [row["label"] for row in found] == frame["label"].tolist()
    assert [float(row["score"]) for row in found] == pytest.approx(frame["score"].tolist())


@pytest.mark.parametrize("ending", ["tsv", "jsonl", "json", "parquet", "csv.gz", "jsonl.gz"])
def test_the_output_has_the_format_of_its_ending(predictor, tmp_path, ending):
    source = csv_file(tmp_path / "in.csv", [("1", "a game", "2"), ("2", "the market", "3")])
    output = tmp_path / f"out.{ending}"
    assert predict_file(predictor, source, output) == 2
    raw = output.read_bytes()
    if ending == "parquet":
        assert pq.read_table(output).column_names == ["id", "text", "price", *ADDED]
        return
    text = (gzip.decompress(raw) if ending.endswith("gz") else raw).decode()
    assert len(text.splitlines()) == {"json": 4, "jsonl": 2, "jsonl.gz": 2}.get(ending, 3)
    if ending == "json":
        assert list(json.loads(text)[1]) == ["id", "text", "price", *ADDED]


def test_json_values_pass_through_unchanged(predictor, tmp_path):
    rows = [{"text": "a game", "meta": {"n": [1, None]}, "big": 2**60}, {"text": "b"}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    predict_file(predictor, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for row, given in zip(found, rows, strict=True):
        assert {name: row[name] for name in row if name not in ADDED} == given


def test_a_column_with_the_name_of_a_predicted_one_is_kept_under_another(predictor, tmp_path):
    header = ("label", "text", "input_label", "score")
    source = csv_file(tmp_path / "in.csv", [("true", "a game", "x", "9")], header)
    predict_file(predictor, source, tmp_path / "out.csv")
    (row,) = rows_of(tmp_path / "out.csv")
    names = ["input_input_label", "text", "input_label", "input_score", *ADDED]
    assert list(row) == names
    assert [row[name] for name in names[:4]] == ["true", "a game", "x", "9"]


def test_the_text_column_can_be_named(predictor, tmp_path):
    source = csv_file(tmp_path / "in.csv", [("a game",)], ("body",))
    with pytest.raises(DataError, match=r"no column 'text'.*'body'"):
        predict_file(predictor, source, tmp_path / "out.csv")
    assert predict_file(predictor, source, tmp_path / "out.csv", columns=["body"]) == 1


def test_a_file_without_rows_gives_a_header(predictor, tmp_path):
    source = csv_file(tmp_path / "in.csv", [])
    assert predict_file(predictor, source, tmp_path / "out.csv") == 0
    assert (tmp_path / "out.csv").read_text() == ",".join(["id", "text", "price", *ADDED]) + "\n"


def test_formulas_are_kept_by_default_and_neutralised_when_asked(predictor, tmp_path):
    source = csv_file(tmp_path / "in.csv", [("=cmd", "@game", "-3")])
    predict_file(predictor, source, tmp_path / "out.csv")
    assert rows_of(tmp_path / "out.csv")[0]["id"] == "=cmd"
    predict_file(predictor, source, tmp_path / "safe.csv", spreadsheet_safe=True)
    (row,) = rows_of(tmp_path / "safe.csv")
    assert (row["id"], row["text"], row["price"]) == ("'=cmd", "'@game", "-3")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param('{"text":"a"}\n{"text":null}\n', r"in\.jsonl:2: no value in", id="null"),
        pytest.param('{"text":"a"}\n{"id":1}\n', r"in\.jsonl:2: no value in", id="absent"),
        pytest.param('{"text":"a"}\n{"text":7}\n', r"in\.jsonl:2: 7, not a text", id="number"),
        pytest.param('{"text":"\\ud83d"}\n', r"in\.jsonl:1: half a surrogate pair", id="surrogate"),
        pytest.param('{"text":"a"}\n{"text":\n', r"in\.jsonl:2: not JSON", id="torn line"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_and_no_output_is_left(predictor, tmp_path, content, says):
    source = tmp_path / "in.jsonl"
    source.write_text(content)
    with pytest.raises(DataError, match=says):
        predict_file(predictor, source, tmp_path / "out.csv", chunk_rows=1)
    assert list(tmp_path.iterdir()) == [source]


def test_the_input_is_never_overwritten_and_a_failure_keeps_the_former_output(predictor, tmp_path):
    source = csv_file(tmp_path / "in.csv", [("1", "a", "2"), ("ragged",)])
    before = source.read_bytes()
    with pytest.raises(RequestError, match="the input itself"):
        predict_file(predictor, source, source)
    (tmp_path / "out.csv").write_text("former")
    with pytest.raises(DataError, match="1 values in a table of 3 columns"):
        predict_file(predictor, source, tmp_path / "out.csv")
    assert source.read_bytes() == before
    assert (tmp_path / "out.csv").read_text() == "former"


PREDICT = """
import sys, time
from pathlib import Path
from gpt2cls.predict import Predictor
from gpt2cls.predict_files import predict_file
def told(rows):
    print(rows, flush=True)
    time.sleep(0.05)
model, source, output = map(Path, sys.argv[1:])
predictor = Predictor.load(model, device="cpu", threads=1)
predict_file(predictor, source, output, progress=told, chunk_rows=5)
"""


@pytest.mark.faults
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_prediction_leaves_nothing_under_the_final_name(model, tmp_path, how):
    source = csv_file(tmp_path / "in.csv", [(str(i), "a game", "2") for i in range(5000)])
    output = tmp_path / "out.csv"
    command = [sys.executable, "-c", PREDICT, model, source, output]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        process.stdout.readline()  # it has written rows
        process.send_signal(how)
        process.wait(timeout=30)
    assert not output.exists()
    left = [path.name for path in tmp_path.iterdir() if path != source]
    expected = [] if how == signal.SIGINT else [f".out.csv.{process.pid}.part"]
    assert left == expected
    predict_file(Predictor.load(model, device="cpu"), source, output)
    assert sorted(os.listdir(tmp_path)) == ["in.csv", "out.csv"]


@pytest.mark.system
def test_memory_does_not_grow_with_the_file(model, tmp_path):
    code = PREDICT.replace("time.sleep(0.05)", "pass").replace("chunk_rows=5)", "chunk_rows=2000)")
    # Not ru_maxrss: that begins at the memory of this process.
    code += "\nprint(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    peaks_mb = []
    for num_rows in (2_000, 20_000):
        rows = [(str(i), "a game", "x" * 2000) for i in range(num_rows)]
        source = csv_file(tmp_path / "in.csv", rows)
        command = [sys.executable, "-c", code, model, source, tmp_path / "out.csv"]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        peaks_mb.append(int(lines[-1]) / 1024)
    assert peaks_mb[1] - peaks_mb[0] < 25  # the larger file has 40 MB
