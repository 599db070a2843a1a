"""The blocks of equal length that a stream of tokens is read in.

Letters in tensor names: B blocks, T tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from gpt2cls.data.batches import Batch, Rows, micro_batches
from gpt2cls.data.token_stream import Stream

NO_TARGET = -100
"""In the targets, where a short block is padded."""


@dataclass(frozen=True)
class BlockRows:
    """The blocks of a stream: makes batches of any of them asked for.

    Block i reads tokens [i * length, (i + 1) * length) and predicts the token after each. So the
    last target of a block is the first token of the next one. Only the last block is shorter.
    """

    stream: Stream
    length: int
    pad_id: int

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """Targets of each block."""
        full, rest = divmod(self.stream.num_targets, self.length)
        return np.array([self.length] * full + [rest] * (rest > 0), np.int32)

    def batches(self, rows: Rows, token_budget: int) -> Iterator[Batch]:
        for some in micro_batches(rows, self.lengths, token_budget):
            yield self.batch(some)

    def batch(self, rows: Rows) -> Batch:
        """Tokens [B, T] and, as its labels, targets [B, T]."""
        lengths = self.lengths[rows].astype(np.int64)
        shape = (len(rows), int(lengths.max()))
        tokens_BT, targets_BT = np.full(shape, self.pad_id), np.full(shape, NO_TARGET)
        for i, (row, length) in enumerate(zip(rows.tolist(), lengths.tolist(), strict=True)):
            start = row * self.length
            tokens_BT[i, :length] = self.stream.tokens[start : start + length]
            targets_BT[i, :length] = self.stream.tokens[start + 1 : start + length + 1]
        return Batch(
            tokens_BT=torch.from_numpy(tokens_BT),
            lengths_B=torch.from_numpy(lengths),
            cut_share_B=torch.zeros(len(rows)),
            labels=torch.from_numpy(targets_BT),
        )
