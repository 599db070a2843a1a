"""The stream of tokens and its blocks: nothing is lost, nothing is predicted twice."""

import numpy as np
import pyarrow as pa
import pytest

from gpt2cls.data import token_stream
from gpt2cls.data.blocks import NO_TARGET, BlockRows
from gpt2cls.data.bpe import train_bpe
from gpt2cls.data.token_stream import Stream, encode_stream, open_stream
from gpt2cls.errors import DataError

TEXTS = ["the cat sat", "the dog ate the cat " * 5, "好天气"]


def column(texts=TEXTS):
    return pa.chunked_array([pa.array(texts, pa.large_string())])


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe([column()], 300)


def stream_of(tokenizer, folder, *, backward=False):
    return open_stream(encode_stream(column(), tokenizer, backward=backward, cache_dir=folder))


def test_texts_stand_one_after_another_between_ends(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(token_stream, "_CHUNK_ROWS", 2)
    stream = stream_of(tokenizer, tmp_path)
    wanted = [0]
    for text in TEXTS:
        wanted += [*tokenizer.tokenizer.encode(text).ids, 0]
    assert stream.tokens.tolist() == wanted
    assert isinstance(stream.tokens, np.memmap)
    assert stream.num_bytes == sum(len(text.encode()) for text in TEXTS)


def test_backward_each_text_is_reversed_and_their_order_stays(tmp_path, tokenizer):
    stream = stream_of(tokenizer, tmp_path, backward=True)
    wanted = [0]
    for text in TEXTS:
        wanted += [*tokenizer.tokenizer.encode(text).ids[::-1], 0]
    assert stream.tokens.tolist() == wanted
    assert stream_of(tokenizer, tmp_path).tokens.tolist() != wanted


@pytest.mark.parametrize("length", [2, 7, 16, 1000])
def test_every_token_but_the_first_is_a_target_once(tmp_path, tokenizer, length):
    stream = stream_of(tokenizer, tmp_path)
    rows = BlockRows(stream, length, pad_id=5)
    read, predicted = [], []
    for batch in rows.batches(np.arange(len(rows.lengths)), token_budget=3 * length):
        for tokens, targets, n in zip(batch.tokens_BT, batch.labels, batch.lengths_B, strict=True):
            read += tokens[:n].tolist()
            predicted += targets[:n].tolist()
            assert (targets[n:] == NO_TARGET).all()
            assert (tokens[n:] == 5).all()
    assert predicted == stream.tokens[1:].tolist()
    assert read == stream.tokens[:-1].tolist()
    assert rows.lengths.sum() == stream.num_targets
    assert (rows.lengths[:-1] == length).all()  # packed: nothing but the end is short


def test_a_stream_that_divides_evenly_has_no_empty_block():
    rows = BlockRows(Stream(np.arange(9, dtype=np.uint16), 1, 8), 4, 0)
    assert rows.lengths.tolist() == [4, 4]


def test_a_torn_stream_is_told(tmp_path, tokenizer):
    folder = encode_stream(column(), tokenizer, backward=False, cache_dir=tmp_path)
    (folder / "stream.bin").write_bytes(b"12")
    with pytest.raises(DataError, match="torn"):
        open_stream(folder)
