"""YAML as plain values: what a text may say, and what it may never do."""

import math
import os

import pytest

from jobs.faults import BadRequestError
from jobs.tree import MAX_BYTES, Tree, override, parse_tree, read_tree, scalar


def problems_of(text):
    """The faults of a text, whether they end the reading or not."""
    try:
        return parse_tree(text, "job.yaml").problems
    except BadRequestError as error:
        return error.problems


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.0e-4", 1e-4),
        (".5", 0.5),
        ("-3", -3),
        ("true", True),
        ("null", None),
        ("~", None),
        (".inf", math.inf),
    ],
)
def test_a_number_a_truth_value_and_null_are_read_as_such(text, value):
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


@pytest.mark.parametrize(
    "text",
    ["yes", "no", "on", "off", "NO", "y", "010", "0x1f", "0o7", "1_000", "12:30:00", "2024-01-01"],
)
def test_a_word_that_yaml_once_took_for_something_else_stays_text(text):
    assert parse_tree(f"country: {text}", "f").values == {"country": text}


def test_an_integer_of_thousands_of_digits_is_read_in_bounded_time():
    assert scalar("9" * 5000) == math.inf


def test_a_quoted_number_is_text():
    assert parse_tree("a: '1'\nb: \"true\"", "f").values == {"a": "1", "b": "true"}


def test_every_key_knows_its_line():
    tree = parse_tree("a: 1\n\nb:\n  c: [1,\n   2]\n", "job.yaml")
    assert tree.where(("b", "c")) == ("job.yaml", 4)
    assert tree.where(("b", "c", 1)) == ("job.yaml", 5)
    assert tree.where(("b", "missing")) == ("job.yaml", 3)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        pytest.param("kind: x\n  data: [\n", 2, "indentation", id="a syntax error"),
        pytest.param("a:\n\tb: 1\n", 2, "a tab", id="a tab"),
        pytest.param("a: 'x\n", 2, "a quote is not closed", id="an open quote"),
        pytest.param("a: [1\n", 2, "line 2", id="an open list"),
        pytest.param("x: !!python/object/apply:os.system ['ls']", 1, "tag '!!python", id="a tag"),
        pytest.param("a: !!str 1", 1, "tag '!!str' is not allowed", id="a harmless tag"),
        pytest.param("!x a: 1", 1, "tag '!x' is not allowed as a key", id="a tag of a key"),
        pytest.param("a: 1\nb: 2\na: 3\n", 3, "first on line 1", id="a key given twice"),
        pytest.param("a: {b: 1,\n b: 2}\n", 2, "a.b is given twice", id="an inner key twice"),
        pytest.param("a: 1\n---\nb: 2\n", 2, "second document", id="two documents"),
        pytest.param("[1, 2]: 3", 1, "not allowed as a key", id="a list as a key"),
        pytest.param("a: *b", 1, "names nothing above", id="an alias of nothing"),
        pytest.param("a: &a [*a]", 1, "names nothing above", id="an alias of itself"),
        pytest.param("", 1, "is empty", id="an empty file"),
        pytest.param("# nothing\n", 1, "is empty", id="only a comment"),
        pytest.param("- a\n", 1, "not a mapping", id="a list"),
        pytest.param("just words", 1, "not a mapping", id="a text"),
        pytest.param('a: "x\\0y"', 1, "control character", id="a NUL"),
        pytest.param('a: "x\\ny"', 1, "line break", id="a line break"),
        pytest.param('"a\\eb": 1', 1, "control character", id="an escape in a key"),
    ],
)
def test_a_text_that_is_no_job_file_is_refused_with_its_line(text, line, words):
    (problem,) = problems_of(text)
    assert problem.line == line
    assert words in problem.message


def test_nesting_without_end_is_refused():
    for text in ("a: " + "[" * 10_000, "a: " + "{b: " * 10_000):
        assert "nested more than" in problems_of(text)[0].message


def test_a_billion_laughs_are_refused_before_they_are_laughed():
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for old, new in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]")
    assert "aliases make the file more than" in problems_of("\n".join(lines))[0].message


def test_an_alias_copies_what_it_names():
    values = parse_tree("a: &x {b: [1]}\nc: *x\n", "f").values
    values["a"]["b"].append(2)
    assert values["c"] == {"b": [1]}


def test_too_many_values_are_refused():
    assert "more than 100,000 values" in problems_of("a: [" + "1," * 100_001 + "]")[0].message


@pytest.mark.parametrize(
    ("make", "words"),
    [
        pytest.param(lambda p: p.write_bytes(b" " * (MAX_BYTES + 1)), "larger than", id="large"),
        pytest.param(lambda p: p.write_bytes(b"a: 1\nb: \xff"), "line 2 is not UTF-8", id="latin"),
        pytest.param(lambda p: p.mkdir(), "s a directory", id="a folder"),
        pytest.param(lambda p: os.mkfifo(p), "not a regular file", id="a pipe"),
        pytest.param(lambda p: None, "No such file", id="nothing"),
    ],
)
def test_what_is_not_a_small_text_file_is_refused(tmp_path, make, words):
    path = tmp_path / "job.yaml"
    make(path)
    with pytest.raises(BadRequestError, match=words):
        read_tree(path)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_bytes(b"\xef\xbb\xbfkind: x\n")
    assert read_tree(path).values == {"kind": "x"}


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("train.lr=3e-5", {"train": {"lr": 3e-5, "epochs": 1}}),
        ("name=no", {"train": {"lr": 1, "epochs": 1}, "name": "no"}),
        ("a.b.c=[1, x]", {"train": {"lr": 1, "epochs": 1}, "a": {"b": {"c": [1, "x"]}}}),
        ("train={lr: 2}", {"train": {"lr": 2}}),
        ("train.lr=a: b", {"train": {"lr": "a: b", "epochs": 1}}),
        ("train.lr=", {"train": {"lr": None, "epochs": 1}}),
        ("data=a=b", {"train": {"lr": 1, "epochs": 1}, "data": "a=b"}),
    ],
)
def test_a_setting_replaces_a_value_of_the_file(setting, values):
    tree = parse_tree("train: {lr: 1, epochs: 1}", "job.yaml")
    override(tree, [setting])
    assert tree.values == values
    assert tree.problems == []


def test_a_setting_stands_on_the_command_line_and_on_no_line():
    tree = parse_tree("train:\n  lr: 1\n", "job.yaml")
    override(tree, ["train.lr=2", "model.heads=3"])
    assert tree.where(("train", "lr")) == ("-s", None)
    assert tree.where(("model", "heads")) == ("-s", None)
    assert tree.where(("train", "epochs")) == ("job.yaml", 1)


@pytest.mark.parametrize(
    "setting", ["lr", "=1", ".lr=1", "a=[1", "a=[!!python/x 1]", "a=!!str 1", "a=x\0y"]
)
def test_a_setting_that_cannot_be_read_is_refused(setting):
    tree = Tree("job.yaml")
    override(tree, [setting])
    assert [problem.file for problem in tree.problems] == ["-s"]


def test_a_setting_that_is_refused_is_told_once_with_its_field_and_sets_nothing():
    tree = parse_tree("train: {lr: 1}", "job.yaml")
    override(tree, ["train.lr=!!float 2"])
    (problem,) = tree.problems
    assert problem.text() == (
        "-s: train.lr = '!!float 2': tag '!!float' is not allowed; write a plain value"
    )
    assert problem.field == "train.lr"
    assert tree.values == {"train": {"lr": 1}}
