"""The tokens of a split in a memory-mapped cache, made once per content, tokenizer and length."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpt2cls.data.cache import MANIFEST, cached_folder, hash_texts
from gpt2cls.data.tasks import Split
from gpt2cls.data.tokenizer import TextTokenizer
from gpt2cls.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_CHUNK_ROWS = 5_000
_TOKENS, _OFFSETS, _LENGTHS, _META = "tokens.bin", "offsets.npy", "full_lengths.npy", "meta.json"


@dataclass(frozen=True)
class TokenSet:
    """The tokens of all rows of a split, one after another."""

    tokens: NDArray[Any]
    """uint16 or int32, memory-mapped; row i is tokens[offsets[i] : offsets[i + 1]]."""
    offsets: NDArray[np.int64]
    full_lengths: NDArray[np.int32]
    """Tokens of a row before it was cut to the largest length."""

    def __len__(self) -> int:
        return len(self.full_lengths)

    @property
    def lengths(self) -> NDArray[np.int32]:
        return np.diff(self.offsets).astype(np.int32)

    @property
    def cut_share(self) -> NDArray[np.float32]:
        """The share of each row that was cut off; 0 where nothing was."""
        return (1.0 - self.lengths / np.maximum(self.full_lengths, 1)).astype(np.float32)


def encode_split(
    split: Split, tokenizer: TextTokenizer, *, max_length: int, cache_dir: Path
) -> Path:
    """The folder with the tokens of `split`, made in chunks unless a sound one exists.

    Jobs that ask for the same tokens at the same time share one folder.
    """
    columns = [hash_texts(split.texts), split.pairs is not None and hash_texts(split.pairs)]
    key = sha256(f"tokens 1 {columns} {tokenizer.digest} {max_length}".encode()).hexdigest()[:32]
    return cached_folder(
        cache_dir / "tokens", key, lambda folder: _write(split, tokenizer, max_length, folder)
    )


def open_tokens(folder: Path) -> TokenSet:
    """Map the tokens of a folder that `encode_split` gave; nothing is read yet.

    Raises:
        DataError: a file is missing or has the wrong size.
    """
    try:
        meta = json.loads((folder / _META).read_text(encoding="utf-8"))
        sizes = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, entry in sizes.items():
            if (folder / name).stat().st_size != entry["bytes"]:
                raise ValueError(f"{name} does not have {entry['bytes']} bytes")
        dtype = np.dtype(meta["dtype"])
        return TokenSet(
            tokens=np.memmap(folder / _TOKENS, dtype, mode="r")
            if meta["tokens"]
            else np.empty(0, dtype),
            offsets=np.load(folder / _OFFSETS),
            full_lengths=np.load(folder / _LENGTHS),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{folder}: the token cache is torn: {error}. Start the job again; it is rebuilt."
        ) from error


def _write(split: Split, tokenizer: TextTokenizer, max_length: int, folder: Path) -> None:
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32)
    lengths = np.zeros(len(split), dtype=np.int32)
    full_lengths = np.zeros(len(split), dtype=np.int32)
    with (folder / _TOKENS).open("wb") as file:
        for start, texts, pairs in _chunks(split):
            rows, full = tokenizer.encode(texts, pairs, max_length)
            here = slice(start, start + len(rows))
            lengths[here] = [len(row) for row in rows]
            full_lengths[here] = full
            np.concatenate(rows).astype(dtype).tofile(file)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    np.save(folder / _OFFSETS, offsets)
    np.save(folder / _LENGTHS, full_lengths)
    meta = {"dtype": dtype.name, "rows": len(split), "tokens": int(offsets[-1])}
    (folder / _META).write_text(json.dumps(meta) + "\n", encoding="utf-8")


def _chunks(split: Split) -> Iterator[tuple[int, list[str], list[str] | None]]:
    for start in range(0, len(split), _CHUNK_ROWS):
        texts = _strings(split.texts, start)
        yield start, texts, None if split.pairs is None else _strings(split.pairs, start)


def _strings(column: "pa.ChunkedArray", start: int) -> list[str]:
    return [text or "" for text in column.slice(start, _CHUNK_ROWS).to_pylist()]
