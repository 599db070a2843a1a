"""What stages made, and when it is theirs no more: addresses, damage, two makers at once."""

import csv
from pathlib import Path

import pytest
from test_gpt2cls_predict import saved_model

from cluster.home import from_environment
from jobs.spec import PipelineJob
from jobs.stage_store import RESULT, address_of, find, folder_of, keep
from jobs.stage_work import task_of, with_paths

ROWS = [("the market fell", "business"), ("a team won its game", "sport"), ("rain today", "world")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved_model(tmp_path_factory.mktemp("model") / "model")


def write_rows(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def address(place, kind, parents=None, **changes):
    """The address of a stage in the folder `place`, with its fields changed as told."""
    job = {
        "finetune": {"data": {"train": "rows.csv", "validation": "rows.csv"},
                     "model": {"backbone": "gpt2-tiny"}},
        "pretrain": {"data": {"train": "rows.csv", "validation": "rows.csv"},
                     "model": {"backbone": "gpt2-tiny", "tokenizer": {"train": 300}}},
        "prepare": {"input": "rows.csv"},
        "evaluate": {"model": "model", "data": {"test": "rows.csv"}},
        "predict": {"model": "model", "input": "rows.csv", "output": "out.csv"},
    }[kind]  # fmt: skip
    for name, value in changes.items():
        block, _, field = name.partition("__")
        job |= {block: job.get(block, {}) | {field: value} if field else value}
    stages = {"s": {"job": {"kind": kind, **job}}}
    spec = {"kind": "pipeline", "name": "p", "stages": stages}
    stage = PipelineJob.model_validate(spec).stages["s"].job
    task = task_of(stage, place, from_environment())
    return address_of(task.settings, task.content, parents or {})


@pytest.fixture
def rows(place, model):
    """A folder with rows and a model."""
    write_rows(place / "rows.csv", ROWS * 10)
    (place / "model").symlink_to(model)
    return place


@pytest.mark.parametrize("kind", ["finetune", "pretrain", "prepare", "evaluate", "predict"])
def test_the_same_stage_has_the_same_address_and_other_rows_another(rows, kind):
    before = address(rows, kind)
    assert address(rows, kind) == before
    assert address(rows, kind, parents={"a": "1"}) != before
    write_rows(rows / "rows.csv", [*ROWS * 10, ROWS[0]])
    assert address(rows, kind) != before


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("finetune", {"train__lr": 1e-3}),
        ("finetune", {"train__seed": 1}),
        ("finetune", {"model__pooling": "mean"}),
        ("finetune", {"model__tokenizer": {"train": 300}}),
        ("finetune", {"data__max_length": 9}),
        ("finetune", {"register__gate": {"metric": "macro_f1"}}),
        ("finetune", {"register__model": "m"}),
        ("pretrain", {"train__objective": "backward"}),
        ("pretrain", {"model__tokenizer": {"train": 301}}),
        ("pretrain", {"data__max_length": 9}),
        ("pretrain", {"register__model": "m"}),
        ("prepare", {"test": 0.3}),
        ("prepare", {"keep_labels": 0.5}),
        ("prepare", {"seed": 1}),
        ("predict", {"spreadsheet_safe": True}),
        ("predict", {"output": "out.jsonl"}),
    ],
)
def test_what_decides_the_result_decides_the_address(rows, kind, changes):
    assert address(rows, kind, **changes) != address(rows, kind)


@pytest.mark.parametrize("changes", [{"cluster__retries": 9}, {"cluster__cpus_per_worker": 1}])
def test_where_a_stage_runs_does_not_change_its_address(rows, changes):
    assert address(rows, "finetune", **changes) == address(rows, "finetune")


@pytest.mark.parametrize("kind", ["finetune", "pretrain", "prepare", "evaluate", "predict"])
def test_where_the_rows_lie_does_not_change_the_address(rows, kind):
    before = address(rows, kind)
    Path("other").mkdir()
    (rows / "rows.csv").rename(rows / "other" / "moved.csv")
    path, name = (
        "other/moved.csv",
        {"evaluate": "data__test", "predict": "input", "prepare": "input"}.get(kind),
    )
    moved = {name: path} if name else {"data__train": path, "data__validation": path}
    assert address(rows, kind, **moved) == before


def test_a_backbone_is_known_by_what_it_holds(rows, model):
    before = address(rows, "pretrain", model={"backbone": "model", "tokenizer": "model"})
    (rows / "moved").symlink_to(model)
    moved = {"backbone": "moved", "tokenizer": "model"}
    assert address(rows, "pretrain", model=moved) == before
    (rows / "changed").mkdir()
    for path in model.rglob("*"):
        copy = rows / "changed" / path.relative_to(model)
        copy.mkdir() if path.is_dir() else copy.write_bytes(path.read_bytes())
    (rows / "changed" / "more.json").write_text("{}")
    changed = {"backbone": "changed", "tokenizer": "model"}
    assert address(rows, "pretrain", model=changed) != before


def test_another_model_of_the_same_name_changes_the_address(rows, model, tmp_path):
    before = address(rows, "evaluate")
    other = tmp_path / "other"
    other.mkdir()
    text = (model / "gpt2cls.json").read_text()
    (other / "gpt2cls.json").write_text(text.replace('"sha256":', '"sha256": ', 1))
    (rows / "model").unlink()
    (rows / "model").symlink_to(other)
    assert address(rows, "evaluate") != before


def test_a_reference_becomes_the_path_of_what_was_made(place):
    spec = {"a": {"job": {"kind": "finetune", "data": {"train": "x.csv"}}},
            "b": {"job": {"kind": "evaluate", "model": "${stages.a.model}",
                          "data": {"test": "x.csv"}}}}  # fmt: skip
    job = PipelineJob.model_validate({"kind": "pipeline", "name": "p", "stages": spec})
    made = a_made(place, "aa")
    assert with_paths(job.stages["b"].job, {"a": made}).model == str(made.output)
    assert with_paths(job.stages["a"].job, {}) == job.stages["a"].job


def test_the_parts_of_a_prepare_stage_are_files_also_in_a_list(place):
    spec = {"a": {"job": {"kind": "prepare", "input": "x.csv"}},
            "b": {"job": {"kind": "pretrain",
                          "data": {"train": ["${stages.a.texts}", "more.txt"]}}}}  # fmt: skip
    job = PipelineJob.model_validate({"kind": "pipeline", "name": "p", "stages": spec})
    assert job.needs["b"] == ("a",)
    made = a_made(place, "aa")
    train = with_paths(job.stages["b"].job, {"a": made}).data.train
    assert train == (str(made.folder / "model" / "texts.parquet"), "more.txt")


def a_made(place, name, text="1"):
    """Something that a stage made: a folder with one file."""
    aside = place / "aside"
    (aside / "model").mkdir(parents=True)
    (aside / "model" / "weights").write_text(text)
    about = {"job_id": "j", "metrics": {}, "output": "model"}
    return keep(place / "cache", name, aside, about, {"rows": 1})


def test_what_was_made_is_found_whole_and_nothing_is_left_beside_it(place):
    made = a_made(place, "aa")
    found, fault = find(place / "cache", "aa")
    assert fault is None
    assert found == made
    assert (found.output / "weights").read_text() == "1"
    assert found.result == {"rows": 1}
    assert [path.name for path in place.iterdir()] == ["cache"]
    assert find(place / "cache", "bb") == (None, None)


@pytest.mark.parametrize("name", ["model/weights", RESULT, "stage.json"])
@pytest.mark.parametrize("harm", ["cut", "altered", "missing"])
def test_what_was_damaged_is_not_found_and_made_again(place, name, harm):
    path = a_made(place, "aa").folder / name
    if harm == "missing":
        path.unlink()
    else:
        path.write_text("" if harm == "cut" else f"{path.read_text()[:-1]}x")
    found, fault = find(place / "cache", "aa")
    assert found is None
    assert str(path) in fault
    a_made(place, "aa", text="2")
    found, _ = find(place / "cache", "aa")
    assert (found.output / "weights").read_text() == "2"
    assert sorted(path.name for path in folder_of(place / "cache", "aa").parent.iterdir()) == ["aa"]


def test_of_two_that_made_the_same_the_first_stays(place):
    a_made(place, "aa", text="first")
    second = a_made(place, "aa", text="second")
    assert (second.output / "weights").read_text() == "first"
    assert not (place / "aside").exists()
