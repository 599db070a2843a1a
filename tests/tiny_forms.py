"""Small real files in each form of input, and the payload of a job that trains on one."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from gpt2cls.config import DataConfig, ModelConfig, TrainConfig
from gpt2cls.data.encode import encode_split
from gpt2cls.data.prepare import Prepared, prepare
from gpt2cls.data.tokenizer import TextTokenizer
from gpt2cls.data.tokenizer_source import get_tokenizer
from gpt2cls.training.payload import RankPayload

TOPICS = ("ice snow frost winter sleigh", "sun summer heat beach palm", "rain sea lake river boat")
PAIR = {"text": ["first", "second"]}
FORMS: dict[str, dict[str, Any]] = {
    "both orders": PAIR | {"pair": "both_orders"},
    "special tokens": PAIR | {"special_tokens": "gpt1"},
    "answers": PAIR | {"choices": "answers"},
    "values": PAIR | {"pair": "both_orders", "task": "regression"},
}
LENGTH = 16


def rows_of(form: str, num_rows: int, seed: int) -> list[dict[str, Any]]:
    """Rows in which the label can be learned: do both texts speak of one topic?"""
    draw = np.random.default_rng(seed)

    def text(topic: int) -> str:
        return " ".join(draw.choice(TOPICS[topic].split(), draw.integers(1, 6)))

    rows = []
    for _ in range(num_rows):
        one, is_alike = int(draw.integers(3)), bool(draw.integers(2))
        other = one if is_alike else (one + 1) % 3
        if form == "answers":
            answers = [text((one + 1 + i % 2) % 3) for i in range(int(draw.integers(2, 5)))]
            right = int(draw.integers(len(answers)))
            answers[right] = text(one)
            row = {"first": text(one), "second": text(one), "answers": answers}
            rows.append(row | {"label": str(right)})
            continue
        label: Any = "alike" if is_alike else "unlike"
        if form == "values":
            label = 100.0 + 20 * is_alike + float(draw.normal())
        rows.append({"first": text(one), "second": text(other), "label": label})
    return rows


def write_rows(folder: Path, form: str) -> dict[str, str]:
    """The files of a data block: train, validation and test."""
    files = {}
    for seed, (name, num_rows) in enumerate({"train": 60, "validation": 24, "test": 24}.items()):
        lines = [json.dumps(row) for row in rows_of(form, num_rows, seed)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        files[name] = f"{name}.jsonl"
    return files


def config_of(folder: Path, form: str) -> DataConfig:
    block = write_rows(folder, form) | FORMS[form] | {"max_length": LENGTH}
    return DataConfig.model_validate(block)


def tiny_job(
    folder: Path, form: str, job: str = "job", **train: Any
) -> tuple[Prepared, TextTokenizer, RankPayload]:
    """The data, the tokenizer and the payload of a job, all made as a job makes them."""
    config, model = config_of(folder, form), ModelConfig(backbone="gpt2-tiny", dropout=0.1)
    prepared = prepare(config, base_dir=folder, seed=0)
    tokenizer = get_tokenizer(
        model,
        prepared.train,
        cache_dir=folder,
        base_dir=folder,
        special_tokens=config.special_tokens,
    )
    fields: dict[str, Any] = {}
    for name in ("train", "validation"):
        fields[f"{name}_tokens"] = encode_split(
            prepared.splits[name],
            tokenizer,
            max_length=LENGTH,
            cache_dir=folder,
            task=prepared.task,
        )
        fields[f"{name}_labels"] = folder / f"{name}.npy"
        np.save(folder / f"{name}.npy", prepared.splits[name].labels)
    settings = {"epochs": 2, "batch_size": 8, "lr": 3e-3, "precision": "fp32", **train}
    payload = RankPayload(
        model=model,
        train=TrainConfig.model_validate(settings),
        task=prepared.task.to_json(),
        job_dir=folder / job,
        vocab_size=tokenizer.vocab_size,
        num_new=tokenizer.num_new,
        pad_id=tokenizer.pad_id,
        max_length=LENGTH,
        base_dir=folder,
        cache_dir=folder / "cache",
        select_metric="pearson" if prepared.task.kind == "regression" else "accuracy",
        threads=1,
        device="cpu",
        **fields,
    )
    return prepared, tokenizer, payload
