"""Sources become splits of one task; what makes training senseless is refused."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from gpt2cls.config import DataConfig
from gpt2cls.data.prepare import Prepared, prepare, read_labelled
from gpt2cls.data.tasks import Task
from gpt2cls.errors import DataError


def write_csv(folder, labels, name="train.csv", start=0):
    lines = [f"text number {start + i},{label}" for i, label in enumerate(labels)]
    (folder / name).write_text("\n".join(["text,label", *lines]) + "\n")
    return name


def prepared(folder, seed=0, **settings) -> Prepared:
    return prepare(DataConfig(**settings), base_dir=folder, seed=seed)


def names(data: Prepared, split) -> list[str]:
    return [data.task.labels[number] for number in split.labels]


def test_a_file_becomes_train_and_validation_with_sorted_labels(tmp_path):
    data = prepared(tmp_path, train=write_csv(tmp_path, ["pear", "apple"] * 50))
    assert data.task == Task("single_label", ("apple", "pear"), False)
    assert (len(data.train), len(data.validation), data.test) == (90, 10, None)
    assert data.train.labels.dtype == np.int64
    assert "no test split" in data.notes[0]
    row = data.train.texts.to_pylist().index("text number 41")
    assert (data.train.where(row), names(data, data.train)[row]) == ("train.csv:43", "apple")


def test_shares_of_test_and_validation_are_disjoint_and_complete(tmp_path):
    source = write_csv(tmp_path, ["a", "b"] * 100)
    data = prepared(tmp_path, train=source, test=0.2, validation=0.25)
    parts = [set(split.texts.to_pylist()) for split in data.splits.values()]
    assert [len(part) for part in parts] == [120, 40, 40]
    assert len(set.union(*parts)) == 200


def test_labels_of_some_rows_are_used_and_the_texts_of_the_others_are_kept(tmp_path):
    source = write_csv(tmp_path, ["a", "b", "b", "b"] * 100)
    data = prepared(tmp_path, train=source, validation=0.25, labelled=40)
    assert sorted(names(data, data.train)) == ["a"] * 10 + ["b"] * 30
    assert (len(data.validation), len(data.unlabelled)) == (100, 260)
    parts = [{*s.texts.to_pylist()} for s in (data.train, data.validation, data.unlabelled)]
    assert len(set.union(*parts)) == 400
    other = prepared(tmp_path, 1, train=source, validation=0.25, labelled=40)
    assert not data.train.texts.equals(other.train.texts)
    assert data.fingerprint != prepared(tmp_path, train=source, validation=0.25).fingerprint
    assert prepared(tmp_path, train=source, labelled=9999).unlabelled is None


def test_too_few_labels_for_the_classes_are_refused(tmp_path):
    source = write_csv(tmp_path, [f"{i % 7}x" for i in range(140)])
    with pytest.raises(DataError, match=r"data\.labelled = 5: not every one of 7 classes"):
        prepared(tmp_path, train=source, labelled=5)


def test_the_seed_alone_decides_the_split(tmp_path):
    source = write_csv(tmp_path, ["a", "b"] * 100)
    one, same, other = (prepared(tmp_path, seed, train=source) for seed in (1, 1, 2))
    assert one.validation.texts.equals(same.validation.texts)
    assert one.fingerprint == same.fingerprint
    assert one.fingerprint != other.fingerprint


def test_the_fingerprint_sees_a_changed_label_and_no_file_format(tmp_path):
    first = prepared(tmp_path, train=write_csv(tmp_path, ["a", "b"] * 20))
    changed = prepared(tmp_path, train=write_csv(tmp_path, ["a", "b"] * 19 + ["b", "b"]))
    write_csv(tmp_path, ["a", "b"] * 20)
    lines = (tmp_path / "train.csv").read_text().splitlines()[1:]
    rows = [dict(zip(("text", "label"), line.split(","), strict=True)) for line in lines]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert prepared(tmp_path, train="rows.jsonl").fingerprint == first.fingerprint
    assert changed.fingerprint != first.fingerprint


def test_a_label_seen_only_in_test_is_told_of_and_its_rows_left_out(tmp_path):
    train = write_csv(tmp_path, ["a", "b"] * 20)
    test = write_csv(tmp_path, ["a", "new", "b", "new"], "test.csv", start=100)
    data = prepared(tmp_path, train=train, test=test)
    assert names(data, data.test) == ["a", "b"]
    assert data.test.where(1) == "test.csv:4"
    assert "2 of 4 rows left out" in data.notes[0]
    [problem] = data.problems
    assert (problem.kind, problem.count) == ("labels_only_in_test", 1)
    assert problem.examples == ["'new' in 2 rows (test.csv:3)"]


def test_several_labels_become_a_matrix(tmp_path):
    kinds = {"p": "x|y", "q": "", "r": "y", "s": "x | x|"}
    rows = [f"{name}{i},{labels}" for i in range(10) for name, labels in kinds.items()]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *rows]))
    data = prepared(tmp_path, train="rows.csv", separator="|")
    assert data.task == Task("multi_label", ("x", "y"), False)
    expected = {"p": [True, True], "q": [False, False], "r": [False, True], "s": [True, False]}
    texts = data.train.texts.to_pylist()
    assert data.train.labels.tolist() == [expected[text[0]] for text in texts]
    assert data.train.labels.dtype == bool


def test_pairs_are_kept_together(tmp_path):
    rows = [f"q{i},a{i},{i % 2}" for i in range(40)]
    (tmp_path / "rows.csv").write_text("\n".join(["q,a,label", *rows]))
    data = prepared(tmp_path, train="rows.csv", text=("q", "a"))
    assert data.task.is_pair
    pairs = zip(data.train.texts.to_pylist(), data.train.pairs.to_pylist(), strict=True)
    assert all(first[1:] == second[1:] for first, second in pairs)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([1, 2], ("1", "2")),
        ([1.0, 2.0], ("1", "2")),
        ([True, False], ("false", "true")),
        (["1.0", "no"], ("1.0", "no")),
    ],
    ids=["whole numbers", "whole numbers as floats", "truth values", "text is left as it is"],
)
def test_labels_that_are_not_text_become_text(labels, expected, tmp_path):
    rows = [{"text": f"t{i}", "label": label} for i, label in enumerate(labels * 10)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert prepared(tmp_path, train="rows.jsonl").task.labels == expected


SENSELESS = {
    "one class": ("text,label\na,x\nb,x\n", ["'x'", "one class"]),
    "no rows": ("text,label\n", ["train.csv: no rows"]),
    "labels missing": (
        "text,label\na,x\nb,\nc,NaN\nd,-inf\ne,  \nf,y\n",
        ["4 of 6 rows", "train.csv:3, train.csv:4, train.csv:5 and 1 more"],
    ),
    "measurements": (
        "text,label\n" + "".join(f"t{i},{i / 8}\n" for i in range(40)),
        ["Set data.task to regression"],
    ),
    "nothing to hold out": ("text,label\na,x\nb,y\n", ["data.validation = 0.1", "2"]),
}


@pytest.mark.parametrize(("content", "said"), SENSELESS.values(), ids=SENSELESS.keys())
def test_senseless_data_is_refused(content, said, tmp_path):
    (tmp_path / "train.csv").write_text(content)
    with pytest.raises(DataError) as refused:
        prepared(tmp_path, train="train.csv")
    assert [part for part in said if part not in str(refused.value)] == []


def test_missing_labels_of_json_are_null_and_not_a_number(tmp_path):
    rows = ['{"text": "a", "label": null}', '{"text": "b", "label": NaN}', '{"text": "c"}']
    (tmp_path / "train.jsonl").write_text('{"text": "d", "label": 1}\n' + "\n".join(rows))
    with pytest.raises(DataError, match="3 of 4 rows have no label"):
        prepared(tmp_path, train="train.jsonl")


def test_a_test_set_without_any_known_label_is_refused(tmp_path):
    train = write_csv(tmp_path, ["a", "b"] * 20)
    test = write_csv(tmp_path, ["A", "B"], "test.csv")
    with pytest.raises(DataError, match=r"test\.csv: none of its labels .*'A' in 1 rows"):
        prepared(tmp_path, train=train, test=test)


def test_a_test_set_of_another_kind_is_refused(tmp_path):
    train = write_csv(tmp_path, ["a", "b"] * 20)
    (tmp_path / "test.jsonl").write_text('{"text": "t", "label": ["a"]}\n')
    with pytest.raises(DataError, match="has lists of labels a row where"):
        prepared(tmp_path, train=train, test="test.jsonl")


@pytest.fixture
def saved(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()

    def save(**splits):
        made = {
            name: datasets.Dataset.from_dict(
                {"text": [f"{name} {i}" for i in range(len(labels))], "label": labels}
            )
            for name, labels in splits.items()
        }
        datasets.DatasetDict(made).save_to_disk(tmp_path / "saved")
        return tmp_path

    return save


def test_the_splits_that_come_with_a_source_are_found(saved):
    folder = saved(train=["a", "b"] * 20, validation=["a", "b"], test=["a", "b", "a"])
    data = prepared(folder, train="saved")
    assert [len(split) for split in data.splits.values()] == [36, 4, 3]
    assert "its own validation split, which was not used" in data.notes[0]
    own = prepared(folder, train="saved", validation="saved")
    assert [len(split) for split in own.splits.values()] == [40, 2, 3]


def test_a_test_split_whose_labels_are_withheld_is_no_test_split(saved):
    folder = saved(train=["a", "b"] * 20, test=[None, None])
    data = prepared(folder, train="saved")
    assert data.test is None
    assert "has no labels" in data.notes[0]


def test_rows_to_measure_a_model_on_have_the_numbers_of_its_task(tmp_path):
    write_csv(tmp_path, ["b", "c"], "other.csv")
    columns = SimpleNamespace(text="text", label="label", separator=None, choices=None)
    task = Task("single_label", ("a", "b", "c"), False)
    split = read_labelled("other.csv", columns, task, base_dir=tmp_path)
    assert split.labels.tolist() == [1, 2]
    with pytest.raises(DataError, match=r"'c' in 1 rows \(other\.csv:3\)"):
        read_labelled(
            "other.csv", columns, Task("single_label", ("a", "b"), False), base_dir=tmp_path
        )


@pytest.mark.parametrize(
    "document",
    [
        None,
        {"kind": "single_label", "labels": ["a"]},
        {"kind": "ranking", "labels": ["a"], "is_pair": False},
        {"kind": "single_label", "labels": ["a", "a"], "is_pair": False},
        {"kind": "single_label", "labels": [1], "is_pair": False},
        {"kind": "single_label", "labels": ["a"], "is_pair": "no"},
    ],
)
def test_a_task_is_only_read_from_what_a_task_wrote(document):
    task = Task("multi_label", ("a", "b"), True)
    assert Task.from_json(json.loads(json.dumps(task.to_json()))) == task
    with pytest.raises(DataError, match="description of a task"):
        Task.from_json(document)
