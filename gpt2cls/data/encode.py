"""The tokens of a split in a memory-mapped cache, made once per content, tokenizer and length."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpt2cls.data.cache import MANIFEST, cached_folder, hash_texts
from gpt2cls.data.forms import sequences
from gpt2cls.data.tasks import Split, Task
from gpt2cls.data.tokenizer import TextTokenizer
from gpt2cls.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_CHUNK_ROWS = 5_000
_TOKENS, _OFFSETS, _LENGTHS, _META = "tokens.bin", "offsets.npy", "full_lengths.npy", "meta.json"
_STARTS = "starts.npy"


@dataclass(frozen=True)
class TokenSet:
    """The tokens of all sequences of a split, one after another; most rows are one sequence."""

    tokens: NDArray[Any]
    """uint16 or int32, memory-mapped; sequence i is tokens[offsets[i] : offsets[i + 1]]."""
    offsets: NDArray[np.int64]
    full_lengths: NDArray[np.int32]
    """Tokens of a sequence before it was cut to the largest length."""
    starts: NDArray[np.int64] | None = None
    """Row i has the sequences starts[i] to starts[i + 1]; None: every row is one."""

    def __len__(self) -> int:
        return len(self.full_lengths) if self.starts is None else len(self.starts) - 1

    @property
    def lengths(self) -> NDArray[np.int32]:
        return np.diff(self.offsets).astype(np.int32)

    @property
    def cut_share(self) -> NDArray[np.float32]:
        """The share of each sequence that was cut off; 0 where nothing was."""
        return (1.0 - self.lengths / np.maximum(self.full_lengths, 1)).astype(np.float32)


def encode_split(
    split: Split,
    tokenizer: TextTokenizer,
    *,
    max_length: int,
    cache_dir: Path,
    task: Task | None = None,
) -> Path:
    """The folder with the tokens of `split`, made in chunks unless a sound one exists.

    `task` says which sequences stand for a row; None: each row is one.
    Jobs that ask for the same tokens at the same time share one folder.
    """
    columns = [hash_texts(split.texts), split.seconds is not None and hash_texts(split.seconds)]
    made_of = f"tokens 1 {columns} {tokenizer.digest} {max_length}"
    if task is not None and task.num_sequences > 1:
        made_of += f" {task.kind}" if task.kind == "multiple_choice" else " both orders"
    return cached_folder(
        cache_dir / "tokens",
        sha256(made_of.encode()).hexdigest()[:32],
        lambda folder: _write(split, tokenizer, max_length, task, folder),
    )


def encode_rows(
    texts: Sequence[str],
    pairs: Sequence[Any] | None,
    tokenizer: TextTokenizer,
    max_length: int,
    task: Task | None,
) -> TokenSet:
    """The tokens of a few rows, in memory."""
    read = sequences(texts, pairs, task)
    ids, full_lengths = tokenizer.encode(
        read.texts, read.pairs, max_length, keeps_end=read.keeps_end
    )
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.concatenate(ids) if ids else np.empty(0, np.int64)
    return TokenSet(tokens, offsets, full_lengths, read.starts)


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
            starts=np.load(folder / _STARTS) if _STARTS in sizes else None,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{folder}: the token cache is torn: {error}. Start the job again; it is rebuilt."
        ) from error


def _write(
    split: Split, tokenizer: TextTokenizer, max_length: int, task: Task | None, folder: Path
) -> None:
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32)
    chunks: list[TokenSet] = []
    with (folder / _TOKENS).open("wb") as file:
        for texts, pairs in _chunks(split):
            chunk = encode_rows(texts, pairs, tokenizer, max_length, task)
            chunk.tokens.astype(dtype).tofile(file)
            chunks.append(replace(chunk, tokens=chunk.tokens[:0]))  # they are on disk now
    offsets = _chained([chunk.offsets for chunk in chunks])
    np.save(folder / _OFFSETS, offsets)
    lengths = [chunk.full_lengths for chunk in chunks]
    np.save(folder / _LENGTHS, np.concatenate([np.zeros(0, np.int32), *lengths]))
    if task is not None and task.num_sequences > 1:
        starts = [chunk.starts for chunk in chunks if chunk.starts is not None]
        np.save(folder / _STARTS, _chained(starts))
    meta = {"dtype": dtype.name, "rows": len(split), "tokens": int(offsets[-1])}
    (folder / _META).write_text(json.dumps(meta) + "\n", encoding="utf-8")


def _chained(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """The running sums of all parts, each of which begins at 0, as if they were one."""
    ends = [0, *(int(part[-1]) for part in parts)]
    moved = [part[1:] + before for part, before in zip(parts, np.cumsum(ends), strict=False)]
    return np.concatenate([np.zeros(1, np.int64), *moved])


def _chunks(split: Split) -> Iterator[tuple[list[str], list[Any] | None]]:
    for start in range(0, len(split), _CHUNK_ROWS):
        texts = _strings(split.texts, start)
        yield texts, None if split.pairs is None else _strings(split.pairs, start)


def _strings(column: "pa.ChunkedArray", start: int) -> list[Any]:
    return [text or "" for text in column.slice(start, _CHUNK_ROWS).to_pylist()]
