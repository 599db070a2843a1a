"""Training speed against the Hugging Face Trainer, like for like.

    pip install -e '.[bench]'
    GPT2CLS_DATA=<folder with ag_news and imdb> python benchmarks/train.py [--only S-ag]

Each row of the table is one shape on one set; the arms take turns, each in a process of its own.
Both sides have the same rows, batch size, dropout (0.1), precision and peak learning rate, and
count real tokens only. `tutorial` is the Trainer with its tutorial's settings; `best` groups
rows by length and has the fused AdamW (and `torch.compile` with --compiled).
"""

import argparse
import json
import sys
import tempfile
from typing import Any

from measuring import Report, median, paired_ratio, run_arm, spread, take_turns
from sides import SHAPES, Spec, flops_per_token, measure

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
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
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
            more = {"precision": options.precision, "cache_dir": cache_dir}
            outcomes = compare(name, options, more)
            report.document[name] = outcomes
            head = ("set", "side", "batch", "real tokens/s", "MFU", "peak MB", "ours / this")
            report.table(head, table_rows(name, outcomes, report.peak_gflops))
            report.write()  # now: the next set takes minutes


def compare(name: str, options: argparse.Namespace, more: dict[str, Any]) -> dict[str, Any]:
    arms = {}
    for arm, (side, batch_size) in SIDES.items():
        if batch_size > BATCHES.get(name, 64):
            continue
        compiled = options.compiled and side == "best"
        spec = Spec(side=side, batch_size=batch_size, compiled=compiled, **ROWS[name], **more)
        arms[arm] = lambda spec=spec: run_arm(sys.argv[0], spec.to_json())  # type: ignore[misc]
    return take_turns(arms, options.rounds)


def table_rows(name: str, outcomes: dict[str, Any], peak_gflops: float) -> list[list[str]]:
    num_rows, shape = ROWS[name]["rows"], ROWS[name]["shape"]
    layers, width, _ = SHAPES[shape]
    rows = []
    for arm, found in outcomes.items():
        side, batch_size = SIDES[arm]
        ours = outcomes[f"ours-{batch_size}"]
        flops = flops_per_token(shape, found[0]["tokens"] / num_rows)
        mfu = median(found, "tokens_per_s") * flops / 1e9 / peak_gflops
        ratio = paired_ratio(ours, found, "tokens_per_s")
        rows.append(
            [
                f"{name} ({layers} x {width})",
                side,
                str(batch_size),
                spread(found, "tokens_per_s"),
                f"{mfu:.1%}",
                f"{median(found, 'peak_mb'):,.0f}",
                "" if side == "ours" else f"{ratio:.2f}",
            ]
        )
    return rows


if __name__ == "__main__":
    main()
