"""The token cache: what it holds, and that many may use it and none is fooled by a torn one."""

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gpt2cls.data import encode
from gpt2cls.data.bpe import train_bpe
from gpt2cls.data.cache import cached_folder, hash_texts
from gpt2cls.data.encode import encode_split, open_tokens
from gpt2cls.data.tasks import Split
from gpt2cls.errors import DataError

TEXTS = ["the cat sat", "", "the dog ate the cat " * 10, "好天气"]


def column(*chunks: list[str]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(chunk, pa.large_string()) for chunk in chunks])


def split(texts=TEXTS, pairs=None) -> Split:
    second = None if pairs is None else column(pairs)
    return Split(column(texts), second, np.zeros(len(texts), np.int64))


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe([column(TEXTS)], 300)


def test_the_cache_holds_the_tokens_of_every_row(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(encode, "_CHUNK_ROWS", 3)  # so that four rows are two chunks
    tokens = open_tokens(encode_split(split(), tokenizer, max_length=8, cache_dir=tmp_path))
    rows, full = tokenizer.encode(TEXTS, None, 8)
    assert len(tokens) == 4
    assert tokens.tokens.dtype == np.uint16
    assert isinstance(tokens.tokens, np.memmap)
    for i, row in enumerate(rows):
        found = tokens.tokens[tokens.offsets[i] : tokens.offsets[i + 1]]
        assert found.tolist() == row.tolist()
    assert tokens.full_lengths.tolist() == full.tolist()
    assert tokens.lengths.tolist() == [len(row) for row in rows]
    np.testing.assert_allclose(tokens.cut_share, [0, 0, 1 - 8 / full[2], max(0, 1 - 8 / full[3])])


def test_a_split_without_rows_has_no_tokens(tmp_path, tokenizer):
    tokens = open_tokens(encode_split(split([]), tokenizer, max_length=8, cache_dir=tmp_path))
    assert (len(tokens), tokens.lengths.tolist()) == (0, [])


def test_what_decides_the_tokens_decides_the_folder(tmp_path, tokenizer):
    other = train_bpe([column(["something else"])], 290)

    def folder(split_=None, tokenizer_=tokenizer, max_length=8) -> Path:
        return encode_split(
            split_ or split(), tokenizer_, max_length=max_length, cache_dir=tmp_path
        )

    different = [
        folder(),
        folder(max_length=9),
        folder(tokenizer_=other),
        folder(split(TEXTS[::-1])),
        folder(split(pairs=TEXTS)),
    ]
    assert len(set(different)) == 5
    assert folder() == different[0]


def test_the_hash_of_texts_ignores_chunks_but_not_where_a_text_ends():
    assert hash_texts(column(["ab", "c"], [], ["d"])) == hash_texts(column(["ab", "c", "d"]))
    assert hash_texts(column(["x", "ab", "c", "d"]).slice(1)) == hash_texts(
        column(["ab", "c", "d"])
    )
    assert hash_texts(column(["ab", "c"])) != hash_texts(column(["a", "bc"]))
    assert hash_texts(column([])) != hash_texts(column([""]))


def damage(folder: Path, how: str) -> None:
    tokens = folder / "tokens.bin"
    match how:
        case "cut short":
            tokens.write_bytes(tokens.read_bytes()[:-2])
        case "altered":
            tokens.write_bytes(b"\1" * tokens.stat().st_size)
        case "missing":
            (folder / "offsets.npy").unlink()
        case "no manifest":
            (folder / "manifest.json").unlink()
        case "manifest cut short":
            (folder / "manifest.json").write_text('{"tokens.bin": ')
        case "manifest of another kind":
            (folder / "manifest.json").write_text('["tokens.bin"]')


DAMAGES = ["cut short", "altered", "missing", "no manifest", "manifest cut short"]


@pytest.mark.parametrize("how", [*DAMAGES, "manifest of another kind"])
def test_a_torn_cache_is_rebuilt(tmp_path, tokenizer, how):
    folder = encode_split(split(), tokenizer, max_length=8, cache_dir=tmp_path)
    wanted = np.array(open_tokens(folder).tokens)
    damage(folder, how)
    assert encode_split(split(), tokenizer, max_length=8, cache_dir=tmp_path) == folder
    assert np.array_equal(open_tokens(folder).tokens, wanted)


@pytest.mark.parametrize("how", ["cut short", "missing", "no manifest", "manifest cut short"])
def test_opening_a_torn_cache_says_so(tmp_path, tokenizer, how):
    folder = encode_split(split(), tokenizer, max_length=8, cache_dir=tmp_path)
    damage(folder, how)
    with pytest.raises(DataError, match=r"the token cache is torn: .* it is rebuilt"):
        open_tokens(folder)


def test_rebuilding_does_not_disturb_a_process_that_still_reads(tmp_path, tokenizer):
    folder = encode_split(split(), tokenizer, max_length=8, cache_dir=tmp_path)
    reading = open_tokens(folder)
    wanted = np.array(reading.tokens)
    damage(folder, "no manifest")
    encode_split(split(), tokenizer, max_length=8, cache_dir=tmp_path)
    assert np.array_equal(reading.tokens, wanted)


def test_a_failure_while_making_leaves_nothing(tmp_path):
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        cached_folder(tmp_path, "key", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["key.lock"]


def _ask(parent: str, start, made) -> None:
    def make(folder: Path) -> None:
        made.put(1)
        (folder / "value.json").write_text(json.dumps({"value": 7}))

    start.wait()
    folder = cached_folder(Path(parent), "key", make)
    assert json.loads((folder / "value.json").read_text()) == {"value": 7}


def test_processes_that_ask_at_once_make_the_folder_once(tmp_path):
    context = multiprocessing.get_context("fork")
    start, made = context.Event(), context.Queue()
    processes = [context.Process(target=_ask, args=(str(tmp_path), start, made)) for _ in range(4)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert made.get(timeout=1) == 1
    assert made.empty()
