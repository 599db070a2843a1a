"""Verbs and job files that use a model: predict, evaluate, data check."""

import json
import os
from pathlib import Path

import pytest
from test_gpt2cls_predict import saved_model

from jobs.cli import main

ROWS = [("the market fell", "business"), ("a team won its game", "sport"), ("rain today", "world")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    """A working directory with labelled rows, and a state folder that is not there."""
    monkeypatch.setenv("GPT2CLS_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    lines = ["id,text,label", *(f"{i},{text},{label}" for i, (text, label) in enumerate(ROWS * 20))]
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    return folder


def said(capfd, *arguments):
    code = main([*arguments, "--json"])
    return code, json.loads(capfd.readouterr().out)


def test_predict_writes_a_row_for_every_row(capfd, model, tmp_path):
    code, document = said(capfd, "predict", str(model), "rows.csv", "-o", "out.jsonl")
    assert code == 0
    assert document["rows"] == 60
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [int(row["id"]) for row in rows] == list(range(60))
    assert {"label", "score", "p_sport", "input_label"} <= set(rows[0])
    assert not (tmp_path / "home").exists()


def test_a_job_file_predicts_alike_from_any_folder(capfd, model, work, tmp_path, monkeypatch):
    text = f"kind: predict\nname: x\nmodel: {model}\ninput: rows.csv\noutput: out.csv\n"
    (work / "job.yaml").write_text(text)
    main(["predict", str(model), "rows.csv", "-o", "verb.csv"])
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    code, document = said(capfd, "run", "work/job.yaml")
    assert code == 0
    assert document["output"] == str(work / "out.csv")
    assert (work / "out.csv").read_bytes() == (work / "verb.csv").read_bytes()


def test_evaluate_gives_the_test_table(capfd, model):
    code, document = said(capfd, "evaluate", str(model), "rows.csv")
    assert code == 0
    test = document["test"]
    assert test["rows"] == 60
    low, high = test["accuracy_ci"]
    assert low <= test["accuracy"] <= high
    assert [row["label"] for row in test["per_class"]] == ["business", "sport", "world"]


def test_a_job_file_evaluates_alike(capfd, model, work):
    text = f"kind: evaluate\nname: x\nmodel: {model}\ndata: {{test: rows.csv}}\n"
    (work / "job.yaml").write_text(text)
    _, by_job = said(capfd, "run", "job.yaml")
    _, by_verb = said(capfd, "evaluate", str(model), "rows.csv")
    assert by_job["test"] == by_verb["test"]


@pytest.mark.parametrize("output", ["no/such/out.csv", "out.docx", "rows.csv"])
def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_loaded(
    capfd, work, output
):
    (work / "empty").mkdir()  # no model: what is loaded would be refused for that
    text = f"kind: predict\nname: x\nmodel: empty\ninput: rows.csv\noutput: {output}\n"
    (work / "job.yaml").write_text(text)
    for arguments in (["run", "job.yaml"], ["predict", "empty", "rows.csv", "-o", output]):
        code, document = said(capfd, *arguments)
        assert code == 2
        assert str(work / output) in document["error"]["message"]
    assert sorted(os.listdir()) == ["empty", "job.yaml", "rows.csv"]


def test_a_person_reads_tables(capfd, model):
    assert main(["evaluate", str(model), "rows.csv"]) == 0
    table = capfd.readouterr().out
    assert "accuracy" in table
    assert "business" in table


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rows.csv", "--label", "no"], "no"),
        (["rows.csv", "--text", "no"], "no"),
        (["other.csv"], "labels that the model does not know"),
    ],
)
def test_data_that_does_not_fit_the_model_is_refused(capfd, model, work, arguments, words):
    (work / "other.csv").write_text("text,label\na,fish\nb,bird\n")
    code, document = said(capfd, "evaluate", str(model), *arguments)
    assert code == 2
    assert words in document["error"]["message"]


def test_a_prediction_that_is_refused_leaves_no_file(capfd, model, work):
    (work / "other.csv").write_text("body\na\n")
    code, document = said(capfd, "predict", str(model), "other.csv", "-o", "out.csv")
    assert code == 2
    assert "'text'" in document["error"]["message"]
    assert sorted(os.listdir()) == ["other.csv", "rows.csv"]


def test_data_check_of_a_file_counts_rows_labels_and_problems(capfd, work):
    rows = [f"{i % 38} {text},{label}" for i in range(40) for text, label in ROWS[:1]]
    rows += [f"{i} {text},{label}" for i in range(40) for text, label in ROWS[1:]]
    (work / "rows.csv").write_text("\n".join(["text,label", *rows]))
    code, document = said(capfd, "data", "check", "rows.csv")
    assert code == 0
    assert document["rows"] == 120
    assert set(document["labels"]) == {"business", "sport", "world"}
    assert "duplicates" in {problem["kind"] for problem in document["problems"]}
    assert {"kind", "count", "examples"} <= set(document["problems"][0])
    assert document["tokens"]["train"]["max"] > 0


def test_data_check_of_a_job_takes_its_columns(capfd, work):
    (work / "pairs.csv").write_text(
        "q,said,is\n" + "".join(f"q{i},w{i},l{i % 2}\n" for i in range(40))
    )
    text = "kind: finetune\nname: x\ndata: {train: pairs.csv, text: [q, said], label: is}\n"
    (work / "job.yaml").write_text(text + "model: {backbone: gpt2-tiny}\n")
    code, document = said(capfd, "data", "check", "job.yaml", "-s", "data.max_length=8")
    assert code == 0
    assert document["is_pair"]
    assert document["max_length"] == 8


def test_data_check_of_several_labels_splits_them(capfd, work):
    (work / "many.csv").write_text(
        "text,tags\n" + "".join(f"w{i},a|b\nv{i},a\n" for i in range(20))
    )
    options = ["--label", "tags", "--separator", "|"]
    code, document = said(capfd, "data", "check", "many.csv", *options)
    assert code == 0
    assert document["kind"] == "multi_label"


def test_a_file_name_of_shell_characters_is_only_a_name(capfd, model, work):
    name = "$(touch canary);`touch canary`.csv"
    (work / name).write_text("text\nthe market\n")
    code, document = said(capfd, "predict", str(model), name, "-o", f"{name}.csv")
    assert code == 0
    assert document["rows"] == 1
    assert "canary" not in os.listdir()


def test_a_source_that_is_senseless_to_train_on_is_refused(capfd, work):
    (work / "one.csv").write_text("text,label\na,x\nb,x\n")
    code, document = said(capfd, "data", "check", "one.csv")
    assert code == 2
    assert document["error"]["kind"] == "bad_request"
