"""Texts to token ids, with the backbone's own tokenizer or one trained on the training texts.

A row of ids is: prefix, text, suffix; or prefix, first, separator, second, suffix for a pair.
Prefix and suffix are what the tokenizer itself puts around a text; GPT-2 puts nothing.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from gpt2cls.config import BUILTIN_SHAPES, ModelConfig, TrainedTokenizer
from gpt2cls.data.cache import cached_folder
from gpt2cls.data.tasks import Split
from gpt2cls.errors import ModelError
from gpt2cls.pretrained import find_pretrained, read_json

if TYPE_CHECKING:
    import pyarrow as pa

FILE, META = "tokenizer.json", "tokenizer_meta.json"
PAD, SEPARATOR = "<|endoftext|>", "<|sep|>"
_BATCH_CHARS = 400_000
"""Characters tokenised at a time. An encoding takes about 100 bytes per token while it lives."""
_TRAIN_CHARS = 20_000_000
_TRAIN_CHARS_OF_A_TEXT = 10_000


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer and how a row is put together from its ids."""

    tokenizer: Tokenizer
    pad_id: int
    sep_id: int
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        # What a user's text says is text, also when it spells a special token.
        self.tokenizer.encode_special_tokens = True
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        words = self.tokenizer.encode("hello world", add_special_tokens=False).ids
        # A file with a wrong vocabulary is not refused by the library; it encodes to nothing.
        if not words or set(words) == {self.tokenizer.token_to_id("<unk>")}:
            raise ModelError(
                f"{self.source or 'tokenizer'}: 'hello world' encodes to nothing; "
                "the vocabulary is missing from it. Save the tokenizer again as tokenizer.json."
            )

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def digest(self) -> str:
        """Equal for tokenizers that give equal ids."""
        text = self.tokenizer.to_str() + json.dumps(self._meta())
        return sha256(text.encode()).hexdigest()

    def encode(
        self, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int
    ) -> tuple[list[NDArray[np.int64]], NDArray[np.int32]]:
        """The ids of every row, at least one and at most `max_length`, and the uncut lengths."""
        room = max_length - len(self.prefix) - len(self.suffix)
        if room < 1:
            raise ModelError(
                f"data.max_length = {max_length}: the tokenizer puts "
                f"{max_length - room} tokens around every text; allow more"
            )
        bodies = self._bodies(texts, pairs)
        rows = [self._row(first, second, room) for first, second in bodies]
        return [row for row, _ in rows], np.array([full for _, full in rows], dtype=np.int32)

    def encode_lengths(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None
    ) -> NDArray[np.int32]:
        """How many tokens every row has before anything is cut off."""
        around = len(self.prefix) + len(self.suffix)
        lengths = [
            len(first) + (0 if second is None else 1 + len(second)) + around
            for first, second in self._bodies(texts, pairs)
        ]
        return np.maximum(np.array(lengths, dtype=np.int32), 1)

    def _bodies(
        self, texts: Sequence[str], pairs: Sequence[str] | None
    ) -> Iterator[tuple[list[int], list[int] | None]]:
        for start, stop in _batches(texts, pairs):
            firsts = self._ids(texts[start:stop])
            if pairs is None:
                yield from ((first, None) for first in firsts)
            else:
                yield from zip(firsts, self._ids(pairs[start:stop]), strict=True)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _row(
        self, first: list[int], second: list[int] | None, room: int
    ) -> tuple[NDArray[np.int64], int]:
        if second is None:
            body, full = first[:room], len(first)
        else:
            full = len(first) + 1 + len(second)
            keep_first, keep_second = longest_first(len(first), len(second), max(room - 1, 0))
            body = [*first[:keep_first], self.sep_id, *second[:keep_second]]
        ids = [*self.prefix, *body, *self.suffix] or [self.pad_id]
        full += len(self.prefix) + len(self.suffix)
        return np.array(ids, dtype=np.int64), max(full, 1)

    def _meta(self) -> dict[str, Any]:
        return {
            "pad_id": self.pad_id,
            "sep_id": self.sep_id,
            "prefix": list(self.prefix),
            "suffix": list(self.suffix),
        }

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_text(self.tokenizer.to_str(), encoding="utf-8")
        (folder / META).write_text(json.dumps(self._meta()) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "TextTokenizer":
        """Read what `save` wrote."""
        meta = read_json(folder / META)
        try:
            return cls(
                tokenizer=read_tokenizer(folder / FILE),
                pad_id=int(meta["pad_id"]),
                sep_id=int(meta["sep_id"]),
                prefix=tuple(map(int, meta["prefix"])),
                suffix=tuple(map(int, meta["suffix"])),
                source=str(folder),
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"{folder / META}: not written by gpt2cls: {error!r}") from error


def longest_first(num_first: int, num_second: int, room: int) -> tuple[int, int]:
    """How much of each text of a pair stays: the longer one is cut until both fit."""
    excess = max(num_first + num_second - room, 0)
    larger, smaller = max(num_first, num_second), min(num_first, num_second)
    from_larger = min(excess, larger - smaller)
    rest = excess - from_larger  # what is left to cut is shared, the second text losing the odd one
    if num_first > num_second:
        num_first -= from_larger
    else:
        num_second -= from_larger
    return num_first - rest // 2, num_second - (rest + 1) // 2


def _batches(texts: Sequence[str], pairs: Sequence[str] | None) -> Iterator[tuple[int, int]]:
    start, num_chars = 0, 0
    for i, text in enumerate(texts):
        num_chars += len(text) + (0 if pairs is None else len(pairs[i]))
        if num_chars >= _BATCH_CHARS:
            yield start, i + 1
            start, num_chars = i + 1, 0
    if start < len(texts):
        yield start, len(texts)


def read_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"{path}: not a tokenizer that this version reads: {error}") from error


def get_tokenizer(
    model: ModelConfig, train: Split, *, cache_dir: Path, base_dir: Path
) -> TextTokenizer:
    """The tokenizer that `model` asks for; a trained one is made once per set of texts."""
    wanted = model.tokenizer
    is_builtin = model.backbone in BUILTIN_SHAPES
    if wanted is None and is_builtin:
        wanted = TrainedTokenizer()
    if isinstance(wanted, TrainedTokenizer):
        if not is_builtin:
            raise ModelError(
                f"model.tokenizer = {{train: {wanted.train}}}: the embeddings of model.backbone = "
                f"{model.backbone!r} belong to its own vocabulary; leave model.tokenizer out, or "
                f"choose one of {', '.join(BUILTIN_SHAPES)}"
            )
        return _trained(wanted.train, train, cache_dir)
    field_name = "model.backbone" if wanted is None else "model.tokenizer"
    folder = find_pretrained(wanted or model.backbone, base_dir=base_dir, field=field_name)
    return tokenizer_of_folder(folder)


def tokenizer_of_folder(folder: Path) -> TextTokenizer:
    """The tokenizer of a model folder of ours, or of a Hugging Face folder."""
    if (folder / META).is_file():
        return TextTokenizer.load(folder)
    if (folder / FILE).is_file():
        tokenizer = read_tokenizer(folder / FILE)
    else:
        tokenizer = _converted(folder)
    tokenizer.encode_special_tokens = False
    tokenizer.no_truncation()
    tokenizer.no_padding()
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    special = _special_ids(tokenizer, folder)
    eos = _first(special, ("eos_token", "sep_token", "pad_token", "bos_token"), default=0)
    return TextTokenizer(
        tokenizer,
        pad_id=_first(special, ("pad_token",), default=eos),
        sep_id=_first(special, ("sep_token",), default=eos),
        prefix=tuple(whole[:start]),
        suffix=tuple(whole[start + len(bare) :]),
        source=str(folder),
    )


def _converted(folder: Path) -> Tokenizer:
    """The tokenizer of a folder in one of the older layouts, by way of transformers."""
    import transformers

    try:
        loaded = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        return loaded.backend_tokenizer
    except Exception as error:  # dozens of tokenizer classes raise anything
        reason = str(error).strip().split("\n")[0]
        raise ModelError(
            f"{folder}: has no {FILE}, and transformers cannot make one: {reason}. "
            "Give a folder with tokenizer.json in model.tokenizer."
        ) from error


def _special_ids(tokenizer: Tokenizer, folder: Path) -> dict[str, int]:
    """The ids of the special tokens that the folder's settings name."""
    named: dict[str, Any] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / file).is_file():
            named |= read_json(folder / file)
    contents = {
        key: v["content"] if isinstance(v, dict) and "content" in v else v
        for key, v in named.items()
    }
    ids = {
        key: tokenizer.token_to_id(value)
        for key, value in contents.items()
        if key.endswith("_token") and isinstance(value, str)
    }
    ids.setdefault("eos_token", tokenizer.token_to_id(PAD))  # GPT-2's folders may name none
    return {key: value for key, value in ids.items() if value is not None}


def _first(ids: dict[str, int], keys: tuple[str, ...], *, default: int) -> int:
    return next((ids[key] for key in keys if key in ids), default)


def _trained(vocab_size: int, train: Split, cache_dir: Path) -> TextTokenizer:
    from gpt2cls.data.encode import hash_texts

    columns = [train.texts] if train.pairs is None else [train.texts, train.pairs]
    key = sha256(f"bpe 1 {vocab_size} {[hash_texts(c) for c in columns]}".encode()).hexdigest()[:32]
    folder = cached_folder(
        cache_dir / "tokenizers", key, lambda made: train_bpe(columns, vocab_size).save(made)
    )
    return TextTokenizer.load(folder)


def train_bpe(columns: "list[pa.ChunkedArray]", vocab_size: int) -> TextTokenizer:
    """Train a byte-level BPE, so that every text in every script can be encoded.

    Of a large corpus every k-th text is read, so that the work is bounded.
    """
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(columns), trainer)
    return TextTokenizer(tokenizer, pad_id=0, sep_id=1, source="the trained tokenizer")


def _sample(columns: "list[pa.ChunkedArray]") -> Iterator[list[str]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    num_chars = sum(pc.sum(pc.utf8_length(c)).as_py() or 0 for col in columns for c in col.chunks)
    stride = -(-num_chars // _TRAIN_CHARS) or 1
    for column in columns:
        for start in range(0, len(column), stride * 1000):
            rows = pa.array(np.arange(start, min(start + stride * 1000, len(column)), stride))
            texts = pc.utf8_slice_codeunits(column.take(rows), 0, _TRAIN_CHARS_OF_A_TEXT)
            yield [text or "" for text in texts.to_pylist()]
