"""A byte-level BPE trained on the training texts: what a backbone without a tokenizer gets."""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from gpt2cls.data.cache import cached_folder, hash_texts
from gpt2cls.data.tasks import Split
from gpt2cls.data.tokenizer import TextTokenizer

END, SEPARATOR = "<|endoftext|>", "<|sep|>"
_TRAIN_CHARS = 20_000_000
_TRAIN_CHARS_OF_A_TEXT = 10_000
_TRAIN_CHARS_OF_FEW_TEXTS = 2_000_000
"""Of all of them together at least, where there are so many: a corpus may be one long text."""


def trained_tokenizer(vocab_size: int, train: Split, cache_dir: Path) -> TextTokenizer:
    """The tokenizer of these texts; trained once per set of texts and vocabulary size."""
    columns = [train.texts] if train.seconds is None else [train.texts, train.seconds]
    key = sha256(f"bpe 2 {vocab_size} {[hash_texts(c) for c in columns]}".encode()).hexdigest()[:32]
    folder = cached_folder(
        cache_dir / "tokenizers", key, lambda made: train_bpe(columns, vocab_size).save(made)
    )
    return TextTokenizer.load(folder)


def train_bpe(columns: list[pa.ChunkedArray], vocab_size: int) -> TextTokenizer:
    """Train a byte-level BPE, so that every text in every script can be encoded.

    Of a large corpus every k-th text is read, so that the work is bounded.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(columns), trainer)
    return TextTokenizer(tokenizer, pad_id=0, sep_id=1, source="the trained tokenizer")


def _sample(columns: list[pa.ChunkedArray]) -> Iterator[list[str]]:
    num_chars = sum(pc.sum(pc.utf8_length(c)).as_py() or 0 for col in columns for c in col.chunks)
    stride = -(-num_chars // _TRAIN_CHARS) or 1
    num_texts = sum(len(column) for column in columns)
    most = max(_TRAIN_CHARS_OF_A_TEXT, stride * _TRAIN_CHARS_OF_FEW_TEXTS // max(num_texts, 1))
    for column in columns:
        for start in range(0, len(column), stride * 1000):
            rows = pa.array(np.arange(start, min(start + stride * 1000, len(column)), stride))
            texts = pc.utf8_slice_codeunits(column.take(rows), 0, most)
            yield [text or "" for text in texts.to_pylist()]
