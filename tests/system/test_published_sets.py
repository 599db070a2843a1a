"""Ten training steps on every published set at hand; skipped where the sets are not there."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from gpt2cls.config import DataConfig, ModelConfig, TrainConfig
from gpt2cls.data.check import check
from gpt2cls.data.encode import encode_split, open_tokens
from gpt2cls.data.prepare import prepare
from gpt2cls.data.tokenizer_source import get_tokenizer
from gpt2cls.training.payload import RankPayload
from gpt2cls.training.session import run_rank

SETS = Path(os.environ.get("GPT2CLS_DATA") or Path(__file__).parents[3] / "shared" / "data")
PAIR: dict[str, Any] = {"text": ["text_a", "text_b"]}
COLUMNS: dict[str, dict[str, Any]] = {
    "ag_news": {},
    "bbc_news": {},
    "dbpedia14_subset": {},
    "goemotions": {"label": "labels"},
    "imdb": {},
    "mr": {},
    "mrpc": PAIR,
    "snli_dev_test": PAIR,
    "sst2": {},
    "thucnews_titles": {},
}
ROWS = 2000
"""Of each split: enough for ten steps, and IMDb is long."""

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not SETS.is_dir(), reason=f"no published sets in {SETS}"),
]


@pytest.mark.parametrize("name", COLUMNS)
def test_a_published_set_is_checked_and_trains_for_ten_steps(name: str, tmp_path: Path) -> None:
    sources = {split: excerpt(name, split, tmp_path) for split in ("train", "test")}
    config = DataConfig.model_validate({**sources, **COLUMNS[name], "max_length": 32})
    prepared = prepare(config, base_dir=tmp_path, seed=0)
    model = ModelConfig(backbone="gpt2-tiny")
    tokenizer = get_tokenizer(model, prepared.train, cache_dir=tmp_path, base_dir=tmp_path)
    tokens = {
        split: encode_split(rows, tokenizer, max_length=32, cache_dir=tmp_path)
        for split, rows in prepared.splits.items()
    }
    lengths = {split: open_tokens(folder).full_lengths for split, folder in tokens.items()}
    report = check(prepared, full_lengths=lengths, max_length=32)
    assert report.rows == sum(report.splits.values()) > 0
    assert len(report.labels) == len(prepared.task.labels) >= 2
    for split in ("train", "validation"):
        np.save(tmp_path / f"{split}.npy", prepared.splits[split].labels)
    payload = RankPayload(
        model=model,
        train=TrainConfig(max_steps=10, lr=2e-3, eval_every="10 steps"),
        task=prepared.task.to_json(),
        job_dir=tmp_path / "job",
        train_tokens=tokens["train"],
        validation_tokens=tokens["validation"],
        train_labels=tmp_path / "train.npy",
        validation_labels=tmp_path / "validation.npy",
        vocab_size=tokenizer.vocab_size,
        pad_id=tokenizer.pad_id,
        max_length=32,
        base_dir=tmp_path,
    )
    assert run_rank(payload) == "finished"
    events = [json.loads(line) for line in (tmp_path / "job" / "events.jsonl").open()]
    losses = [event["metrics"]["train/loss"] for event in events if event["kind"] == "step"]
    assert len(losses) == 10
    assert np.isfinite(losses).all()


def excerpt(name: str, split: str, folder: Path) -> str:
    file = folder / f"{name}-{split}.parquet"
    pq.write_table(pq.read_table(SETS / name / f"{split}.parquet").slice(0, ROWS), file)
    return str(file)
