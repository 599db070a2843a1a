"""Seconds of training until the test accuracy that the Trainer ends with, over three seeds.

    pip install -e '.[bench]'
    python benchmarks/time_to_accuracy.py [--seeds 3] [--only ag_news]

Both sides train a shape S from the same random weights on the same rows with the same batch size,
peak learning rate, dropout and number of epochs. The Trainer is at its best (rows grouped by
length, fused AdamW) and measures nothing on its way. Ours measures the test rows four times per
epoch, and that time counts; the clock stops at the first value that is not below the Trainer's.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from corpora import Corpus, open_corpus
from measuring import Outcome, Report, run_arm
from sides import Spec, hf_rows, payload_of, trainer

from gpt2cls.training.session import EVENTS_FILE, run_rank

SETS: dict[str, dict[str, Any]] = {
    "ag_news": {"rows": 2000, "max_length": 128, "lr": 1e-3},
    "bbc": {"rows": 1000, "max_length": 128, "lr": 1e-3},
}
TEST_ROWS, EPOCHS, EVALUATIONS_PER_EPOCH = 500, 3, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=SETS)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        asked = json.loads(options.arm)
        print(json.dumps(measure(Spec(**asked["spec"]), asked["target"])))
        return
    command = f"python benchmarks/time_to_accuracy.py --seeds {options.seeds}"
    report = Report("time_to_accuracy", command)
    report.machine()
    rows = []
    with tempfile.TemporaryDirectory() as cache_dir:
        for name in options.only or SETS:
            made = {"shape": "S", "corpus": name, "batch_size": 16, "cache_dir": cache_dir}
            spec = Spec(side="best", **made, **SETS[name])
            pairs = [pair(replace(spec, seed=seed)) for seed in range(options.seeds)]
            report.document[name] = pairs
            rows += [[name, *row] for row in table_rows(pairs)]
    head = ("set", "seed", "Trainer", "accuracy", "ours, same accuracy", "ours, end", "ratio")
    report.table(head, rows)
    report.write()


def pair(spec: Spec) -> dict[str, Outcome]:
    theirs = run_arm(sys.argv[0], {"spec": spec.to_json(), "target": None})
    asked = {"spec": replace(spec, side="ours").to_json(), "target": theirs["accuracy"]}
    ours = run_arm(sys.argv[0], asked)
    print(spec.corpus, spec.seed, "Trainer", theirs, "ours", ours, flush=True)
    return {"trainer": theirs, "ours": ours}


def table_rows(pairs: list[dict[str, Outcome]]) -> list[list[str]]:
    rows, ratios = [], []
    for seed, found in enumerate(pairs):
        theirs, ours = found["trainer"], found["ours"]
        reached = ours["reached_s"]
        if reached is not None:
            ratios.append(theirs["seconds"] / reached)
        rows.append(
            [
                str(seed),
                f"{theirs['seconds']:.1f} s",
                f"{theirs['accuracy']:.4f}",
                "not reached" if reached is None else f"{reached:.1f} s",
                f"{ours['accuracy']:.4f} in {ours['seconds']:.1f} s",
                "" if reached is None else f"{ratios[-1]:.2f}",
            ]
        )
    middle = f"{statistics.median(ratios):.2f}" if ratios else ""
    return [*rows, ["median", "", "", "", "", middle]]


def measure(spec: Spec, target: float | None) -> Outcome:
    corpus = open_corpus(
        spec.corpus,
        rows=spec.rows,
        test_rows=TEST_ROWS,
        max_length=spec.max_length,
        cache_dir=Path(spec.cache_dir),
    )
    assert corpus is not None
    with tempfile.TemporaryDirectory() as folder:
        if target is None:
            return _trainer(spec, corpus, Path(folder))
        return _ours(spec, corpus, Path(folder), target)


def _trainer(spec: Spec, corpus: Corpus, folder: Path) -> Outcome:
    made = trainer(spec, corpus, folder, settings={"num_train_epochs": EPOCHS})
    started_s = time.perf_counter()
    made.train()
    seconds = time.perf_counter() - started_s
    # With rows grouped by length the Trainer gives predictions in an order of its own.
    found = made.predict(hf_rows(corpus.test_tokens, corpus.test.labels))
    accuracy = float((found.predictions.argmax(axis=1) == found.label_ids).mean())
    return {"seconds": round(seconds, 2), "accuracy": accuracy}


def _ours(spec: Spec, corpus: Corpus, folder: Path, target: float) -> Outcome:
    steps_per_epoch = -(-len(corpus.train) // spec.batch_size)
    every = f"{steps_per_epoch // EVALUATIONS_PER_EPOCH} steps"
    run_rank(payload_of(spec, corpus, folder, epochs=EPOCHS, eval_every=every))
    events = [json.loads(line) for line in (folder / EVENTS_FILE).read_text().splitlines()]
    start_ms = next(e["time_ms"] for e in events if e["kind"] == "start")
    values = [
        ((e["time_ms"] - start_ms) / 1000, e["metrics"]["eval/accuracy"])
        for e in events
        if e["kind"] == "eval"
    ]
    reached = next((seconds for seconds, value in values if value >= target), None)
    return {"seconds": values[-1][0], "accuracy": values[-1][1], "reached_s": reached}


if __name__ == "__main__":
    main()
