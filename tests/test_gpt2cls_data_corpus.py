"""Texts without labels: which files they come from, and how some are held out."""

import gzip
import json
import resource

import pyarrow as pa
import pytest

from gpt2cls.config import CorpusConfig
from gpt2cls.data import text_files
from gpt2cls.data.corpus import num_text_bytes, read_corpus
from gpt2cls.data.locate import check_corpus_exists
from gpt2cls.errors import DataError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "books").mkdir()
    for i in range(10):
        (tmp_path / "books" / f"{i}.txt").write_text(f"book {i}\nöäü")
    with gzip.open(tmp_path / "one.txt.gz", "wt") as file:
        file.write("the only text")
    rows = [{"body": f"row {i % 8}", "label": i % 2} for i in range(20)] + [{"body": ""}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def corpus(folder, train, seed=0, **settings):
    config = CorpusConfig(train=train, **settings)
    return read_corpus(config, base_dir=folder, seed=seed, cache_dir=folder / "cache")


def texts(split):
    return split.texts.to_pylist()


@pytest.mark.parametrize("source", ["books", "books/*.txt"])
def test_each_text_file_of_a_folder_or_glob_is_one_text(folder, source):
    found = corpus(folder, source, validation=0.2)
    assert (len(found.train), len(found.validation)) == (8, 2)
    assert sorted(texts(found.train) + texts(found.validation)) == [
        f"book {i}\nöäü" for i in range(10)
    ]
    assert check_corpus_exists(source, base_dir=folder) is None


def test_a_packed_text_file_can_be_what_is_measured_on(folder):
    found = corpus(folder, "books", validation="one.txt.gz")
    assert texts(found.validation) == ["the only text"]
    assert len(found.train) == 10


def test_rows_of_a_table_need_no_label_and_empty_ones_are_left_out(folder):
    found = corpus(folder, "rows.jsonl", text="body", validation=0.25)
    assert len(found.train) + len(found.validation) == 20
    assert not set(texts(found.train)) & set(texts(found.validation))  # equal texts stay together
    assert found.notes == ("train: 1 of 21 texts are empty; left out",)


def test_a_text_that_is_measured_and_learned_is_told(folder):
    found = corpus(folder, "books", validation="books/3.txt")
    assert "1 of 1 texts are also in train" in found.notes[0]


def test_the_same_call_gives_the_same_splits_and_another_seed_others(folder):
    first, again = corpus(folder, "books"), corpus(folder, "books")
    assert first.fingerprint == again.fingerprint
    held = {tuple(texts(corpus(folder, "books", seed=seed).validation)) for seed in range(5)}
    assert len(held) > 1


@pytest.mark.parametrize(
    ("source", "settings", "words"),
    [
        ("one.txt.gz", {}, "no text can be held out of 1"),
        ("rows.jsonl", {}, "'text'"),
        ("nothing.txt", {}, "no such file"),
    ],
    ids=["a single text", "no such column", "no such file"],
)
def test_what_cannot_be_learned_from_is_refused(folder, source, settings, words):
    with pytest.raises(DataError, match=words):
        corpus(folder, source, **settings)


def test_a_folder_of_empty_texts_is_refused(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match=r"data.train = a.txt: holds no text"):
        corpus(tmp_path, "a.txt")


def test_a_folder_with_other_files_is_no_folder_of_texts(folder):
    (folder / "books" / "cover.png").touch()
    assert "one folder per class" in check_corpus_exists("books", base_dir=folder)


def test_sources_of_a_list_are_read_one_after_another(folder):
    found = corpus(folder, ["one.txt.gz", "books"], validation=["books/3.txt", "books/4.txt"])
    assert texts(found.train)[:2] == ["the only text", "book 0\nöäü"]
    assert len(found.train) == 11
    assert texts(found.validation) == ["book 3\nöäü", "book 4\nöäü"]


@pytest.mark.parametrize("name", ["large.txt", "large.txt.gz"])
def test_a_corpus_in_one_large_file_is_several_texts_of_whole_lines(folder, name, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_TEXT_BYTES", 1000)
    monkeypatch.setattr(text_files, "PART_BYTES", 300)
    lines = [f"line {i} of öäü\n" for i in range(100)]
    opener = gzip.open if name.endswith(".gz") else open
    with opener(folder / name, "wb") as file:
        file.write("".join(lines).encode())
    found = corpus(folder, name, validation="books")
    assert "".join(texts(found.train)) == "".join(lines)
    assert len(found.train) > 3 and all(text.endswith("\n") for text in texts(found.train))
    with opener(folder / name, "wb") as file:
        file.write("".join(lines).encode() + b"\xff\n")
    with pytest.raises(DataError, match=rf"{name}:101: byte 0xff"):
        corpus(folder, name, validation="books")
    with opener(folder / name, "wb") as file:
        file.write("".join(lines).encode() + b"x" * 2000)
    with pytest.raises(DataError, match=rf"{name}:101: longer than"):
        corpus(folder, name, validation="books")


def test_a_corpus_lies_on_disk_and_not_in_memory(folder):
    for i in range(8):  # 64 MiB
        lines = (f"{i} {j} {'of many words ' * 8}" for j in range(70_000))
        (folder / "books" / f"{i}.txt").write_text("\n".join(lines))
    size = sum(file.stat().st_size for file in (folder / "books").iterdir())
    assert size > 60e6
    before = pa.total_allocated_bytes()
    found = corpus(folder, ["books"], validation=0.3)
    kept = pa.total_allocated_bytes() - before
    assert kept < size / 20
    assert sum(num_text_bytes(split.texts) for split in (found.train, found.validation)) == size
    assert not any((folder / "cache" / "corpora").iterdir())  # nothing is left behind


def test_a_disk_that_takes_no_more_is_said(folder):
    (folder / "books" / "long.txt").write_text("a long text\n" * 10_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(DataError, match=r"corpora: File too large.* Make room"):
            corpus(folder, "books", validation=0.2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_many_short_files_lie_side_by_side(folder):
    assert corpus(folder, "books", validation="one.txt.gz").train.texts.num_chunks == 1
