"""The rows that a model is least sure of, beside the predictions of a file."""

import json
import tracemalloc

import numpy as np
import pytest
from test_gpt2cls_predict import TEXTS, saved_model
from test_gpt2cls_predict_files import csv_file, rows_of

from gpt2cls.least_sure import LeastSure
from gpt2cls.predict import Predictor
from gpt2cls.predict_files import predict_file
from jobs.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved_model(tmp_path_factory.mktemp("model") / "model")


def least(sureness, *, below=0.6, most=1000, chunk=7):
    """(rows found, rows below) of a file in which row i has the confidence sureness[i]."""
    unsure = LeastSure(below=below, most=most)
    for first in range(0, len(sureness), chunk):
        some = np.array(sureness[first : first + chunk])
        columns = {"id": [str(first + i) for i in range(len(some))]}
        unsure.add(columns, ["x"] * len(some), some, first)
    table, number = unsure.table()
    assert number == len(table["id"])
    return [int(row) for row in table["id"]], unsure.num_below


def test_the_least_sure_come_first_and_rows_alike_in_the_order_of_the_file():
    assert least([0.5, 0.9, 0.2, 0.5, 0.6, 0.59]) == ([2, 0, 3, 5], 4)


@pytest.mark.parametrize("chunk", [1, 7, 500])
def test_of_too_many_the_least_sure_are_kept_however_they_come(chunk):
    sureness = np.random.default_rng(0).integers(0, 50, 500) / 50
    wanted = [i for i in np.argsort(sureness, kind="stable") if sureness[i] < 0.6]
    assert least(sureness, most=40, chunk=chunk) == (wanted[:40], len(wanted))


def test_memory_does_not_grow_with_the_file():
    unsure = LeastSure(below=1.0, most=10)
    draw = np.random.default_rng(0)

    def add(first):
        texts = [f"{row}{'x' * 1000}" for row in range(first, first + 1000)]
        unsure.add({"text": texts}, ["x"] * 1000, draw.random(1000), first)

    add(0)
    tracemalloc.start()
    for chunk in range(1, 50):
        add(chunk * 1000)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert unsure.num_below == 50_000
    assert held < 300_000


def test_of_several_labels_the_one_decided_least_surely_counts(tmp_path):
    folder = saved_model(tmp_path / "model", thresholds=(0.5, 0.2, 0.5))
    predictor = Predictor.load(folder, device="cpu")
    probs_NC = np.array([[0.9, 0.3, 0.1], [0.1, 0.15, 0.05], [0.8, 0.9, 0.95]], np.float32)
    assert predictor.confidence(probs_NC).tolist() == pytest.approx([0.3, 0.85, 0.8])


def test_a_predict_job_writes_them_with_an_empty_label_to_fill(place, model, capfd):
    rows = [(str(i), text, "old") for i, text in enumerate(TEXTS)]
    csv_file(place / "in.csv", rows, ("id", "text", "label"))
    low = {"output": "ask.csv", "below": 0.9, "most": 5}
    job = {"kind": "predict", "name": "x", "model": str(model), "input": "in.csv",
           "output": "out.csv", "low_confidence": low}  # fmt: skip
    (place / "job.yaml").write_text(json.dumps(job))
    assert main(["run", "job.yaml", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    predicted = {row["id"]: row for row in rows_of(place / "out.csv")}
    unsure = sorted((row for row in predicted.values() if float(row["score"]) < 0.9),
                    key=lambda row: float(row["score"]))  # fmt: skip
    assert document["low_confidence"] == {
        "below": 0.9, "rows": len(unsure), "written": 5, "output": str(place / "ask.csv"),
    }  # fmt: skip
    asked = rows_of(place / "ask.csv")
    assert list(asked[0]) == ["id", "text", "input_label", "label", "predicted", "confidence"]
    assert [row["id"] for row in asked] == [row["id"] for row in unsure[:5]]
    assert {row["label"] for row in asked} == {""}
    assert [row["predicted"] for row in asked] == [predicted[row["id"]]["label"] for row in asked]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json", "parquet"])
def test_where_all_is_sure_the_file_has_its_columns_and_no_rows(model, tmp_path, ending):
    source = csv_file(tmp_path / "in.csv", [("1", "a game", "2")])
    unsure = LeastSure(below=1e-9, most=5)
    predictor = Predictor.load(model, device="cpu")
    predict_file(predictor, source, tmp_path / "out.csv", least_sure=unsure)
    table, number = unsure.table()
    assert number == 0
    assert list(table) == ["id", "text", "price", "label", "predicted", "confidence"]

    from gpt2cls.data.stream import read_chunks
    from gpt2cls.data.write import open_writer

    with open_writer(tmp_path / f"ask.{ending}") as write:
        write(table, 0)
    assert [len(chunk) for chunk in read_chunks(tmp_path / f"ask.{ending}")] == [0]


@pytest.mark.parametrize(
    ("low", "field", "word"),
    [
        ({"output": "./out.csv"}, "low_confidence.output", "another file"),
        ({"output": "ask.csv", "below": 0}, "low_confidence.below", "above 0"),
        ({"output": "ask.csv", "most": 0}, "low_confidence.most", "at least 1"),
        ({}, "low_confidence.output", "missing"),
    ],
)
def test_what_makes_no_sense_is_refused(place, model, capfd, low, field, word):
    csv_file(place / "in.csv", [("1", "a game", "2")])
    job = {"kind": "predict", "name": "x", "model": str(model), "input": "in.csv",
           "output": "out.csv", "low_confidence": low}  # fmt: skip
    (place / "job.yaml").write_text(json.dumps(job))
    assert main(["run", "job.yaml", "--json"]) == 2
    (problem,) = json.loads(capfd.readouterr().out)["error"]["problems"]
    assert problem["field"] == field
    assert word in problem["message"]


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_predicted(place, model, capfd):
    csv_file(place / "in.csv", [("1", "a game", "2")])
    job = {"kind": "predict", "name": "x", "model": str(model), "input": "in.csv",
           "output": "out.csv", "low_confidence": {"output": "no/ask.csv"}}  # fmt: skip
    (place / "job.yaml").write_text(json.dumps(job))
    assert main(["run", "job.yaml"]) == 2
    assert "there is no folder" in capfd.readouterr().err
    assert not (place / "out.csv").exists()
