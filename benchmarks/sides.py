"""The two sides of a comparison: our engine, and the Hugging Face Trainer.

Both train the same rows, shape, batch size, dropout, precision and optimizer settings. Two epochs
are made; the second one is timed, so that what is only done once does not count for either.
"""

import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corpora import END_OF_TEXT, Corpus, gpt2_tokenizer, open_corpus
from measuring import Outcome, peak_memory_mb

from gpt2cls.config import ModelConfig, TrainConfig
from gpt2cls.data.encode import open_tokens
from gpt2cls.training.payload import RankPayload
from gpt2cls.training.session import EVENTS_FILE, run_rank

SHAPES = {"S": (4, 256, 4), "M": (6, 384, 6), "small": (12, 768, 12)}
"""Layers, width, heads; vocabulary of 50,257."""


@dataclass(frozen=True)
class Spec:
    """One measurement."""

    side: str
    """ours, tutorial (the Trainer as its tutorial has it) or best (at its best)."""
    shape: str
    corpus: str
    rows: int
    max_length: int
    batch_size: int
    cache_dir: str
    precision: str = "fp32"
    dropout: float = 0.1
    lr: float = 3e-4
    seed: int = 0
    compiled: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(spec: Spec) -> Outcome:
    """Real tokens per second of the second epoch, and the peak memory of the process."""
    corpus = open_corpus(
        spec.corpus,
        rows=spec.rows,
        test_rows=spec.batch_size,
        max_length=spec.max_length,
        cache_dir=Path(spec.cache_dir),
    )
    assert corpus is not None
    num_tokens = int(open_tokens(corpus.train_tokens).lengths.sum())
    seconds = (_ours if spec.side == "ours" else _trainer)(spec, corpus)
    return {
        "tokens_per_s": round(num_tokens / seconds, 1),
        "epoch_s": round(seconds, 3),
        "tokens": num_tokens,
        "peak_mb": round(peak_memory_mb()),
        "precision": spec.precision,
    }


def shape_folder(shape: str, max_length: int, cache_dir: Path) -> Path:
    """A Hugging Face folder with random weights: both sides begin from the same ones."""
    folder = cache_dir / f"gpt2-{shape}-{max_length}"
    if not folder.exists():
        from transformers import GPT2Config, GPT2Model

        torch.manual_seed(0)
        aside = folder.with_suffix(".writing")
        GPT2Model(hf_config(GPT2Config, shape, max_length)).save_pretrained(aside)
        gpt2_tokenizer().tokenizer.save(str(aside / "tokenizer.json"))
        aside.rename(folder)
    return folder


def hf_config(kind: Any, shape: str, max_length: int, dropout: float = 0.1, **more: Any) -> Any:
    layers, width, heads = SHAPES[shape]
    return kind(
        n_layer=layers,
        n_embd=width,
        n_head=heads,
        n_positions=max_length,
        attn_pdrop=dropout,
        embd_pdrop=dropout,
        resid_pdrop=dropout,
        pad_token_id=END_OF_TEXT,
        **more,
    )


def payload_of(spec: Spec, corpus: Corpus, job_dir: Path, **train: Any) -> RankPayload:
    labels = {}
    for name, split in (("train", corpus.train), ("validation", corpus.test)):
        labels[name] = job_dir / f"{name}.npy"
        np.save(labels[name], split.labels)
    config = TrainConfig(
        epochs=2,
        batch_size=spec.batch_size,
        lr=spec.lr,
        seed=spec.seed,
        weight_decay=0.0,
        precision=spec.precision,
        eval_every="1000000 steps",
        checkpoint_every="1000000 steps",
    )
    return RankPayload(
        model=ModelConfig(
            backbone=str(shape_folder(spec.shape, spec.max_length, Path(spec.cache_dir))),
            dropout=spec.dropout,
            temperature=1.0,
        ),
        train=config.model_copy(update=train),
        task=corpus.task.to_json(),
        job_dir=job_dir,
        train_tokens=corpus.train_tokens,
        validation_tokens=corpus.test_tokens,
        train_labels=labels["train"],
        validation_labels=labels["validation"],
        vocab_size=gpt2_tokenizer().vocab_size,
        pad_id=END_OF_TEXT,
        max_length=spec.max_length,
        base_dir=job_dir,
        cache_dir=Path(spec.cache_dir),
        select_metric="accuracy",
    )


def _ours(spec: Spec, corpus: Corpus) -> float:
    with tempfile.TemporaryDirectory() as folder:
        run_rank(payload_of(spec, corpus, Path(folder)))
        times_ms = step_times_ms(Path(folder))
    return (times_ms[-1] - times_ms[len(times_ms) // 2 - 1]) / 1000


def step_times_ms(job_dir: Path) -> list[int]:
    """When each optimizer step of a job ended."""
    events = map(json.loads, (job_dir / EVENTS_FILE).read_text().splitlines())
    return [event["time_ms"] for event in events if event["kind"] == "step"]


def _trainer(spec: Spec, corpus: Corpus) -> float:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.epoch_ends: list[float] = []

        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            self.epoch_ends.append(time.perf_counter())

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer(spec, corpus, Path(folder), callbacks=[clock]).train()
    return clock.epoch_ends[1] - clock.epoch_ends[0]


def trainer(spec: Spec, corpus: Corpus, folder: Path, **more: Any) -> Any:
    """The Hugging Face Trainer; `best`: rows grouped by length, fused AdamW, bf16 where asked."""
    from transformers import (
        DataCollatorWithPadding,
        GPT2ForSequenceClassification,
        PreTrainedTokenizerFast,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    set_seed(spec.seed)
    # As a user loads it: the score layer is new, all else is from the folder.
    model = GPT2ForSequenceClassification.from_pretrained(
        shape_folder(spec.shape, spec.max_length, Path(spec.cache_dir)),
        num_labels=len(corpus.task.labels),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=gpt2_tokenizer().tokenizer, pad_token="<|endoftext|>"
    )
    is_best = spec.side == "best"
    best = {"train_sampling_strategy": "group_by_length", "optim": "adamw_torch_fused"}
    plain = {"optim": "adamw_torch"}
    settings: dict[str, Any] = {
        "num_train_epochs": 2,
        "learning_rate": spec.lr,
        "warmup_steps": 0.1,
        "per_device_train_batch_size": spec.batch_size,
        "seed": spec.seed,
        "bf16": spec.precision == "bf16",
        "fp16": spec.precision == "fp16",
        "torch_compile": spec.compiled,
        **(best if is_best else plain),
        **more.pop("settings", {}),
    }
    args = TrainingArguments(
        str(folder), use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, **settings
    )
    return Trainer(
        model=model,
        args=args,
        train_dataset=more.pop("rows", None) or hf_rows(corpus.train_tokens, corpus.train.labels),
        data_collator=DataCollatorWithPadding(tokenizer),
        **more,
    )


def hf_rows(tokens: Path, labels: Any) -> Any:
    from datasets import Dataset

    found = open_tokens(tokens)
    ids = [
        found.tokens[a:b].tolist() for a, b in zip(found.offsets, found.offsets[1:], strict=False)
    ]
    return Dataset.from_dict({"input_ids": ids, "labels": labels.tolist()})


def flops_per_token(shape: str, mean_length: float) -> float:
    """Multiplications and additions of a training step per token: 6 a weight, and attention.

    Source: Kaplan et al. 2020, section 2.1; embeddings are looked up and count nothing. The causal
    half of attention's scores counts: 6 * layers * width * (length / 2) * 2.
    """
    layers, width, _ = SHAPES[shape]
    return 6 * 12 * layers * width**2 + 6 * layers * width * mean_length
