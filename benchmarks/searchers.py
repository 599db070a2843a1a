"""Whether searchers that learn find better settings than chance with as many trials, on real text.

    python benchmarks/searchers.py [--seeds 5] [--trials 12]

First a function: the smallest value of Hartmann's with six arguments that random draws and Optuna's
estimator find. Then texts.
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

import numpy as np
from measuring import Outcome, Report, run_arm, take_turns
from scipy import stats

from jobs.proposals import new_proposer
from tune_spaces import read_space

SPACE: dict[str, Any] = {
    "train.lr": {"log_uniform": [1.0e-5, 1.0e-1]},
    "train.weight_decay": {"log_uniform": [1.0e-3, 1.0]},
    "model.dropout": {"uniform": [0.0, 0.5]},
    "train.label_smoothing": {"uniform": [0.0, 0.3]},
}
SIX = ("train.lr", "train.weight_decay", "train.label_smoothing")
SIX += ("model.temperature", "model.dropout", "model.prob_floor")
"""Fields that take any number between 0 and 1: a space has no others."""
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
    report.add(
        "", "Hartmann's function of six arguments, least value found (the least is -3.3224):"
    )
    report.table(("trials", "random", "optuna", "p (paired t)"), function_rows(options.seeds))
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


def function_rows(seeds: int) -> list[list[str]]:
    rows = []
    for trials in (12, 24, 60):
        found = {
            searcher: [least_found(searcher, seed, trials) for seed in range(seeds)]
            for searcher in ("random", "optuna")
        }
        means = [f"{statistics.mean(v):.3f} +- {statistics.stdev(v):.3f}" for v in found.values()]
        rows.append([str(trials), *means, f"{stats.ttest_rel(*found.values()).pvalue:.3f}"])
    return rows


def least_found(searcher: str, seed: int, trials: int) -> float:
    """With two points under way at a time, as on two cores."""
    space = read_space({field: {"uniform": [0.001, 0.999]} for field in SIX})
    proposer = new_proposer(searcher, space, {}, seed=seed, mode="min")
    values: list[float] = []
    under_way: list[tuple[int, dict[str, Any]]] = []
    for index in range(trials):
        under_way.append((index, dict(proposer.propose(index))))
        if len(under_way) == 2 or index == trials - 1:
            done, point = under_way.pop(0)
            values.append(hartmann([point[field] for field in SIX]))
            proposer.learn(done, point, values[-1])
    return min(values)


def hartmann(x: list[float]) -> float:
    """Source: Dixon and Szego 1978, "The global optimization problem: an introduction"."""
    alpha = np.array([1.0, 1.2, 3.0, 3.2])
    a = [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14]]
    a += [[3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
    p = [[1312, 1696, 5569, 124, 8283, 5886], [2329, 4135, 8307, 3736, 1004, 9991]]
    p += [[2348, 1451, 3522, 2883, 3047, 6650], [4047, 8828, 8732, 5743, 1091, 381]]
    squares = np.array(a) * (np.array(x) - np.array(p) * 1e-4) ** 2
    return float(-(alpha * np.exp(-squares.sum(axis=1))).sum())


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
