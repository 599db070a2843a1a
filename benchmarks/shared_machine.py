"""A training step beside other people's processes: GNU OpenMP's own spinning, and ours.

    python benchmarks/shared_machine.py [--rounds 3]

Each arm trains a language model of 4 layers x 256 with as many threads as there are cores, in a
process of its own, beside 0, 1 and as many processes as cores that only compute. `own` is what
GNU OpenMP does by itself, `ours` what the command line sets (`jobs.cli.SPINS`).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

import torch
from measuring import Outcome, Report, paired_ratio, run_arm, spread, take_turns

from gpt2cls.config import ModelConfig
from gpt2cls.model.language import build_language_model
from gpt2cls.training.allocator import keep_freed_memory
from jobs.cli import SPINS

ROWS, LENGTH, VOCABULARY, SECONDS = 16, 64, 8_000, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        print(json.dumps(measure()))
        return
    command = f"python benchmarks/shared_machine.py --rounds {options.rounds}"
    report = Report("shared_machine", command)
    report.machine()
    rows = []
    for others in sorted({0, 1, os.cpu_count() or 1}):
        arms = {name: lambda n=others, s=spins: beside(n, s) for name, spins in ARMS.items()}
        outcomes = take_turns(arms, options.rounds)
        report.document[f"{others} others"] = outcomes
        ratio = paired_ratio(outcomes["own"], outcomes["ours"], "step_ms")
        rows.append(
            [str(others), *(spread(outcomes[name], "step_ms") for name in ARMS), f"{ratio:.2f}"]
        )
    report.table(("other processes", "own, ms", "ours, ms", "own / ours"), rows)
    report.write()


ARMS = {"own": None, "ours": SPINS}


def beside(others: int, spins: int | None) -> Outcome:
    """A measurement while so many processes take a core each."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(others)]
    os.environ.pop("GOMP_SPINCOUNT", None)
    if spins is not None:
        os.environ["GOMP_SPINCOUNT"] = str(spins)
    try:
        return run_arm(sys.argv[0], {})
    finally:
        for process in busy:
            process.kill()
            process.wait()


def measure() -> dict[str, Any]:
    keep_freed_memory()
    torch.set_num_threads(os.cpu_count() or 1)
    config = ModelConfig(backbone="gpt2-mini", dropout=0.1)
    sizes = {"vocab_size": VOCABULARY, "pad_id": 0, "max_length": LENGTH, "base_dir": None}
    model = build_language_model(config, seed=0, **sizes).train()  # type: ignore[arg-type]
    tokens_BT = torch.randint(VOCABULARY, (ROWS, LENGTH + 1))
    lengths_B = torch.full((ROWS,), LENGTH)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss_sum(tokens_BT[:, :-1], lengths_B, tokens_BT[:, 1:].contiguous())
        loss.backward()
        model.zero_grad()

    for _ in range(3):
        step()
    num_steps, started_s = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started_s) < SECONDS:
        step()
        num_steps += 1
    return {"step_ms": round(1000 * seconds / num_steps, 1)}


if __name__ == "__main__":
    main()
