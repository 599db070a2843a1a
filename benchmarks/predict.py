"""Prediction against the Trainer's: a whole test split, and one text of 64 tokens at a time.

    pip install -e '.[bench]'
    python benchmarks/predict.py [--rounds 5] [--rows 2000]

Of a split, ours goes from texts to probabilities, as `gpt2cls predict` does; the Trainer is given
the tokens. Its default is batches of 8 rows as they come. One text at a time is measured twice: a
forward pass from tokens that are there, and from the text, on their side by transformers' tokenizer
and model.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from corpora import END_OF_TEXT, Corpus, gpt2_tokenizer, open_corpus
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
from sides import Spec, hf_rows, shape_folder, trainer

from gpt2cls.config import ModelConfig
from gpt2cls.data.encode import open_tokens
from gpt2cls.model.classifier import build_classifier
from gpt2cls.model.folder import ModelInfo, save_classifier
from gpt2cls.predict import Predictor

ONE_LENGTH, ONE_CALLS = 64, 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--shape", default="S", choices=("S", "M", "small"))
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        print(json.dumps(measure(Spec(**json.loads(options.arm)))))
        return
    report = Report("predict", f"python benchmarks/predict.py --rounds {options.rounds}")
    report.machine()
    with tempfile.TemporaryDirectory() as cache_dir:
        spec = Spec(
            side="ours",
            shape=options.shape,
            corpus="ag_news" if "GPT2CLS_DATA" in os.environ else "bbc",
            rows=options.rows,
            max_length=128,
            batch_size=8,
            cache_dir=cache_dir,
        )
        specs = {
            "ours": spec,
            "Trainer, batches of 8": replace(spec, side="tutorial"),
            "Trainer, batches of 64": replace(spec, side="tutorial", batch_size=64),
        }
        arms = {name: lambda s=s: run_arm(sys.argv[0], s.to_json()) for name, s in specs.items()}
        outcomes = take_turns(arms, options.rounds)
    report.document |= {"shape": spec.shape, "corpus": spec.corpus, "outcomes": outcomes}
    ours = outcomes["ours"]
    rows = [
        [
            name,
            spread(found, "tokens_per_s"),
            f"{paired_ratio(ours, found, 'tokens_per_s'):.2f}",
            spread(found, "one_ms"),
            f"{paired_ratio(found, ours, 'one_ms'):.2f}",
            spread(found, "text_ms"),
            f"{paired_ratio(found, ours, 'text_ms'):.2f}",
            f"{median(found, 'peak_mb'):,.0f}",
        ]
        for name, found in outcomes.items()
    ]
    head = ("", "real tokens/s", "ours / this", "64 tokens alone, ms", "this / ours")
    head += ("from their text, ms", "this / ours", "peak MB")
    report.table(head, rows)
    report.write()


def measure(spec: Spec) -> Outcome:
    corpus = open_corpus(
        spec.corpus,
        rows=64,
        test_rows=spec.rows,
        max_length=spec.max_length,
        cache_dir=Path(spec.cache_dir),
    )
    assert corpus is not None
    tokens = open_tokens(corpus.test_tokens)
    long_enough = [i for i, n in enumerate(tokens.full_lengths) if n >= ONE_LENGTH]
    ids = [tokens.tokens[tokens.offsets[i] :][:ONE_LENGTH].astype(int) for i in long_enough[:50]]
    with tempfile.TemporaryDirectory() as folder:
        side = _ours if spec.side == "ours" else _trainer
        split_s, one_ms, text_ms = side(spec, corpus, ids, Path(folder))
    return {
        "tokens_per_s": round(int(tokens.lengths.sum()) / split_s, 1),
        "one_ms": round(one_ms, 3),
        "text_ms": round(text_ms, 3),
        "peak_mb": round(peak_memory_mb()),
    }


Times = tuple[float, float, float]
"""Seconds of a split; milliseconds of one text from its tokens, and from the text."""


def _ours(spec: Spec, corpus: Corpus, ids: list, folder: Path) -> Times:
    tokenizer = gpt2_tokenizer()
    backbone = shape_folder(spec.shape, spec.max_length, Path(spec.cache_dir))
    info = ModelInfo(
        task=corpus.task,
        model=ModelConfig(backbone=str(backbone), temperature=1.0),
        max_length=spec.max_length,
        vocab_size=tokenizer.vocab_size,
        pad_id=END_OF_TEXT,
    )
    model = build_classifier(
        info.model,
        corpus.task,
        vocab_size=tokenizer.vocab_size,
        pad_id=END_OF_TEXT,
        max_length=spec.max_length,
        seed=0,
        base_dir=folder,
    )
    save_classifier(model, tokenizer, info, folder / "model")
    del model  # a user's process never had it
    predictor = Predictor.load(folder / "model")
    texts = corpus.test.texts.to_pylist()
    predictor.probabilities(texts[:64])
    started_s = time.perf_counter()
    predictor.probabilities(texts)
    split_s = time.perf_counter() - started_s
    model, tensors, some = predictor.model, _tensors(ids), _texts(ids)
    whole = (torch.tensor([ONE_LENGTH]), torch.zeros(1))
    with torch.inference_mode():
        one_ms = _median_ms(lambda i: model.probabilities(model(tensors[i % len(ids)], *whole)))
    return split_s, one_ms, _median_ms(lambda i: predictor.probabilities([some[i % len(ids)]]))


def _trainer(spec: Spec, corpus: Corpus, ids: list, folder: Path) -> Times:
    asked = {"per_device_eval_batch_size": spec.batch_size}
    made = trainer(spec, corpus, folder, settings=asked)
    rows = hf_rows(corpus.test_tokens, corpus.test.labels)
    made.predict(rows.select(range(64)))
    started_s = time.perf_counter()
    made.predict(rows)
    split_s = time.perf_counter() - started_s
    model, tensors, some = made.model.eval(), _tensors(ids), _texts(ids)
    tokenizer = made.data_collator.tokenizer
    with torch.inference_mode():
        one_ms = _median_ms(lambda i: model(tensors[i % len(ids)]).logits.softmax(-1))
        text_ms = _median_ms(
            lambda i: model(**tokenizer(some[i % len(ids)], return_tensors="pt")).logits.softmax(-1)
        )
    return split_s, one_ms, text_ms


def _tensors(ids: list) -> list[torch.Tensor]:
    return [torch.from_numpy(one)[None] for one in ids]


def _texts(ids: list) -> list[str]:
    tokenizer = gpt2_tokenizer().tokenizer
    return [tokenizer.decode(one.tolist()) for one in ids]


def _median_ms(call) -> float:
    times = []
    for i in range(ONE_CALLS):
        started_s = time.perf_counter()
        call(i)
        times.append(time.perf_counter() - started_s)
    return statistics.median(times) * 1000


if __name__ == "__main__":
    main()
