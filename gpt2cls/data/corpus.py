"""Texts to learn a language from: read without their labels, and some of them held out."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gpt2cls.config import CorpusConfig, Sources
from gpt2cls.data.keys import fingerprint
from gpt2cls.data.locate import text_files
from gpt2cls.data.prepare import choose, kept, with_keys
from gpt2cls.data.rows import Columns, Rows, join_rows
from gpt2cls.data.sources import read_source
from gpt2cls.data.splitting import hold_out
from gpt2cls.data.tasks import Split
from gpt2cls.data.text_files import read_corpus_files
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


def read_corpus(config: CorpusConfig, *, base_dir: Path, seed: int) -> Corpus:
    """Read the texts and hold some out; the same call gives the same splits.

    Empty texts are left out; equal texts stay on one side.

    Raises:
        DataError: unreadable, or no texts to learn from or to measure on.
    """
    notes: list[str] = []
    train = _read(config.train, "train", config.text, base_dir, notes)
    if not isinstance(config.validation, float):
        validation = _read(config.validation, "validation", config.text, base_dir, notes)
        _note_shared(train, validation, notes)
    else:
        validation, train = _hold_out(train, config.validation, seed)
    keys = [split.keys for split in (train, validation) if split.keys is not None]
    return Corpus(train, validation, fingerprint([FINGERPRINT_FORMAT, *keys]), tuple(notes))


def _read(given: Sources, name: str, column: str, base_dir: Path, notes: list[str]) -> Split:
    sources = (given,) if isinstance(given, str) else given
    parts = [_rows_of(source, name, column, base_dir) for source in sources]
    split = _split(join_rows(parts))
    is_empty = pc.equal(pc.utf8_length(split.texts), 0).to_numpy()
    if is_empty.all():
        shown = ", ".join(sources)
        raise DataError(f"data.{name} = {shown}: holds no text ({len(split):,} rows, all empty)")
    if is_empty.any():
        notes.append(f"{name}: {int(is_empty.sum()):,} of {len(split):,} texts are empty; left out")
        split = kept(split, ~is_empty)
    return split


def _rows_of(source: str, name: str, column: str, base_dir: Path) -> Rows:
    if files := text_files(source, base_dir):
        return read_corpus_files(files)
    return choose(read_source(source, Columns(column, None), base_dir=base_dir), name, source)


def _split(rows: Rows) -> Split:
    unlabelled: NDArray[np.int64] = np.zeros(len(rows), np.int64)
    return with_keys(Split(rows.texts, None, unlabelled, None, rows.origin))


def _hold_out(split: Split, share: float, seed: int) -> tuple[Split, Split]:
    assert split.keys is not None
    is_held = hold_out(split.keys, split.labels, share, seed=(seed, 0))
    if not is_held.any():
        raise DataError(
            f"data.validation = {share:g}: no text can be held out of {len(split):,}, because a "
            "text stays whole and equal texts stay together. Give more texts, or a source for "
            "data.validation"
        )
    return kept(split, is_held), kept(split, ~is_held)


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
