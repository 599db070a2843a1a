"""Whether searchers that learn find better settings than chance with as many trials, on real text.

    python benchmarks/searchers.py [--seeds 5] [--trials 12]

Every sweep searches the learning rate, weight decay, dropout and label smoothing of a small network
on the built-in BBC news; what counts is the best trial's validation accuracy. The sweeps of a seed
begin with the same split and weights. Population based training gets as many trials at once, each
trained as long as the others.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import Outcome, Report, run_arm, take_turns
from scipy import stats

SPACE: dict[str, Any] = {
    "train.lr": {"log_uniform": [1.0e-5, 1.0e-1]},
    "train.weight_decay": {"log_uniform": [1.0e-3, 1.0]},
    "model.dropout": {"uniform": [0.0, 0.5]},
    "train.label_smoothing": {"uniform": [0.0, 0.3]},
}
SIDES: dict[str, dict[str, Any]] = {
    "random": {"searcher": "random", "scheduler": "none"},
    "optuna": {"searcher": "optuna", "scheduler": "none"},
    "pbt": {"searcher": "random", "scheduler": "pbt"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        print(json.dumps(_sweep(**json.loads(options.arm))))
        return
    command = f"python benchmarks/searchers.py --seeds {options.seeds} --trials {options.trials}"
    report = Report("searchers", command)
    report.machine()
    outcomes: dict[str, list[Outcome]] = {side: [] for side in SIDES}
    for seed in range(options.seeds):
        arms = {
            side: lambda side=side, seed=seed: run_arm(
                sys.argv[0], {"side": side, "seed": seed, "trials": options.trials}
            )
            for side in SIDES
        }
        for side, found in take_turns(arms, 1).items():
            outcomes[side] += found
    report.document |= {"outcomes": outcomes}
    chance = [outcome["best"] for outcome in outcomes["random"]]
    rows = []
    for side, found in outcomes.items():
        values = [outcome["best"] for outcome in found]
        gains = [a - b for a, b in zip(values, chance, strict=True)]
        sure = "" if side == "random" else f"{stats.ttest_rel(values, chance).pvalue:.2f}"
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        rows.append(
            [
                side,
                f"{statistics.mean(values):.4f} +- {spread:.4f}",
                f"{statistics.mean(gains):+.4f}",
                sure,
                f"{statistics.mean(outcome['seconds'] for outcome in found):.0f}",
            ]
        )
    head = ("", "best accuracy, mean +- deviation", "against random", "p (paired t)", "seconds")
    report.table(head, rows)
    report.write()


def _sweep(side: str, seed: int, trials: int) -> Outcome:
    job = {
        "kind": "sweep",
        "name": "searchers",
        "data": {"train": "bbc-news", "max_length": 48},
        "model": {"backbone": "gpt2-tiny", "pooling": "mean"},
        "train": {"epochs": 5, "batch_size": 32, "seed": seed},
        "space": SPACE,
        "search": {"trials": trials, "seed": seed} | SIDES[side],
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sweep.yaml"
        path.write_text(json.dumps(job))
        program = [sys.executable, "-m", "jobs"]
        environment = os.environ | {"GPT2CLS_HOME": f"{folder}/home"}
        done = subprocess.run(
            [*program, "run", str(path), "--json"],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        subprocess.run([*program, "cluster", "down"], env=environment, capture_output=True)
        document = json.loads(done.stdout)
    return {
        "best": max(trial["metric"] for trial in document["trials"] if trial["metric"] is not None),
        "seconds": document["seconds"]["trials"],
    }


if __name__ == "__main__":
    main()
