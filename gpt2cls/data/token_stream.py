"""Texts as one stream of tokens, in a memory-mapped cache: what a language model learns from.

The stream is END text END text END ... text END. The first END is only read; every token after
it is predicted exactly once, the END of each text among them. It is made once per texts,
tokenizer and direction; the length of a block is no part of it, because a block is a view.
Imports no torch: the process that makes a stream need not train.
"""

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpt2cls.data.cache import MANIFEST, cached_folder, hash_texts
from gpt2cls.data.corpus import num_text_bytes
from gpt2cls.data.tokenizer import TextTokenizer
from gpt2cls.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_CHUNK_ROWS = 5_000
_TOKENS, _META = "stream.bin", "meta.json"


@dataclass(frozen=True)
class Stream:
    """All texts of a split, one after another."""

    tokens: NDArray[Any]
    """uint16 or int32, memory-mapped."""
    num_texts: int
    num_bytes: int
    """Of the texts in UTF-8; an END has none."""

    @property
    def num_targets(self) -> int:
        return len(self.tokens) - 1


def encode_stream(
    texts: "pa.ChunkedArray", tokenizer: TextTokenizer, *, backward: bool, cache_dir: Path
) -> Path:
    """The folder with the stream of `texts`, made in chunks unless a sound one exists.

    END is the tokenizer's padding token, which for GPT-2 is its end of text. With `backward` the
    tokens of each text are reversed, so that the same network reads from right to left.
    """
    direction = "backward" if backward else "forward"
    asked = f"stream 1 {direction} {hash_texts(texts)} {tokenizer.digest}"
    return cached_folder(
        cache_dir / "tokens",
        sha256(asked.encode()).hexdigest()[:32],
        lambda folder: _write(texts, tokenizer, backward, folder),
    )


def open_stream(folder: Path) -> Stream:
    """Map the stream of a folder that `encode_stream` gave; nothing is read yet.

    Raises:
        DataError: a file is missing or has the wrong size.
    """
    try:
        meta = json.loads((folder / _META).read_text(encoding="utf-8"))
        size = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))[_TOKENS]["bytes"]
        if (folder / _TOKENS).stat().st_size != size:
            raise ValueError(f"{_TOKENS} does not have {size} bytes")
        tokens = np.memmap(folder / _TOKENS, np.dtype(meta["dtype"]), mode="r")
        return Stream(tokens, int(meta["texts"]), int(meta["text_bytes"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{folder}: the token cache is torn: {error}. Start the job again; it is rebuilt."
        ) from error


def _write(
    texts: "pa.ChunkedArray", tokenizer: TextTokenizer, backward: bool, folder: Path
) -> None:
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32)
    end = np.array([tokenizer.pad_id], dtype)
    with (folder / _TOKENS).open("wb") as file:
        end.tofile(file)
        for start in range(0, len(texts), _CHUNK_ROWS):
            for ids in tokenizer.encode_whole(texts.slice(start, _CHUNK_ROWS).to_pylist()):
                np.array(ids[::-1] if backward else ids, dtype).tofile(file)
                end.tofile(file)
    meta = {"dtype": dtype.name, "texts": len(texts), "text_bytes": num_text_bytes(texts)}
    (folder / _META).write_text(json.dumps(meta) + "\n", encoding="utf-8")
