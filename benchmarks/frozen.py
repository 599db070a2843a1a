"""Training above frozen layers: what is computed once, against computing it in every epoch.

    pip install -e '.[bench]'
    python benchmarks/frozen.py [--rounds 3]

Head only: ten epochs from a cold cache, the building of it and the loading of the weights counted,
against `train()` of the Trainer with a frozen base. Top block only: seconds of an epoch once the
cache is there, against full fine-tuning by ours and by the Trainer. Shape S, dropout 0.1.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from corpora import Corpus, open_corpus
from measuring import Outcome, Report, paired_ratio, run_arm, spread, take_turns
from sides import Spec, payload_of, step_times_ms, trainer

from gpt2cls.training.session import run_rank

HEAD_EPOCHS, EPOCHS = 10, 3
WORK = ("ours head_only", "Trainer head_only", "ours top:1", "ours none", "Trainer none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        asked = json.loads(options.arm)
        print(json.dumps(measure(Spec(**asked["spec"]), asked["work"])))
        return
    report = Report("frozen", f"python benchmarks/frozen.py --rounds {options.rounds}")
    report.machine()
    with tempfile.TemporaryDirectory() as cache_dir:
        spec = Spec(
            side="best",
            shape="S",
            corpus="ag_news" if "GPT2CLS_DATA" in os.environ else "bbc",
            rows=options.rows,
            max_length=128,
            batch_size=16,
            cache_dir=cache_dir,
        )
        arms = {
            work: lambda work=work: run_arm(sys.argv[0], {"spec": spec.to_json(), "work": work})
            for work in WORK
        }
        outcomes = take_turns(arms, options.rounds)
    report.document |= {"rows": options.rows, "corpus": spec.corpus, "outcomes": outcomes}
    report.table(
        ("", "seconds"), [[work, spread(found, "seconds")] for work, found in outcomes.items()]
    )

    def ratio(slow: str, fast: str) -> str:
        return f"{paired_ratio(outcomes[slow], outcomes[fast], 'seconds'):.1f}"

    report.table(
        ("comparison", "times faster"),
        [
            [
                f"{HEAD_EPOCHS} epochs head only, cache built, against the Trainer frozen",
                ratio("Trainer head_only", "ours head_only"),
            ],
            ["an epoch of top:1, cached, against ours in full", ratio("ours none", "ours top:1")],
            ["an epoch of top:1, cached, against the Trainer", ratio("Trainer none", "ours top:1")],
        ],
    )
    report.write()


def measure(spec: Spec, work: str) -> Outcome:
    corpus = open_corpus(
        spec.corpus,
        rows=spec.rows,
        test_rows=spec.batch_size,
        max_length=spec.max_length,
        cache_dir=Path(spec.cache_dir),
    )
    assert corpus is not None
    side, freeze = work.split()
    with tempfile.TemporaryDirectory() as folder:
        run = _ours if side == "ours" else _trainer
        return {"seconds": round(run(spec, corpus, Path(folder), freeze), 3)}


def _ours(spec: Spec, corpus: Corpus, folder: Path, freeze: str) -> float:
    # The weights and tokens are shared by the rounds; what is kept of the frozen layers is not.
    made = payload_of(spec, corpus, folder, freeze=freeze, epochs=EPOCHS)
    payload = made.model_copy(update={"cache_dir": folder / "cache"})
    if freeze == "head_only":
        config = payload.train.model_copy(update={"epochs": HEAD_EPOCHS})
        started_s = time.perf_counter()
        run_rank(payload.model_copy(update={"train": config}))
        return time.perf_counter() - started_s
    run_rank(payload)
    return _median_epoch_s(step_times_ms(folder), EPOCHS)


def _median_epoch_s(times_ms: list[int], epochs: int) -> float:
    """The median of all epochs but the first, in which caches are built."""
    per_epoch = len(times_ms) // epochs
    ends = times_ms[per_epoch - 1 :: per_epoch]
    return statistics.median(b - a for a, b in itertools.pairwise(ends)) / 1000


def _trainer(spec: Spec, corpus: Corpus, folder: Path, freeze: str) -> float:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.times_ms: list[int] = []

        def on_step_end(self, *_: object, **__: object) -> None:
            self.times_ms.append(round(time.perf_counter() * 1000))

    clock = Clock()
    epochs = HEAD_EPOCHS if freeze == "head_only" else EPOCHS
    settings = {"num_train_epochs": epochs}
    made = trainer(replace(spec, side="best"), corpus, folder, settings=settings, callbacks=[clock])
    if freeze == "head_only":
        made.model.transformer.requires_grad_(False)
        started_s = time.perf_counter()
        made.train()
        return time.perf_counter() - started_s
    made.train()
    return _median_epoch_s(clock.times_ms, epochs)


if __name__ == "__main__":
    main()
