"""What a text of n tokens costs, n from 64 to 1,024: forward, backward and update timed apart.

    python benchmarks/length_cost.py [--rounds 5]

A GPT-2 classifier (shape S, pooling by attention) reads batches of 4,096 tokens, so a longer text
means fewer of them. Seconds per text are fitted as a n + b n^2, no coefficient below 0: the linear
part is every product with a weight, the quadratic one attention. The update does not depend on n;
it is timed beside. Prediction is the forward pass as `gpt2cls.predict` makes it. Lengths take
turns.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Report
from scipy.optimize import nnls

from gpt2cls.config import ModelConfig, TrainConfig
from gpt2cls.data.tasks import Task
from gpt2cls.model.classifier import Classifier, build_classifier
from gpt2cls.model.packed import PackedGPT2, can_pack
from gpt2cls.training.freezing import ever_trainable
from gpt2cls.training.optim import new_optimizer, set_lr
from gpt2cls.training.precision import autocast, pick_precision

LENGTHS = (64, 128, 256, 512, 1024)
TOKENS, VOCABULARY = 4096, 8000
CPU = torch.device("cpu")
PARTS = ("forward", "backward", "update", "predict")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    report = Report("length_cost", f"python benchmarks/length_cost.py --rounds {options.rounds}")
    report.machine()
    model, config = new_model(), TrainConfig()
    optimizer = new_optimizer(model, config, ever_trainable(model, "none", 1), CPU)
    set_lr(optimizer, 1e-4)
    seconds: dict[str, dict[int, list[float]]] = {p: {n: [] for n in LENGTHS} for p in PARTS}
    for turn in range(options.rounds + 1):
        for n in LENGTHS if turn % 2 else LENGTHS[::-1]:
            for part, value in once(model, optimizer, n).items():
                if turn:  # the first is to warm up
                    seconds[part][n].append(value)
    report.document["seconds_per_batch"] = seconds
    rows = [row(n, seconds) for n in LENGTHS]
    report.table(("tokens n", *(f"{part}, ms per text" for part in PARTS)), rows)
    head = ("part", "linear, us per token", "quadratic, ns per token^2", "quadratic share at 512")
    fitted = [fit(part, seconds[part], report) for part in PARTS if part != "update"]
    report.table((*head, "at 1,024", "R^2"), fitted)
    report.write()


def new_model() -> Classifier:
    model = build_classifier(
        ModelConfig(backbone="gpt2-mini", pooling="attention", dropout=0.1),
        Task("single_label", ("a", "b", "c", "d"), False),
        vocab_size=VOCABULARY,
        pad_id=0,
        max_length=max(LENGTHS),
        seed=0,
        base_dir=Path(),
    )
    return model.train()


def once(model: Classifier, optimizer: torch.optim.Optimizer, n: int) -> dict[str, float]:
    """Seconds of each part for one batch of `TOKENS` tokens in texts of n."""
    num_texts = TOKENS // n
    draw = torch.Generator().manual_seed(n)
    batch = (
        torch.randint(VOCABULARY, (num_texts, n), generator=draw),
        torch.full((num_texts,), n),
        torch.zeros(num_texts),
    )
    labels = torch.randint(4, (num_texts,), generator=draw)
    precision = pick_precision("auto", CPU)[0]
    clock = [time.perf_counter()]
    with autocast(precision, CPU):
        loss = torch.nn.functional.cross_entropy(model(*batch), labels)
    clock.append(time.perf_counter())
    loss.backward()  # type: ignore[no-untyped-call]
    clock.append(time.perf_counter())
    optimizer.step()
    clock.append(time.perf_counter())
    optimizer.zero_grad(set_to_none=True)
    asked = as_asked(model)
    started_s = time.perf_counter()
    with torch.inference_mode():
        asked(*batch)
    taken = dict(zip(PARTS, np.diff(clock).tolist(), strict=False))
    model.train()
    return {**taken, "predict": time.perf_counter() - started_s}


def as_asked(model: Classifier) -> Classifier:
    """As `gpt2cls.predict` asks it: in bf16 where the processor has it."""
    model.eval()
    if pick_precision("auto", CPU)[0] != "bf16" or not can_pack(model.backbone):
        return model
    packed: Any = PackedGPT2(model.backbone)
    return Classifier(packed, model.pooling, model.head).eval()


def row(n: int, seconds: dict[str, dict[int, list[float]]]) -> list[str]:
    per_text = [1000 * statistics.median(seconds[part][n]) * n / TOKENS for part in PARTS[:2]]
    update = 1000 * statistics.median(seconds["update"][n])
    asked = 1000 * statistics.median(seconds["predict"][n]) * n / TOKENS
    return [str(n), *(f"{ms:.2f}" for ms in per_text), f"{update:.2f} per step", f"{asked:.2f}"]


def fit(part: str, seconds: dict[int, list[float]], report: Report) -> list[str]:
    """a n + b n^2 by least squares on the relative error, so that no length rules the others."""
    n = np.array(LENGTHS, float)
    y = np.array([statistics.median(seconds[k]) * k / TOKENS for k in LENGTHS])
    (a, b), _ = nnls(np.stack([n, n**2], axis=1) / y[:, None], np.ones(len(n)))
    fitted = a * n + b * n**2
    r2 = 1 - float(((y - fitted) ** 2).sum() / ((y - y.mean()) ** 2).sum())
    report.document[f"fit_{part}"] = {"linear_s": a, "quadratic_s": b, "r2": r2}
    shares = [b * k / (a + b * k) for k in (512, 1024)]
    return [part, f"{a * 1e6:.2f}", f"{b * 1e9:.2f}", *(f"{s:.0%}" for s in shares), f"{r2:.4f}"]


if __name__ == "__main__":
    main()
