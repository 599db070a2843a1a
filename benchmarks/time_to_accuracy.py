"""Seconds of training until the test accuracy that the Trainer ends with, over three seeds.

    pip install -e '.[bench]'
    python benchmarks/time_to_accuracy.py [--seeds 3] [--only ag_news]

Both sides train a shape S from the same random weights on the same rows with the same batch size,
learning rate, dropout, pooling (the last token, but for one side) and precision (what
`train.precision: auto` picks here). The Trainer is at its best (rows grouped by length, fused
AdamW), makes three epochs and measures nothing on its way. Ours measures the test rows four times
per epoch; the clock stops at the first value that is not below the median of the accuracies that
the Trainer ended with. Two times are given: of training alone, and with all that was measured until
then. Both include the reading of weights and tokens; of the Trainer only its training is timed.

Ours is run exactly as the Trainer; with a rate of its own for the token embedding
(`train.embedding_lr`) and fewer epochs, one on AG News, two on BBC News; and with an embedding that
also begins with what the training texts say (`model.embedding_init: lsa`, whose time counts), mean
pooling, and on BBC News 100 steps. `--side` chooses.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from corpora import Corpus, open_corpus
from measuring import Outcome, Report, run_arm
from sides import Spec, hf_rows, payload_of, trainer

from gpt2cls.training.precision import pick_precision
from gpt2cls.training.session import EVENTS_FILE, run_rank

SETS: dict[str, dict[str, Any]] = {
    "ag_news": {"rows": 3000, "max_length": 128, "lr": 5e-4},
    "bbc": {"rows": 1200, "max_length": 128, "lr": 5e-4},
}
"""At 1e-3 a run may stay near chance for most of an epoch."""
TEST_ROWS, EPOCHS, EVALUATIONS_PER_EPOCH = 500, 3, 4
FEWER_EPOCHS = {"ag_news": 1, "bbc": 2}
STEPS_WITH_LSA = {"ag_news": None, "bbc": 100}
SIDES = ("ours", "ours, embedding_lr", "ours, lsa, embedding_lr, mean pooling")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=SETS)
    parser.add_argument("--side", action="append", choices=SIDES)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        print(json.dumps(measure(Spec(**json.loads(options.arm)))))
        return
    sides = options.side or SIDES
    command = f"python benchmarks/time_to_accuracy.py --seeds {options.seeds}"
    command += "".join(f" --side '{side}'" for side in options.side or ())
    report = Report("time_to_accuracy", command)
    report.machine()
    precision = pick_precision("auto", torch.device("cpu"))[0]
    rows = []
    with tempfile.TemporaryDirectory() as cache_dir:
        for name in options.only or SETS:
            made = {"shape": "S", "corpus": name, "batch_size": 16, "cache_dir": cache_dir}
            spec = Spec(side="best", precision=precision, **made, **SETS[name])
            outcomes = compare(spec, options.seeds, sides)
            report.document[name] = outcomes
            rows += [[name, *row] for row in table_rows(outcomes)]
    report.add(f"Both in {precision}, batches of 16.")
    head = ("set", "side", "seed", "Trainer", "this side", "median reached after", "ratio")
    head += ("with measuring", "ratio")
    report.table(head, rows)
    report.write()


def compare(spec: Spec, seeds: int, sides: Sequence[str]) -> dict[str, list[Outcome]]:
    outcomes: dict[str, list[Outcome]] = {side: [] for side in ("best", *sides)}
    for seed in range(seeds):
        for side, found in outcomes.items():
            found.append(run_arm(sys.argv[0], replace(spec, side=side, seed=seed).to_json()))
            print(spec.corpus, seed, side, found[-1], flush=True)
    return outcomes


def table_rows(outcomes: dict[str, list[Outcome]]) -> list[list[str]]:
    """Seconds until the accuracy of the Trainer's median run, each seed beside its Trainer."""
    target = statistics.median(found["accuracy"] for found in outcomes["best"])
    rows = []
    for side in [side for side in outcomes if side != "best"]:
        ratios = []
        for seed, (theirs, ours) in enumerate(zip(outcomes["best"], outcomes[side], strict=True)):
            # Seconds of training, and with measuring, at the first value that is high enough.
            *times, _ = next((v for v in ours["values"] if v[-1] >= target), (math.inf,) * 3)
            ratios.append([theirs["seconds"] / seconds for seconds in times])
            reached = ["never" if math.isinf(seconds) else f"{seconds:.1f} s" for seconds in times]
            both = zip(reached, (f"{ratio:.2f}" for ratio in ratios[-1]), strict=True)
            rows.append(
                [
                    side,
                    str(seed),
                    f"{theirs['accuracy']:.4f} in {theirs['seconds']:.1f} s",
                    f"{ours['accuracy']:.4f} in {ours['seconds']:.1f} s",
                    *(cell for pair in both for cell in pair),
                ]
            )
        medians = [f"{statistics.median(of_one):.2f}" for of_one in zip(*ratios, strict=True)]
        rows.append([side, "median", f"{target:.4f}", "", "", medians[0], "", medians[1]])
    return rows


def measure(spec: Spec) -> Outcome:
    corpus = open_corpus(
        spec.corpus,
        rows=spec.rows,
        test_rows=TEST_ROWS,
        max_length=spec.max_length,
        cache_dir=Path(spec.cache_dir),
    )
    assert corpus is not None
    with tempfile.TemporaryDirectory() as folder:
        return (_ours if spec.side in SIDES else _trainer)(spec, corpus, Path(folder))


def _trainer(spec: Spec, corpus: Corpus, folder: Path) -> Outcome:
    made = trainer(spec, corpus, folder, settings={"num_train_epochs": EPOCHS})
    started_s = time.perf_counter()
    made.train()
    seconds = time.perf_counter() - started_s
    # With rows grouped by length the Trainer gives predictions in an order of its own.
    found = made.predict(hf_rows(corpus.test_tokens, corpus.test.labels))
    accuracy = float((found.predictions.argmax(axis=1) == found.label_ids).mean())
    return {"seconds": round(seconds, 2), "accuracy": accuracy}


def _ours(spec: Spec, corpus: Corpus, folder: Path) -> Outcome:
    steps_per_epoch = -(-len(corpus.train) // spec.batch_size)
    every = f"{steps_per_epoch // EVALUATIONS_PER_EPOCH} steps"
    settings: dict[str, Any] = {"epochs": EPOCHS}
    if spec.side != "ours":
        settings = {"epochs": FEWER_EPOCHS[spec.corpus], "embedding_lr": 16 * spec.lr}
    if "lsa" in spec.side:
        settings["max_steps"] = STEPS_WITH_LSA[spec.corpus]
    payload = payload_of(spec, corpus, folder, eval_every=every, **settings)
    if "lsa" in spec.side:
        model = payload.model.model_copy(update={"embedding_init": "lsa", "pooling": "mean"})
        payload = payload.model_copy(update={"model": model})
    start_ms = time.time_ns() // 1_000_000
    run_rank(payload)
    events = [json.loads(line) for line in (folder / EVENTS_FILE).read_text().splitlines()]
    values, measuring_ms = [], 0.0
    for before, event in pairwise(events):
        if event["kind"] == "eval":
            measuring_ms += event["time_ms"] - before["time_ms"]
            passed_ms = event["time_ms"] - start_ms
            accuracy = event["metrics"]["eval/accuracy"]
            values.append(((passed_ms - measuring_ms) / 1000, passed_ms / 1000, accuracy))
    training, _, accuracy = values[-1]
    return {"seconds": training, "accuracy": accuracy, "values": values}


if __name__ == "__main__":
    main()
