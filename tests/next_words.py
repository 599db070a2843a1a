"""A problem with a thousand labels and more, of real texts: which word comes next."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gpt2cls.config import DataConfig
from gpt2cls.data.bpe import train_bpe
from gpt2cls.data.encode import encode_split
from gpt2cls.data.prepare import prepare
from gpt2cls.data.tasks import Split, Task

NUM_BEFORE = 4
"""Words that are read."""
MAX_LENGTH = 16


def windows(num_labels: int) -> list[tuple[str, str]]:
    """The words before each of the most frequent words of BBC news, and that word."""
    texts = prepare(DataConfig(train="bbc-news"), base_dir=Path(), seed=0).train.texts.to_pylist()
    words = [text.lower().split() for text in texts]
    counts = Counter(word for text in words for word in text)
    known = {word for word, _ in counts.most_common(num_labels)}
    return [
        (" ".join(text[i - NUM_BEFORE : i]), text[i])
        for text in words
        for i in range(NUM_BEFORE, len(text))
        if text[i] in known
    ]


def next_word_fields(folder: Path, num_labels: int, num_rows: int) -> tuple[dict[str, Any], Task]:
    """The part of a rank's payload that says where tokens and labels are, and the task."""
    rows = windows(num_labels)
    chosen = np.random.default_rng(0).permutation(len(rows))[: num_rows + num_rows // 5]
    task = Task("single_label", tuple(sorted({word for _, word in rows})), False)
    number = {word: i for i, word in enumerate(task.labels)}
    fields: dict[str, Any] = {"max_length": MAX_LENGTH}
    tokenizer = None
    for name, some in (("train", chosen[:num_rows]), ("validation", chosen[num_rows:])):
        texts = pa.chunked_array([pa.array([rows[i][0] for i in some], pa.large_string())])
        split = Split(texts, None, np.array([number[rows[i][1]] for i in some]))
        tokenizer = tokenizer or train_bpe([split.texts], 2000)
        fields[f"{name}_tokens"] = encode_split(
            split, tokenizer, max_length=MAX_LENGTH, cache_dir=folder
        )
        fields[f"{name}_labels"] = folder / f"{name}.npy"
        np.save(folder / f"{name}.npy", split.labels)
    assert tokenizer is not None
    return fields | {"vocab_size": tokenizer.vocab_size, "pad_id": tokenizer.pad_id}, task
