"""A prepare job of its own, from the command line."""

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
from refusing import refused
from test_gpt2cls_data_partly import many

from jobs.cli import main

HEAD = "kind: prepare\nname: x\ninput: rows.csv\n"


def write_rows(head=("text", "label")):
    with Path("rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([head, *many()])


def test_the_parts_and_the_report_lie_in_the_folder(place, capfd):
    write_rows()
    Path("job.yaml").write_text(HEAD + "output: parts\n")
    assert main(["run", "job.yaml", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    report = json.loads(Path("parts/report.json").read_text())
    assert document["report"] == report
    sizes = {path.stem: len(pq.read_table(path)) for path in Path("parts").glob("*.parquet")}
    assert sizes == {"labelled": 16, "unlabelled": 60, "texts": 76, "test": 4}
    assert {name: report[name] for name in sizes} == sizes
    assert main(["run", "job.yaml"]) == 0
    said = capfd.readouterr()
    assert "76 texts, 16 of them labelled, and 4 to test with" in said.out
    assert "sport" in said.err
    assert sorted(path.name for path in Path("parts").iterdir()) == [
        "labelled.parquet", "report.json", "test.parquet", "texts.parquet", "unlabelled.parquet",
    ]  # fmt: skip


def test_a_job_of_its_own_needs_a_folder(place, capfd):
    (problem,) = refused(capfd, HEAD.replace("rows.csv", "bbc-news"))["problems"]
    assert (problem["field"], problem["line"]) == ("output", 1)


def test_a_column_that_is_not_there_is_named(place, capfd):
    write_rows(("text", "topic"))
    Path("job.yaml").write_text(HEAD + "output: parts\n")
    assert main(["run", "job.yaml"]) == 2
    assert "no column 'label'" in capfd.readouterr().err
    assert not Path("parts").exists()
