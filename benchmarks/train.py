"""Training speed against the Hugging Face Trainer, like for like.

    pip install -e '.[bench]'
    GPT2CLS_DATA=<folder with ag_news and imdb> python benchmarks/train.py [--only S-ag]

Each row of the table is one shape on one set; the arms take turns, each in a process of its own.
Both sides have the same rows, batch size, dropout (0.1) and peak learning rate, and count real
tokens only. `tutorial` is the Trainer with its tutorial's settings, in fp32; `best` groups rows by
length and has the fused AdamW (and `torch.compile` with --compiled). `ours` and `best` compute in
what `train.precision: auto` picks on this machine, unless --precision says otherwise.
"""

import argparse
import json
import sys
import tempfile
from typing import Any

import torch
from measuring import Report, median, paired_ratio, run_arm, spread, take_turns
from sides import SHAPES, Spec, flops_per_token, measure

from gpt2cls.training.precision import pick_precision

ROWS: dict[str, dict[str, Any]] = {
    "S-ag": {"shape": "S", "corpus": "ag_news", "rows": 512, "max_length": 128},
    "M-ag": {"shape": "M", "corpus": "ag_news", "rows": 256, "max_length": 128},
    "small-ag": {"shape": "small", "corpus": "ag_news", "rows": 48, "max_length": 128},
    "S-bbc": {"shape": "S", "corpus": "bbc", "rows": 48, "max_length": 512},
    "S-imdb": {"shape": "S", "corpus": "imdb", "rows": 32, "max_length": 1024},
}
SIDES = {"ours-64": ("ours", 64), "best-64": ("best", 64), "ours-16": ("ours", 16)}
SIDES |= {"tutorial-16": ("tutorial", 16), "best-16": ("best", 16)}
BATCHES = {"small-ag": 16, "S-bbc": 16, "S-imdb": 16}
"""Where 64 rows would be most of what is trained on."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=ROWS, help="may be given again")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--compiled", action="store_true", help="torch.compile for `best`")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        print(json.dumps(measure(Spec(**json.loads(options.arm)))))
        return
    report = Report("train", f"python benchmarks/train.py --rounds {options.rounds}")
    report.machine()
    with tempfile.TemporaryDirectory() as cache_dir:
        for name in options.only or ROWS:
            print(name, flush=True)
            outcomes = compare(name, options, cache_dir)
            report.document[name] = outcomes
            head = ("set", "side", "batch", "precision", "real tokens/s", "MFU", "peak MB")
            report.table((*head, "ours / this"), table_rows(name, outcomes, report))
            report.write()  # now: the next set takes minutes


def compare(name: str, options: argparse.Namespace, cache_dir: str) -> dict[str, Any]:
    arms = {}
    for arm, (side, batch_size) in SIDES.items():
        if batch_size > BATCHES.get(name, 64):
            continue
        compiled = options.compiled and side == "best"
        spec = Spec(
            side=side,
            batch_size=batch_size,
            compiled=compiled,
            precision=precision_of(side, options.precision),
            cache_dir=cache_dir,
            **ROWS[name],
        )
        arms[arm] = lambda spec=spec: run_arm(sys.argv[0], spec.to_json())  # type: ignore[misc]
    return take_turns(arms, options.rounds)


def precision_of(side: str, setting: str) -> str:
    return "fp32" if side == "tutorial" else pick_precision(setting, torch.device("cpu"))[0]


def table_rows(name: str, outcomes: dict[str, Any], report: Report) -> list[list[str]]:
    num_rows, shape = ROWS[name]["rows"], ROWS[name]["shape"]
    layers, width, _ = SHAPES[shape]
    rows = []
    for arm, found in outcomes.items():
        side, batch_size = SIDES[arm]
        ours = outcomes[f"ours-{batch_size}"]
        flops = flops_per_token(shape, found[0]["tokens"] / num_rows)
        precision = found[0]["precision"]
        mfu = median(found, "tokens_per_s") * flops / 1e9 / report.peak_gflops(precision)
        ratio = paired_ratio(ours, found, "tokens_per_s")
        rows.append(
            [
                f"{name} ({layers} x {width})",
                side,
                str(batch_size),
                precision,
                spread(found, "tokens_per_s"),
                f"{mfu:.1%}",
                f"{median(found, 'peak_mb'):,.0f}",
                "" if side == "ours" else f"{ratio:.2f}",
            ]
        )
    return rows


if __name__ == "__main__":
    main()
