"""What the attention pooling costs beside the others: parameters, and time by the length of a text.

    python benchmarks/attention_cost.py [--backbone gpt2-mini] [--lengths 64 128 256 512 1024]

For each length a batch of random tokens goes forward (as in prediction), forward and backward (as
in training), and through AdamW, in time of the processor, with the poolings taking turns.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Report

from gpt2cls.config import ModelConfig
from gpt2cls.data.tasks import Task
from gpt2cls.model.classifier import Classifier, build_classifier
from gpt2cls.model.vocabulary import num_parameters

POOLINGS = ("last", "mean", "attention")
STAGES = ("prediction", "forward", "backward", "update")
TASK = Task("single_label", ("a", "b", "c", "d"), False)
VOCABULARY = 8_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="gpt2-mini")
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report = Report(
        "attention_cost",
        f"python benchmarks/attention_cost.py --backbone {options.backbone} "
        f"--rounds {options.rounds}",
    )
    report.machine()
    models = {pooling: classifier(pooling, options) for pooling in POOLINGS}
    parts = {
        pooling: {name: num_parameters(part) for name, part in model.named_children()}
        for pooling, model in models.items()
    }
    report.document |= {"parameters": parts, "ms": (times := measure(models, options))}
    report.table(
        ["pooling", *parts["last"]],
        [[pooling, *(f"{size:,}" for size in sizes.values())] for pooling, sizes in parts.items()],
    )
    tell(report, times, options)
    report.write()


def classifier(pooling: Any, options: argparse.Namespace) -> Classifier:
    config = ModelConfig(backbone=options.backbone, pooling=pooling, heads=options.heads)
    sizes = {"vocab_size": VOCABULARY, "pad_id": 0, "max_length": max(options.lengths)}
    return build_classifier(config, TASK, **sizes, seed=0, base_dir=Path())


def measure(
    models: dict[str, Classifier], options: argparse.Namespace
) -> dict[str, dict[int, dict[str, float]]]:
    """Milliseconds by pooling, length and stage: the medians of the rounds."""
    optimizers = {
        name: torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        for name, model in models.items()
    }
    found: dict[str, dict[int, dict[str, float]]] = {name: {} for name in models}
    for length in options.lengths:
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in models}
        for turn in range(options.rounds + 1):
            for name in list(models) if turn % 2 else reversed(list(models)):
                once = one_round(models[name], optimizers[name], length, options.rows)
                if turn:  # the first one warms up
                    rounds[name].append(once)
        for name, times in rounds.items():
            found[name][length] = {
                stage: statistics.median(one[stage] for one in times) for stage in STAGES
            }
        print(length, {name: found[name][length] for name in models}, flush=True)
    return found


def one_round(
    model: Classifier, optimizer: torch.optim.Optimizer, length: int, num_rows: int
) -> dict[str, float]:
    batch = (
        torch.randint(VOCABULARY, (num_rows, length)),
        torch.full((num_rows,), length),
        torch.zeros(num_rows),
    )
    marks = [time.process_time()]
    with torch.inference_mode():
        model.eval()(*batch)
    marks.append(time.process_time())
    model.train()
    loss = model(*batch).square().mean()
    marks.append(time.process_time())
    loss.backward()
    marks.append(time.process_time())
    optimizer.step()
    marks.append(time.process_time())
    optimizer.zero_grad()
    return dict(zip(STAGES, (np.diff(marks) * 1000).tolist(), strict=True))


def tell(report: Report, times: Any, options: argparse.Namespace) -> None:
    report.add(
        f"{options.backbone}, {options.rows} texts a batch, fp32, {options.threads} thread(s), "
        f"medians of {options.rounds} rounds; ms with attention (share above pooling last).",
    )
    rows = []
    for length in options.lengths:
        ours, plain = times["attention"][length], times["last"][length]
        cells = [f"{ours[stage]:,.1f} ({ours[stage] / plain[stage] - 1:+.0%})" for stage in STAGES]
        rows.append([str(length), *cells])
    report.table(["tokens", *STAGES], rows)


if __name__ == "__main__":
    main()
