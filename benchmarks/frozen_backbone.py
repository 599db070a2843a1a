"""The highest blocks of a real decoder: ours against the Trainer, both with the rest frozen.

    pip install -e '.[bench]'
    python benchmarks/make_smollm2.py smollm2
    python benchmarks/frozen_backbone.py smollm2 [--blocks 4] [--rows 128] [--rounds 2]

Both train the same blocks of the same weights on the same rows of BBC News (128 tokens), in batches
of 16, with the precision that `train.precision: auto` picks here. Ours computes what the frozen
blocks make of the texts in the first epoch and keeps it; the Trainer computes it in each.
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measuring import Outcome, Report, paired_ratio, peak_memory_mb, run_arm, spread, take_turns
from sides import hf_rows, step_times_ms

from gpt2cls.config import DataConfig, ModelConfig, TrainConfig
from gpt2cls.data.encode import encode_split
from gpt2cls.data.prepare import Prepared, kept, prepare
from gpt2cls.data.tokenizer_source import tokenizer_of_folder
from gpt2cls.training.payload import RankPayload
from gpt2cls.training.precision import pick_precision
from gpt2cls.training.session import run_rank

BATCH_SIZE, MAX_LENGTH, EPOCHS, LR = 16, 128, 3, 2e-4


@dataclass(frozen=True)
class Work:
    """One measurement."""

    side: str
    backbone: str
    blocks: int
    rows: int
    precision: str

    def run(self) -> Outcome:
        data = prepare(
            DataConfig(train="bbc-news", test=0.1, max_length=MAX_LENGTH),
            base_dir=Path.cwd(),
            seed=0,
        )
        train = kept(data.train, np.arange(len(data.train)) < self.rows)
        tokenizer = tokenizer_of_folder(Path(self.backbone))
        with tempfile.TemporaryDirectory() as folder:
            cut = {"max_length": MAX_LENGTH, "cache_dir": Path(folder)}
            tokens = encode_split(train, tokenizer, **cut)
            labels = Path(folder) / "labels.npy"
            np.save(labels, train.labels)
            side = _ours if self.side == "ours" else _trainer
            ends_s = side(self, data, tokens, labels, tokenizer.pad_id, Path(folder))
        epochs_s = [b - a for a, b in itertools.pairwise(ends_s)]
        return {
            "first_s": round(epochs_s[0], 2),
            "later_s": round(float(np.median(epochs_s[1:])), 2),
            "peak_mb": round(peak_memory_mb()),
        }


def _ours(
    work: Work, data: Prepared, tokens: Path, labels: Path, pad_id: int, folder: Path
) -> list[float]:
    started_s = time.time()
    run_rank(
        RankPayload(
            model=ModelConfig(backbone=str(Path(work.backbone).resolve()), dropout=0.0),
            train=TrainConfig(
                epochs=EPOCHS,
                batch_size=BATCH_SIZE,
                lr=LR,
                precision=work.precision,
                freeze=f"top:{work.blocks}",
                eval_every="1000000 steps",
                checkpoint_every="1000000 steps",
            ),
            task=data.task.to_json(),
            job_dir=folder,
            train_tokens=tokens,
            validation_tokens=tokens,
            train_labels=labels,
            validation_labels=labels,
            vocab_size=tokenizer_of_folder(Path(work.backbone)).vocab_size,
            pad_id=pad_id,
            max_length=MAX_LENGTH,
            base_dir=folder,
            cache_dir=folder / "cache",
            select_metric="accuracy",
        )
    )
    times_s = [time_ms / 1000 for time_ms in step_times_ms(folder)]
    return [started_s, *_ends(times_s)]


def _trainer(
    work: Work, data: Prepared, tokens: Path, labels: Path, pad_id: int, folder: Path
) -> list[float]:
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.times_s: list[float] = []

        def on_step_end(self, *_: object, **__: object) -> None:
            self.times_s.append(time.time())

    started_s, clock = time.time(), Clock()
    model = AutoModelForSequenceClassification.from_pretrained(
        work.backbone, num_labels=len(data.task.labels), dtype=torch.float32
    )
    model.config.pad_token_id = pad_id
    model.model.requires_grad_(False)
    for block in [*model.model.layers[-work.blocks :], model.model.norm]:
        block.requires_grad_(True)
    tokenizer = AutoTokenizer.from_pretrained(work.backbone)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id)
    tokenizer.padding_side = "right"
    args = TrainingArguments(
        str(folder / "trainer"),
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        num_train_epochs=EPOCHS,
        learning_rate=LR,
        per_device_train_batch_size=BATCH_SIZE,
        bf16=work.precision == "bf16",
        train_sampling_strategy="group_by_length",
        optim="adamw_torch_fused",
    )
    Trainer(
        model=model,
        args=args,
        train_dataset=hf_rows(tokens, np.load(labels)),
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[clock],
    ).train()
    return [started_s, *_ends(clock.times_s)]


def _ends(times_s: list[float]) -> list[float]:
    per_epoch = len(times_s) // EPOCHS
    return times_s[per_epoch - 1 :: per_epoch]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backbone", nargs="?", default="smollm2", help="a Hugging Face folder")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        print(json.dumps(Work(**json.loads(options.arm)).run()))
        return
    command = f"{Path(options.backbone).name} --blocks {options.blocks} --rows {options.rows}"
    report = Report(
        "frozen_backbone",
        f"python benchmarks/frozen_backbone.py {command} --rounds {options.rounds}",
    )
    report.machine()
    precision = pick_precision("auto", torch.device("cpu"))[0]
    shape = {"backbone": options.backbone, "blocks": options.blocks, "rows": options.rows}
    asked = {side: shape | {"side": side, "precision": precision} for side in ("ours", "Trainer")}
    arms = {side: partial(run_arm, sys.argv[0], spec) for side, spec in asked.items()}
    outcomes = take_turns(arms, options.rounds)
    report.document |= shape | {"backbone": Path(options.backbone).name, "outcomes": outcomes}
    ours = outcomes["ours"]
    report.add(f"Both in {precision}.")
    report.table(
        ("", "first epoch, s", "this / ours", "a later epoch, s", "this / ours", "peak MB"),
        [
            [
                side,
                spread(found, "first_s"),
                f"{paired_ratio(found, ours, 'first_s'):.2f}",
                spread(found, "later_s"),
                f"{paired_ratio(found, ours, 'later_s'):.2f}",
                spread(found, "peak_mb"),
            ]
            for side, found in outcomes.items()
        ],
    )
    report.write()


if __name__ == "__main__":
    main()
