"""Texts to learn a language from: read without their labels, and some of them held out.

They are read a part at a time and kept on disk, so that all of them together may be larger than
memory; of tables each file must fit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gpt2cls.config import CorpusConfig, Sources
from gpt2cls.data.keys import fingerprint
from gpt2cls.data.locate import text_files
from gpt2cls.data.on_disk import mapped
from gpt2cls.data.prepare import choose, with_keys
from gpt2cls.data.rows import Columns
from gpt2cls.data.sources import source_parts
from gpt2cls.data.splitting import hold_out
from gpt2cls.data.tasks import Split
from gpt2cls.data.text_files import corpus_parts
from gpt2cls.errors import DataError

FINGERPRINT_FORMAT = b"gpt2cls corpus 1"


@dataclass(frozen=True)
class Corpus:
    """The texts of a job; the labels of its splits mean nothing."""

    train: Split
    validation: Split
    fingerprint: str
    """Of the texts of both splits and their order."""
    notes: tuple[str, ...] = ()
    """Sentences on what was decided on the way."""


def read_corpus(config: CorpusConfig, *, base_dir: Path, seed: int, cache_dir: Path) -> Corpus:
    """Read the texts and hold some out; the same call gives the same splits.

    Empty texts are left out; equal texts stay on one side.

    Args:
        config: where the texts come from.
        base_dir: what relative paths are taken from.
        seed: decides what is held out where `config.validation` is a share.
        cache_dir: on a disk with room for the texts; what lies there is gone with the corpus.

    Raises:
        DataError: unreadable, or no texts to learn from or to measure on.
    """
    notes: list[str] = []
    reader = _Reader(config.text, base_dir, cache_dir / "corpora", notes)
    train = reader.read(config.train, "train")
    if not isinstance(config.validation, float):
        validation = reader.read(config.validation, "validation")
        _note_shared(train, validation, notes)
    else:
        validation, train = reader.hold_out(train, config.validation, seed)
    keys = [split.keys for split in (train, validation) if split.keys is not None]
    return Corpus(train, validation, fingerprint([FINGERPRINT_FORMAT, *keys]), tuple(notes))


@dataclass(frozen=True)
class _Reader:
    column: str
    base_dir: Path
    folder: Path
    """Where texts lie while they are used."""
    notes: list[str]

    def read(self, given: Sources, name: str) -> Split:
        sources = (given,) if isinstance(given, str) else given
        num_rows = num_empty = 0

        def texts() -> Iterator[pa.Array]:
            nonlocal num_rows, num_empty
            for chunk in (chunk for source in sources for chunk in self._chunks(source, name)):
                is_empty = pc.equal(pc.binary_length(chunk), 0)
                empty_here = pc.sum(is_empty).as_py() or 0
                num_rows, num_empty = num_rows + len(chunk), num_empty + empty_here
                yield chunk.filter(pc.invert(is_empty)) if empty_here else chunk

        split = self._split(texts())
        if not len(split):
            shown = ", ".join(sources)
            raise DataError(f"data.{name} = {shown}: holds no text ({num_rows:,} rows, all empty)")
        if num_empty:
            self.notes.append(f"{name}: {num_empty:,} of {num_rows:,} texts are empty; left out")
        return split

    def hold_out(self, split: Split, share: float, seed: int) -> tuple[Split, Split]:
        assert split.keys is not None
        is_held = hold_out(split.keys, split.labels, share, seed=(seed, 0))
        if not is_held.any():
            raise DataError(
                f"data.validation = {share:g}: no text can be held out of {len(split):,}, because "
                "a text stays whole and equal texts stay together. Give more texts, or a source "
                "for data.validation"
            )
        held, left = (self._split(_filtered(split.texts, mask)) for mask in (is_held, ~is_held))
        return held, left

    def _chunks(self, source: str, name: str) -> Iterator[pa.Array]:
        if files := text_files(source, self.base_dir):
            yield from corpus_parts(files)
            return
        columns = Columns(self.column, None)
        for found in source_parts(source, columns, base_dir=self.base_dir):
            yield from choose(found, name, source).texts.chunks

    def _split(self, chunks: Iterator[pa.Array]) -> Split:
        try:
            texts = mapped(chunks, self.folder)
        except OSError as error:
            raise DataError(
                f"{self.folder}: {error.strerror or error}; the texts of a job are kept there "
                "while it reads them. Make room, or set GPT2CLS_HOME"
            ) from error
        unlabelled: NDArray[np.int64] = np.zeros(len(texts), np.int64)
        return with_keys(Split(texts, None, unlabelled, None, None))


def _filtered(texts: pa.ChunkedArray, mask: NDArray[np.bool_]) -> Iterator[pa.Array]:
    start = 0
    for chunk in texts.chunks:
        yield chunk.filter(pa.array(mask[start : start + len(chunk)]))
        start += len(chunk)


def _note_shared(train: Split, validation: Split, notes: list[str]) -> None:
    assert train.keys is not None and validation.keys is not None
    if num_shared := int(np.isin(validation.keys, train.keys).sum()):
        notes.append(
            f"validation: {num_shared:,} of {len(validation):,} texts are also in train, so what "
            "is measured on them flatters the model"
        )


def num_text_bytes(texts: pa.ChunkedArray) -> int:
    """The UTF-8 bytes of all texts."""
    return int(pc.sum(pc.binary_length(texts)).as_py() or 0)
