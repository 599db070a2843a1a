"""Pre-training speed against the Hugging Face Trainer on the same causal language model.

    pip install -e '.[bench]'
    GPT2CLS_DATA=<folder with wikitext2> python benchmarks/pretrain.py [--rounds 3]

Both sides begin from the same weights (shape S, 4 layers x 256 x 4 heads, tied output), read the
same packed blocks of WikiText-2 without padding, in the same batches, dropout 0.1, AdamW (fused on
both sides), and compute in what `train.precision: auto` picks here; `tutorial` computes in fp32, in
batches of 8 blocks, as the Trainer does unless it is told otherwise. The vocabulary is GPT-2's, or
8,000 entries. Tokens per second are those of the second half of the steps; arms take turns, each in
a process of its own.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from corpora import gpt2_tokenizer
from measuring import (
    Outcome,
    Report,
    median,
    paired_ratio,
    peak_memory_mb,
    run_arm,
    spread,
    take_turns,
)
from sides import SHAPES, hf_config, step_times_ms

from gpt2cls.config import CorpusConfig, ModelConfig, TrainConfig
from gpt2cls.data.blocks import BlockRows
from gpt2cls.data.bpe import trained_tokenizer
from gpt2cls.data.corpus import read_corpus
from gpt2cls.data.token_stream import encode_stream, open_stream
from gpt2cls.data.tokenizer import TextTokenizer
from gpt2cls.training.payload import RankPayload
from gpt2cls.training.precision import pick_precision
from gpt2cls.training.session import run_rank

LENGTH, STEPS, LR = 256, 12, 3e-4
ROWS = {"S-50k": 50_257, "S-8k": 8_000}
ARMS = {"ours": 32, "best": 32, "ours-8": 8, "best-8": 8, "tutorial-8": 8}


@dataclass(frozen=True)
class Arm:
    """One measurement."""

    side: str
    vocabulary: int
    batch_size: int
    precision: str
    cache_dir: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=ROWS, help="may be given again")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        print(json.dumps(measure(Arm(**json.loads(options.arm)))))
        return
    report = Report("pretrain", f"python benchmarks/pretrain.py --rounds {options.rounds}")
    report.machine()
    with tempfile.TemporaryDirectory() as cache_dir:
        for name in options.only or ROWS:
            print(name, flush=True)
            outcomes = take_turns(arms_of(ROWS[name], cache_dir), options.rounds)
            report.document[name] = outcomes
            head = ("row", "side", "blocks", "precision", "tokens/s", "MFU", "peak MB")
            report.table((*head, "ours / this"), table_rows(name, outcomes, report))
            report.write()  # now: the next row takes minutes


def arms_of(vocabulary: int, cache_dir: str) -> dict[str, Any]:
    auto = pick_precision("auto", torch.device("cpu"))[0]
    arms = {}
    for name, batch_size in ARMS.items():
        side = name.split("-")[0]
        precision = "fp32" if side == "tutorial" else auto
        spec = asdict(Arm(side, vocabulary, batch_size, precision, cache_dir))
        arms[name] = lambda spec=spec: run_arm(__file__, spec)
    return arms


def table_rows(name: str, outcomes: dict[str, list[Outcome]], report: Report) -> list[list[str]]:
    rows = []
    layers, width, _ = SHAPES["S"]
    # As in sides.py, and the output layer, which here is most of it.
    flops = 6 * 12 * layers * width**2 + 6 * layers * width * LENGTH + 6 * width * ROWS[name]
    for arm, found in outcomes.items():
        precision = found[0]["precision"]
        mfu = median(found, "tokens_per_s") * flops / 1e9 / report.peak_gflops(precision)
        ours = outcomes["ours-8" if ARMS[arm] == 8 else "ours"]
        is_ours = arm.startswith("ours")
        ratio = "" if is_ours else f"{paired_ratio(ours, found, 'tokens_per_s'):.2f}"
        numbers = [spread(found, "tokens_per_s"), f"{mfu:.1%}", f"{median(found, 'peak_mb'):,.0f}"]
        rows.append([name, arm.split("-")[0], str(ARMS[arm]), precision, *numbers, ratio])
    return rows


def measure(arm: Arm) -> Outcome:
    """Tokens per second of the second half of the steps, and the peak memory of the process."""
    cache_dir = Path(arm.cache_dir)
    tokenizer, stream, short = texts(arm.vocabulary, cache_dir)
    model = shape_folder(arm.vocabulary, cache_dir)
    with tempfile.TemporaryDirectory() as folder:
        if arm.side == "ours":
            times_s, losses = ours(arm, tokenizer, stream, short, model, Path(folder))
        else:
            times_s, losses = trainer(arm, tokenizer, stream, model, Path(folder))
    half = len(times_s) // 2
    seconds = times_s[-1] - times_s[half - 1]
    return {
        "tokens_per_s": round(arm.batch_size * LENGTH * (len(times_s) - half) / seconds, 1),
        "last_loss": round(losses[-1], 3),
        "peak_mb": round(peak_memory_mb()),
        "precision": arm.precision,
    }


def texts(vocabulary: int, cache_dir: Path) -> tuple[TextTokenizer, Path, Path]:
    """A tokenizer, the stream that is learned, and a short one to be measured on at the end."""
    source = Path(os.environ.get("GPT2CLS_DATA", "data")) / "wikitext2" / "validation.txt"
    config = CorpusConfig(train=str(source), validation=str(source))
    train = read_corpus(config, base_dir=Path.cwd(), seed=0, cache_dir=cache_dir).train
    tokenizer = gpt2_tokenizer()
    if vocabulary != tokenizer.vocab_size:
        tokenizer = trained_tokenizer(vocabulary, train, cache_dir)
    short = pa.chunked_array([[train.texts[0].as_py()[:5000]]], type=pa.large_string())
    streams = [
        encode_stream(some, tokenizer, backward=False, cache_dir=cache_dir)
        for some in (train.texts, short)
    ]
    return tokenizer, streams[0], streams[1]


def shape_folder(vocabulary: int, cache_dir: Path) -> Path:
    folder = cache_dir / f"lm-{vocabulary}"
    if not folder.exists():
        from transformers import GPT2Config, GPT2LMHeadModel

        torch.manual_seed(0)
        aside = folder.with_suffix(".writing")
        config = hf_config(GPT2Config, "S", LENGTH, vocab_size=vocabulary)
        GPT2LMHeadModel(config).save_pretrained(aside)
        aside.rename(folder)
    return folder


def ours(
    arm: Arm, tokenizer: TextTokenizer, stream: Path, short: Path, model: Path, folder: Path
) -> tuple[list[float], list[float]]:
    never = "1000000 steps"
    run_rank(
        RankPayload(
            objective="causal",
            model=ModelConfig(backbone=str(model), dropout=0.1),
            train=TrainConfig(
                batch_size=arm.batch_size,
                max_steps=STEPS,
                lr=LR,
                weight_decay=0.0,
                precision=arm.precision,  # type: ignore[arg-type]
                eval_every=never,
                checkpoint_every=never,
            ),
            job_dir=folder,
            train_tokens=stream,
            validation_tokens=short,
            vocab_size=tokenizer.vocab_size,
            pad_id=tokenizer.pad_id,
            max_length=LENGTH,
            base_dir=folder,
            select_metric="loss",
        ),
        should_stop=lambda: False,
    )
    events = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    losses = [event["metrics"]["train/loss"] for event in events if event["kind"] == "step"]
    return [time_ms / 1000 for time_ms in step_times_ms(folder)], losses


def trainer(
    arm: Arm, tokenizer: TextTokenizer, stream: Path, model: Path, folder: Path
) -> tuple[list[float], list[float]]:
    from datasets import Dataset
    from transformers import GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments, set_seed

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.times_s: list[float] = []
            self.losses: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.times_s.append(time.perf_counter())

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if "loss" in logs:
                self.losses.append(float(logs["loss"]))

    set_seed(0)
    clock, blocks = Clock(), BlockRows(open_stream(stream), LENGTH, tokenizer.pad_id)
    ids = [
        blocks.stream.tokens[i * LENGTH : (i + 1) * LENGTH].tolist()
        for i in range(min(STEPS * arm.batch_size, len(blocks.lengths) - 1))
    ]
    args = TrainingArguments(
        str(folder),
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        max_steps=STEPS,
        learning_rate=LR,
        per_device_train_batch_size=arm.batch_size,
        bf16=arm.precision == "bf16",
        optim="adamw_torch" if arm.side == "tutorial" else "adamw_torch_fused",
        logging_steps=STEPS,
    )
    Trainer(
        model=GPT2LMHeadModel.from_pretrained(model),
        args=args,
        train_dataset=Dataset.from_dict({"input_ids": ids, "labels": ids}),
        callbacks=[clock],
    ).train()
    return clock.times_s, clock.losses


if __name__ == "__main__":
    main()
