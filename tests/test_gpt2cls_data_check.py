"""The data report counts what is there and names what looks wrong."""

import numpy as np
import pytest

from gpt2cls.config import DataConfig
from gpt2cls.data.check import check
from gpt2cls.data.prepare import prepare
from gpt2cls.data.report import DataReport


class Words:
    """Counts words where a tokenizer would count tokens."""

    def encode_lengths(self, texts, pairs=None):
        both = zip(texts, pairs or [""] * len(texts), strict=True)
        return np.array([len(text.split()) + len(pair.split()) for text, pair in both])


def report(folder, train, test=None, validation=0.1, *, encode=None, max_length=4, **settings):
    sources = {"train.csv": train, "test.csv": test, "validation.csv": validation}
    for name, rows in sources.items():
        if isinstance(rows, list):
            (folder / name).write_text("\n".join(["text,label", *rows]) + "\n")
    config = DataConfig(
        train="train.csv",
        test="test.csv" if test else None,
        validation="validation.csv" if isinstance(validation, list) else validation,
        **settings,
    )
    prepared = prepare(config, base_dir=folder, seed=0)
    return check(prepared, encode=encode, max_length=max_length)


def problem(found: DataReport, kind: str):
    [one] = [problem for problem in found.problems if problem.kind == kind]
    return one


def many(label, count, word="w"):
    return [f"{word}{label}{i},{label}" for i in range(count)]


def test_clean_data_has_no_problems_and_a_full_balance(tmp_path):
    found = report(tmp_path, many("a", 40) + many("b", 20), many("a", 3, "t") + many("b", 2, "t"))
    assert found.problems == []
    assert found.rows == 65
    assert found.splits == {"train": 54, "validation": 6, "test": 5}
    assert found.labels["a"] == {"train": 36, "validation": 4, "test": 3}
    assert found.tokens == {}


def test_lengths_and_the_share_cut_off_are_given_for_every_split(tmp_path):
    texts = ["one,a", "one two three,b", "one two three four five,a", "1 2 3 4 5 6 7,b"]
    found = report(tmp_path, texts, validation=["a b,a", "a b c d e,b"], encode=Words())
    train = found.tokens["train"]
    assert (train.mean, train.p50, train.max) == (4.0, 4.0, 7)
    assert train.share_truncated == 0.5
    assert found.tokens["validation"].share_truncated == 0.5


def test_lengths_known_already_are_not_counted_again(tmp_path):
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *many("a", 9), *many("b", 9)]))
    prepared = prepare(DataConfig(train="train.csv"), base_dir=tmp_path, seed=0)
    found = check(prepared, full_lengths={"train": np.array([1, 2, 9])}, max_length=4)
    assert found.tokens["train"].max == 9
    assert "validation" not in found.tokens


def test_empty_texts_are_counted_and_placed(tmp_path):
    train = [*many("a", 20), ",a", "  ,b", *many("b", 20)]
    found = report(tmp_path, train, validation=many("a", 1, "v") + many("b", 1, "v"))
    assert problem(found, "empty_texts").count == 2
    assert problem(found, "empty_texts").examples == ["train.csv:22", "train.csv:23"]


def test_exact_duplicates_name_the_row_they_repeat(tmp_path):
    train = ["same,a", *many("a", 20), *many("b", 20), "same,a", "same,a"]
    found = report(tmp_path, train, validation=many("a", 1, "v") + many("b", 1, "v"))
    assert problem(found, "duplicates").count == 2
    assert problem(found, "duplicates").examples[0] == (
        "train.csv:43 'same' is also at train.csv:2"
    )


def test_rows_to_measure_with_that_were_trained_on_are_counted(tmp_path):
    train = many("a", 20) + many("b", 20)
    found = report(tmp_path, train, test=["wa3,a", "new,b"], validation=["wb1,b", "other,a"])
    assert problem(found, "train_test_overlap").examples == ["test.csv:2 'wa3'"]
    assert problem(found, "train_validation_overlap").count == 1


def test_texts_with_conflicting_labels_are_named_once_each(tmp_path):
    train = [*many("a", 20), "both,a", "both,b", "both,a", *many("b", 20)]
    found = report(tmp_path, train, test=["both,b", "t,a"], validation=["v,a", "u,b"])
    assert problem(found, "conflicting_labels").count == 1
    [example] = problem(found, "conflicting_labels").examples
    assert "'both'" in example and " and " in example


def test_rows_with_other_sets_of_labels_conflict(tmp_path):
    train = [*many("a", 20), *many("b", 20), "both,a|b", "both,a", "same,a|b", "same,b|a"]
    found = report(tmp_path, train, validation=["v,a", "u,b"], separator="|")
    assert problem(found, "conflicting_labels").count == 1


@pytest.mark.parametrize(
    ("kind", "example"),
    [
        ("rare_classes", "'c': 2 rows in train"),
        ("classes_not_in_test", "'c'"),
        ("labels_alike", "'B ' and 'b'"),
        ("labels_that_look_missing", "'None'"),
        ("labels_only_in_test", "'new' in 1 rows (test.csv:2)"),
    ],
)
def test_classes_that_look_wrong_are_named(kind, example, tmp_path):
    train = [*many("b", 20), *many("c", 2), *many("B ", 20), *many("None", 20)]
    validation = ["v1,b", "v2,c", "v3,B ", "v4,None"]
    test = ["t0,new", "t1,b", "t2,B ", "t3,None"]
    found = report(tmp_path, train, test, validation)
    assert problem(found, kind).count == 1
    assert problem(found, kind).examples == [example]


def test_no_more_than_three_examples_are_given_and_they_are_short(tmp_path):
    train = ["x" * 5000 + ",a"] * 30 + many("b", 20)
    found = report(tmp_path, train, validation=["v,a", "u,b"])
    examples = problem(found, "duplicates").examples
    assert len(examples) == 3
    assert max(map(len, examples)) < 120


def test_the_report_is_plain_data(tmp_path):
    found = report(tmp_path, [*many("a", 20), "x,a", "x,b", *many("b", 20)], encode=Words())
    assert DataReport.model_validate_json(found.model_dump_json()) == found
    assert {"rows", "labels", "problems"} <= set(found.model_dump())
