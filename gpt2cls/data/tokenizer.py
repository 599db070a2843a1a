"""Texts to token ids.

A row of ids is: prefix, text, suffix; or prefix, first, separator, second, suffix for a pair.
Prefix and suffix are what the tokenizer itself puts around a text; GPT-2 puts nothing.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer

from gpt2cls.errors import ModelError
from gpt2cls.pretrained import objective_of, read_json

FILE, META = "tokenizer.json", "tokenizer_meta.json"
GPT1_TOKENS = ("<|start|>", "<|delimiter|>", "<|extract|>")
_BATCH_CHARS = 400_000
"""Characters tokenised at a time. An encoding takes about 100 bytes per token while it lives."""


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer and how a row is put together from its ids."""

    tokenizer: Tokenizer
    pad_id: int
    sep_id: int
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    source: str = field(default="", compare=False)
    is_backward: bool = False
    """The ids between prefix and suffix stand in reverse, for a model that reads from right to
    left; what is cut off is the same as of one that reads from left to right."""

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

    @property
    def num_new(self) -> int:
        """How many ids at the end of the vocabulary a backbone may lack: they are new to it."""
        return len(GPT1_TOKENS) if self.tokenizer.token_to_id(GPT1_TOKENS[0]) is not None else 0

    @cached_property
    def digest(self) -> str:
        """Equal for tokenizers that give equal ids."""
        text = self.tokenizer.to_str() + json.dumps(self._meta())
        return sha256(text.encode()).hexdigest()

    def encode(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None,
        max_length: int,
        *,
        keeps_end: bool = False,
    ) -> tuple[list[NDArray[np.int64]], NDArray[np.int32]]:
        """The ids of every row, at least one and at most `max_length`, and the uncut lengths.

        `keeps_end`: of the first text of a pair that is too long the beginning is cut off.
        """
        room = max_length - len(self.prefix) - len(self.suffix)
        if room < 1:
            raise ModelError(
                f"data.max_length = {max_length}: the tokenizer puts "
                f"{max_length - room} tokens around every text; allow more"
            )
        bodies = self._bodies(texts, pairs)
        rows = [self._row(first, second, room, keeps_end) for first, second in bodies]
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

    def encode_whole(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """The ids of each text alone, however long: nothing cut off, nothing put around it."""
        for start, stop in _batches(texts, None):
            yield from self._ids(texts[start:stop])

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
        self, first: list[int], second: list[int] | None, room: int, keeps_end: bool
    ) -> tuple[NDArray[np.int64], int]:
        if second is None:
            body, full = first[:room], len(first)
        else:
            full = len(first) + 1 + len(second)
            keep_first, keep_second = longest_first(len(first), len(second), max(room - 1, 0))
            begin = len(first) - keep_first if keeps_end else 0
            body = [*first[begin : begin + keep_first], self.sep_id, *second[:keep_second]]
        if self.is_backward:
            body.reverse()
        ids = [*self.prefix, *body, *self.suffix] or [self.pad_id]
        full += len(self.prefix) + len(self.suffix)
        return np.array(ids, dtype=np.int64), max(full, 1)

    def _meta(self) -> dict[str, Any]:
        return {
            "pad_id": self.pad_id,
            "sep_id": self.sep_id,
            "prefix": list(self.prefix),
            "suffix": list(self.suffix),
            **({"is_backward": True} if self.is_backward else {}),
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
                is_backward=meta.get("is_backward") is True,
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"{folder / META}: not written by gpt2cls: {error!r}") from error


def with_gpt1_tokens(tokenizer: TextTokenizer) -> TextTokenizer:
    """The tokenizer with a start, a delimiter and an extract token, new unless it has them.

    Source: Radford et al. 2018, section 3.3.
    """
    own = Tokenizer.from_str(tokenizer.tokenizer.to_str())
    own.add_special_tokens([AddedToken(name, special=True) for name in GPT1_TOKENS])
    ids = own.get_vocab(with_added_tokens=True)
    start, delimiter, extract = (ids[name] for name in GPT1_TOKENS)
    return replace(tokenizer, tokenizer=own, prefix=(start,), sep_id=delimiter, suffix=(extract,))


def reads_backward(folder: Path) -> bool:
    """Whether the model of a folder, a language model or a classifier, reads from right to left."""
    objective = objective_of(folder)
    if objective is None and (folder / META).is_file():
        return read_json(folder / META).get("is_backward") is True
    return objective == "backward"


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
