"""From the texts of a row to the sequences of tokens that a model reads for it.

A text is one sequence, and so is a pair with an order. A pair without one is two sequences, one
in either order, whose pooled vectors the model adds up. A context with answers to choose from is
one sequence per answer, each of which gets a logit.

Source: Radford et al. 2018, section 3.3 (task-specific input transformations).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2cls.data.tasks import Task

BETWEEN = "\n"
"""Between a context and the question that follows it."""


@dataclass(frozen=True)
class Sequences:
    """What a tokenizer is to encode for some rows."""

    texts: Sequence[str]
    pairs: Sequence[str] | None
    starts: NDArray[np.int64] | None
    """Row i has the sequences starts[i] to starts[i + 1]; None: every row has one."""
    keeps_end: bool = False
    """Of a first text that is too long the beginning is cut off: a question stands at its end."""


def sequences(
    texts: Sequence[str], pairs: Sequence[Any] | None, task: Task | None = None
) -> Sequences:
    """The sequences of these rows, those of a row one after another.

    `pairs` are the second texts, or of multiple choice the answers of each row.
    """
    if task is None or task.num_sequences == 1:
        return Sequences(texts, pairs, None)
    assert pairs is not None, "only a pair is several sequences"
    if task.kind == "multiple_choice":
        contexts = [text for text, answers in zip(texts, pairs, strict=True) for _ in answers]
        counts = np.fromiter(map(len, pairs), np.int64, len(pairs))
        answers = [answer for answers in pairs for answer in answers]
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        return Sequences(contexts, answers, starts, keeps_end=True)
    firsts = [text for pair in zip(texts, pairs, strict=True) for text in pair]
    seconds = [text for pair in zip(pairs, texts, strict=True) for text in pair]
    return Sequences(firsts, seconds, np.arange(0, len(firsts) + 1, 2))


def rows_of(columns: Sequence[Sequence[Any]], task: Task) -> tuple[Sequence[str], Any]:
    """What `sequences` takes, from the columns that a model reads in their order."""
    if task.kind == "multiple_choice":
        *contexts, answers = columns
        return with_question(*contexts), answers
    texts, *pairs = columns
    return texts, pairs[0] if pairs else None


def with_question(contexts: Sequence[str], questions: Sequence[str] | None = None) -> Sequence[str]:
    """One text of a context and its question."""
    if questions is None:
        return contexts
    pairs = zip(contexts, questions, strict=True)
    return [f"{context}{BETWEEN}{question}" for context, question in pairs]


def columns_of_rows(texts: Sequence[str], pairs: Any, num_columns: int) -> list[Sequence[Any]]:
    """The reverse of `rows_of`: columns that give the same rows again."""
    if pairs is None:
        return [texts]
    if num_columns == 2:
        return [texts, pairs]
    parts = [text.rpartition(BETWEEN) for text in texts]
    return [[part[0] for part in parts], [part[2] for part in parts], pairs]


def as_answers(value: Any) -> Any:
    """A list in the place of an array or a tuple, which frames hold."""
    return list(value) if isinstance(value, tuple | np.ndarray) else value


def is_choice_of(value: Any, most: int) -> bool:
    """Whether a value is a list of two to `most` texts."""
    is_list = isinstance(value, list) and 2 <= len(value) <= most
    return is_list and all(isinstance(text, str) for text in value)
