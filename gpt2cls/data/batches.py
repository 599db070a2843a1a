"""Which rows make up step N, and the tensors made of them.

Everything here is a function of the step, so a resumed run has nothing to fast-forward: it asks
for step N. Knows arrays of tokens and labels; knows no model and no loss.

Letters in tensor names: B rows, S sequences of a row, N sequences of all rows, T tokens,
D features of a token, F features of a text, C classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpt2cls.data.encode import TokenSet

Rows = NDArray[np.int64]

MEGA_CHUNK_BATCHES = 50
"""Rows are sorted by length within this many batches: enough to leave little padding, few
enough that the order stays close to a random one."""


@dataclass(frozen=True)
class Tokens:
    """The sequences of a split, most often one a row; `tokens` may be mapped from a file."""

    tokens: NDArray[Any]
    """Of sequence i: tokens[offsets[i] : offsets[i + 1]]."""
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int32]
    cut_share: NDArray[np.float32]
    """The share of each sequence that `max_length` cut off."""


@dataclass
class Batch:
    """Rows that go through the model together."""

    tokens_BT: Tensor
    """int64, padded on the right; [B, S, T] where a row is several sequences; [B, 0] when what was
    kept stands for the tokens."""
    lengths_B: Tensor
    """[B, S] where a row is several sequences."""
    cut_share_B: Tensor
    labels: Tensor
    """int64 [B]; float32 [B, C] when a row may have several labels, or [B] when it is a number."""
    features_BF: Tensor | None = None
    """Pooled vectors that were computed before, because nothing below them learns."""
    hidden_BTD: Tensor | None = None
    """Likewise hidden states: those that enter `block`, or (None) that leave the backbone; of rows
    of several sequences [N, T, D], one sequence after another."""
    block: int | None = None

    @property
    def num_rows(self) -> int:
        return len(self.lengths_B)

    @property
    def num_tokens(self) -> int:
        return int(self.lengths_B.sum())

    def to(self, device: torch.device) -> "Batch":
        if device.type == "cpu":
            return self
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)


@dataclass
class BatchPlan:
    """The rows of every step: each row exactly once per epoch, rows of like length together."""

    lengths: NDArray[Any]
    batch_size: int
    seed: int
    _epoch: int | None = None
    _order: Rows | None = None

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def rows_of_step(self, step: int) -> Rows:
        """Row numbers of the global batch, shortest first; the last one of an epoch is smaller."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._epoch != epoch or self._order is None:  # a cache: any epoch can be made anew
            self._epoch, self._order = epoch, self._order_of_epoch(epoch)
        return self._order[place * self.batch_size : (place + 1) * self.batch_size]

    def _order_of_epoch(self, epoch: int) -> Rows:
        """All rows; each `batch_size` of them in a row are a batch."""
        draw = np.random.default_rng([self.seed, epoch])
        rows = draw.permutation(len(self.lengths))
        num_full = len(rows) // self.batch_size
        # The short last batch is cut off before sorting: it would hold the longest rows.
        full, rest = np.split(rows, [num_full * self.batch_size])
        chunk = MEGA_CHUNK_BATCHES * self.batch_size
        for start in range(0, len(full), chunk):
            full[start : start + chunk] = self._by_length(full[start : start + chunk])
        batches = full.reshape(num_full, self.batch_size)[draw.permutation(num_full)]
        return np.concatenate([batches.reshape(-1), self._by_length(rest)])

    def _by_length(self, rows: Rows) -> Rows:
        return rows[np.argsort(self.lengths[rows], kind="stable")]


def shard(rows: Rows, rank: int, world: int) -> Rows:
    """The rows of one rank: dealt like cards, so that sorted rows give every rank equal work."""
    return rows[rank::world]


def padded_length(length: int, multiple: int, max_length: int | None = None) -> int:
    """`length` rounded up to a multiple, but never beyond the model's positions."""
    rounded = -(-length // multiple) * multiple
    return rounded if max_length is None else max(length, min(rounded, max_length))


def micro_batches(
    rows: Rows, lengths: NDArray[Any], token_budget: int, multiple: int = 1
) -> Iterator[Rows]:
    """Cut `rows` so that rows x padded length stays within the budget; at least one row each.

    Where lengths are rounded up, all parts but the last have a power of two of rows: few distinct
    shapes.
    """
    if multiple > 1:
        yield from _parts_of_like_shape(rows, lengths, token_budget, multiple)
        return
    start, longest = 0, 0
    for end, row in enumerate(rows):
        longest = max(longest, padded_length(int(lengths[row]), multiple))
        if end > start and (end + 1 - start) * longest > token_budget:
            yield rows[start:end]
            start, longest = end, padded_length(int(lengths[row]), multiple)
    if start < len(rows):
        yield rows[start:]


def _parts_of_like_shape(
    rows: Rows, lengths: NDArray[Any], token_budget: int, multiple: int
) -> Iterator[Rows]:
    padded = -(-lengths[rows].astype(np.int64) // multiple) * multiple
    start = 0
    while start < len(rows):
        area = np.maximum.accumulate(padded[start:]) * np.arange(1, len(rows) - start + 1)
        fit = max(int(np.searchsorted(area, token_budget, side="right")), 1)
        num_rows = fit if start + fit == len(rows) else 1 << (fit.bit_length() - 1)
        yield rows[start : start + num_rows]
        start += num_rows


@dataclass(frozen=True)
class TokenRows:
    """Texts as tokens, with their labels: makes batches of any rows asked for."""

    data: Tokens
    labels: NDArray[Any]
    """int64 [N], or bool [N, C]."""
    pad_id: int
    max_length: int
    pad_to: int = 1
    """Lengths of batches are multiples of it: `Compute.pad_to`."""

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each row: by them rows are sorted and cut into batches."""
        return self.data.lengths

    @property
    def num_tokens(self) -> NDArray[np.int32]:
        """Tokens of each row without padding."""
        return self.data.lengths

    @property
    def cut_share(self) -> NDArray[np.float32]:
        """The share of each row that was cut off."""
        return self.data.cut_share

    def batches(self, rows: Rows, token_budget: int) -> Iterator[Batch]:
        for some in self.cut(rows, token_budget):
            yield self.batch(some)

    def cut(self, rows: Rows, token_budget: int) -> Iterator[Rows]:
        """The rows of each batch."""
        return micro_batches(rows, self.data.lengths, token_budget, self.pad_to)

    def width(self, rows: Rows) -> int:
        """How many tokens the texts of a batch of these rows have, with padding."""
        longest = int(self.data.lengths[rows].max())
        return max(padded_length(longest, self.pad_to, self.max_length), 1)

    def texts(self, rows: Rows) -> Rows:
        """Which texts of `data` these rows are: the same."""
        return rows

    def lengths_read(self, rows: Rows) -> NDArray[np.int64]:
        """How many tokens a model reads of each row, [B]."""
        return read_lengths(self.data.lengths[rows])

    def batch(self, rows: Rows) -> Batch:
        starts, lengths = self.data.offsets[rows], self.data.lengths[rows].astype(np.int64)
        tokens_BT = np.full((len(rows), self.width(rows)), self.pad_id, np.int64)
        _fill(tokens_BT, self.data.tokens, starts, lengths)
        return Batch(
            torch.from_numpy(tokens_BT),
            torch.from_numpy(self.lengths_read(rows)),
            torch.from_numpy(self.data.cut_share[rows].astype(np.float32)),
            label_tensor(self.labels[rows]),
        )


@dataclass(frozen=True)
class SequenceRows:
    """Rows of several sequences each, with their labels: [B, S, T] in the place of [B, T]."""

    data: Tokens
    starts: Rows
    """Row i has the sequences starts[i] to starts[i + 1]."""
    labels: NDArray[Any]
    pad_id: int
    max_length: int
    pad_to: int
    num_sequences: int
    """S of every batch."""

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row with its padding, were it alone."""
        longest = np.maximum.reduceat(self.data.lengths, self.starts[:-1])
        return longest.astype(np.int64) * self.num_sequences

    @cached_property
    def num_tokens(self) -> NDArray[np.int64]:
        """Tokens of each row without padding."""
        return np.add.reduceat(self.data.lengths, self.starts[:-1], dtype=np.int64)

    @cached_property
    def cut_share(self) -> NDArray[np.float32]:
        """The share of each row that was cut off: the mean over its sequences."""
        sums = np.add.reduceat(self.data.cut_share, self.starts[:-1])
        return (sums / np.diff(self.starts)).astype(np.float32)

    def batches(self, rows: Rows, token_budget: int) -> Iterator[Batch]:
        for some in self.cut(rows, token_budget):
            yield self.batch(some)

    def cut(self, rows: Rows, token_budget: int) -> Iterator[Rows]:
        """The rows of each batch."""
        return micro_batches(rows, self.lengths, token_budget, self.pad_to)

    def width(self, rows: Rows) -> int:
        """How many tokens the sequences of a batch of these rows have, with padding."""
        longest = int(self.data.lengths[self.texts(rows)].max())
        return max(padded_length(longest, self.pad_to, self.max_length), 1)

    def texts(self, rows: Rows) -> Rows:
        """Which texts of `data` the sequences of these rows are, one row after another: [N]."""
        places_BS, is_there_BS = self._places(rows)
        return places_BS[is_there_BS]

    def lengths_read(self, rows: Rows) -> NDArray[np.int64]:
        """How many tokens a model reads of each sequence, [B, S]; 0 where a row has none."""
        places_BS, is_there_BS = self._places(rows)
        lengths_BS = np.zeros(places_BS.shape, np.int64)
        lengths_BS[is_there_BS] = read_lengths(self.data.lengths[places_BS[is_there_BS]])
        return lengths_BS

    def batch(self, rows: Rows) -> Batch:
        texts_N, lengths_BS, width = self.texts(rows), self.lengths_read(rows), self.width(rows)
        lengths_N = self.data.lengths[texts_N].astype(np.int64)
        tokens_BST = np.full((*lengths_BS.shape, width), self.pad_id, np.int64)
        tokens_NT = np.full((len(texts_N), width), self.pad_id, np.int64)
        _fill(tokens_NT, self.data.tokens, self.data.offsets[texts_N], lengths_N)
        tokens_BST[lengths_BS > 0] = tokens_NT
        return Batch(
            torch.from_numpy(tokens_BST),
            torch.from_numpy(lengths_BS),
            torch.from_numpy(self.cut_share[rows]),
            label_tensor(self.labels[rows]),
        )

    def _places(self, rows: Rows) -> tuple[Rows, NDArray[np.bool_]]:
        """Where in `data` each sequence of a batch would be, and whether it is: [B, S]."""
        places_BS = self.starts[rows][:, None] + np.arange(self.num_sequences)
        return places_BS, places_BS < self.starts[rows + 1][:, None]


def rows_of_tokens(
    split: TokenSet,
    labels: NDArray[Any],
    *,
    pad_id: int,
    max_length: int,
    pad_to: int,
    num_sequences: int = 1,
) -> "TokenRows | SequenceRows":
    """The rows of a split; `num_sequences` is the most that a row may have."""
    # Two of these are computed anew each time they are asked for.
    data = Tokens(split.tokens, split.offsets, split.lengths, split.cut_share)
    if split.starts is None:
        return TokenRows(data, labels, pad_id, max_length, pad_to)
    return SequenceRows(data, split.starts, labels, pad_id, max_length, pad_to, num_sequences)


@dataclass(frozen=True)
class FeatureRows:
    """The same rows as `source`, but with the pooled vectors in the place of the tokens."""

    source: TokenRows | SequenceRows
    features: NDArray[np.float32]

    def batches(self, rows: Rows, token_budget: int) -> Iterator[Batch]:
        del token_budget  # a linear layer's memory is no matter
        if len(rows):
            yield self.batch(rows)

    def batch(self, rows: Rows) -> Batch:
        batch = _without_tokens(self.source, rows)
        return replace(batch, features_BF=torch.from_numpy(self.features[rows]))


@dataclass(frozen=True)
class HiddenRows:
    """The same rows as `source`, but with hidden states in the place of the tokens."""

    source: TokenRows | SequenceRows
    hidden: NDArray[Any]
    """Of all tokens, [tokens, D]: fp32, or the bits of bf16 as int16 (numpy has no bf16)."""
    offsets: NDArray[np.int64]
    """Of text (or sequence) i of the source: hidden[offsets[i] : offsets[i + 1]]."""
    block: int | None
    """Which they enter; None: they leave the backbone."""

    def batches(self, rows: Rows, token_budget: int) -> Iterator[Batch]:
        for some in self.source.cut(rows, token_budget):
            yield self.batch(some)

    def batch(self, rows: Rows) -> Batch:
        lengths_BS, texts_N = self.source.lengths_read(rows), self.source.texts(rows)
        shape = (len(texts_N), self.source.width(rows), self.hidden.shape[1])
        hidden_NTD = np.zeros(shape, self.hidden.dtype)
        _fill(hidden_NTD, self.hidden, self.offsets[texts_N], lengths_BS[lengths_BS > 0])
        return replace(
            _without_tokens(self.source, rows),
            lengths_B=torch.from_numpy(lengths_BS),
            hidden_BTD=as_tensor(hidden_NTD),
            block=self.block,
        )


RowSource = TokenRows | SequenceRows | FeatureRows | HiddenRows


def read_lengths(lengths: NDArray[Any]) -> NDArray[np.int64]:
    """How many tokens a model reads: of a text without any, one of padding."""
    return np.maximum(lengths.astype(np.int64), 1)


def as_tensor(stored: NDArray[Any]) -> Tensor:
    """fp32 as it is; int16 are the bits of bf16."""
    tensor = torch.from_numpy(stored)
    return tensor.view(torch.bfloat16) if stored.dtype == np.int16 else tensor


def _without_tokens(source: TokenRows | SequenceRows, rows: Rows) -> Batch:
    return Batch(
        torch.empty(len(rows), 0, dtype=torch.int64),
        torch.from_numpy(read_lengths(source.num_tokens[rows])),
        torch.from_numpy(source.cut_share[rows].astype(np.float32)),
        label_tensor(source.labels[rows]),
    )


def _fill(out: NDArray[Any], flat: NDArray[Any], starts: Rows, lengths: Rows) -> None:
    """Copy row i's piece of `flat` to the left end of out[i]."""
    for i, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        out[i, :length] = flat[start : start + length]


def label_tensor(labels: NDArray[Any]) -> Tensor:
    """int64 [B] for one label a row; float32 [B, C] for several, or [B] for a number."""
    is_class = labels.ndim == 1 and labels.dtype.kind != "f"
    return torch.from_numpy(labels.astype(np.int64 if is_class else np.float32))
