"""From the texts of a row to the sequences of tokens that a model reads for it.

A text is one sequence, and so is a pair with an order. A pair without one is two sequences, one
in either order, whose pooled vectors the model adds up.

Source: Radford et al. 2018, section 3.3 (task-specific input transformations).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt2cls.data.tasks import Task


@dataclass(frozen=True)
class Sequences:
    """What a tokenizer is to encode for some rows."""

    texts: Sequence[str]
    pairs: Sequence[str] | None
    starts: NDArray[np.int64] | None
    """Row i has the sequences starts[i] to starts[i + 1]; None: every row has one."""


def sequences(
    texts: Sequence[str], pairs: Sequence[str] | None, task: Task | None = None
) -> Sequences:
    """The sequences of these rows, those of a row one after another."""
    if task is None or not task.both_orders:
        return Sequences(texts, pairs, None)
    assert pairs is not None, "only a pair has two orders"
    firsts = [text for pair in zip(texts, pairs, strict=True) for text in pair]
    seconds = [text for pair in zip(pairs, texts, strict=True) for text in pair]
    return Sequences(firsts, seconds, np.arange(0, len(firsts) + 1, 2))
