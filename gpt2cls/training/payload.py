"""What a rank is told: plain JSON, so that it can be read, compared, and checked on arrival."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gpt2cls.config import ModelConfig, TrainConfig

EVENTS_FILE = "events.jsonl"
STOP_FILE = "stop"
"""In the job's folder."""


_ADDED = (
    ("train", "lm_lr", None),
    ("train", "lm_weight", 0.0),
    ("train", "betas", [0.9, 0.999]),
    ("train", "embedding_lr", None),
    ("model", "hidden", 0),
    ("model", "embedding_init", "random"),
)
"""Fields that older jobs did not have, and the values that leave all as it was for them."""


def as_before(block: str, values: dict[str, Any]) -> dict[str, Any]:
    """The values of a block as jobs had them before fields were added that it does not use."""
    unused = {name for of, name, unset in _ADDED if of == block and values.get(name) == unset}
    return {name: value for name, value in values.items() if name not in unused}


class RankPayload(BaseModel):
    """All that a rank needs, as plain JSON; the same for every rank."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: ModelConfig
    train: TrainConfig
    objective: Literal["labels", "causal", "backward"] = "labels"
    """What is learned: to classify, the next token, or the next one from right to left."""
    task: dict[str, Any] = {}
    """`Task.to_json()`; empty where there are no labels."""
    job_dir: Path
    train_tokens: Path
    """Folder of the token cache: of rows, or (without labels) a stream; likewise
    `validation_tokens`."""
    validation_tokens: Path
    unlabelled_tokens: Path | None = None
    """Token cache of training rows whose labels are not used, where the model reads their texts."""
    train_labels: Path | None = None
    """.npy: int64 [N], or bool [N, C]; likewise `validation_labels`."""
    validation_labels: Path | None = None
    vocab_size: int
    num_new: int = 0
    """Ids at the end of the vocabulary that are new to the backbone."""
    pad_id: int
    max_length: int
    base_dir: Path
    tokenizer: Path | None = None
    select_metric: str = "macro_f1"
    """Which evaluation is the best one; `train.early_stopping.metric` goes before it."""
    cache_dir: Path | None = None
    """Shared by jobs, for features of frozen backbones; None: within the job's folder."""
    threads: int | None = None
    """Of this rank; None: torch decides."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    tokens_per_micro_batch: int | None = Field(None, ge=16)
    """Rows x padded length at once; None: by device, halved when the memory is exhausted."""
    initial_loss_scale: float = Field(2.0**16, gt=0)
    """fp16 only."""

    @property
    def fingerprint(self) -> str:
        """Of what decides the result: not where files lie, how many ranks, or how fast."""
        deciding = self.model_dump(
            mode="json",
            include={
                *("model", "train", "task", "vocab_size", "pad_id", "max_length"),
                *("select_metric", "initial_loss_scale"),
            },
        )
        for block in ("model", "train"):
            deciding[block] = as_before(block, deciding[block])
        if self.objective != "labels":  # which older checkpoints do not know
            deciding["objective"] = self.objective
        deciding["tokens"] = [self.train_tokens.name, self.validation_tokens.name]
        if self.unlabelled_tokens is not None:
            deciding["tokens"].append(self.unlabelled_tokens.name)
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]
