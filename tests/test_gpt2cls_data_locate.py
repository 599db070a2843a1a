"""A source is found or refused before anything is read, and without heavy imports."""

import subprocess
import sys

import pytest

from gpt2cls.data.locate import check_source_exists, locate


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n")
    (tmp_path / "notes.md").write_text("# notes\n")
    (tmp_path / "classes" / "pos").mkdir(parents=True)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_dict.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("bbc-news", "builtin"),
        ("hf:imdb", "hub"),
        ("hf:nyu-mll/glue/mrpc", "hub"),
        ("train.csv", "files"),
        ("*.csv", "files"),
        ("classes", "class_folders"),
        ("saved", "saved"),
    ],
)
def test_every_kind_of_source_is_told_apart(source, kind, folder):
    assert locate(source, base_dir=folder).kind == kind
    assert check_source_exists(source, base_dir=folder) is None


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("train.cvs", "no such file"),
        ("*.jsonl", "no file in"),
        ("notes.md", "no known format"),
        ("*", "no known format"),
        ("empty", "it is empty"),
        (".", "one folder per class"),
        ("hf:", "write hf:<name>"),
        ("hf:a/b/c/d", "write hf:<name>"),
        ("hf:../x y", "write hf:<name>"),
        ("https://example.org/a.csv", "download it first"),
        ("s3://bucket/a.csv", "download it first"),
        ("file:///etc/passwd", "download it first"),
        ("a\0b.csv", "NUL"),
        ("x" * 5000, "cannot be read"),
        ("; rm -rf $(pwd)", "no such file"),
    ],
)
def test_a_source_that_is_not_there_is_one_sentence(source, said, folder):
    if source == ".":
        (folder / "classes" / "pos").rmdir()
        (folder / "classes").rmdir()
        (folder / "saved" / "dataset_dict.json").unlink()
        (folder / "saved").rmdir()
        (folder / "empty").rmdir()
    fault = check_source_exists(source, base_dir=folder)
    assert fault is not None and said in fault


def test_an_absolute_path_is_taken_as_it_is(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    assert check_source_exists(str(folder / "train.csv"), base_dir=elsewhere) is None


def test_finding_a_source_imports_nothing_heavy():
    code = (
        "import sys, gpt2cls.data.locate;"
        "bad = {'pyarrow', 'datasets', 'numpy', 'torch', 'pandas'} & set(sys.modules);"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
