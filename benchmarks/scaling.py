"""Two processes with one thread each against one process with two, same global batch.

    python benchmarks/scaling.py [--rounds 5] [--shape S]

Real tokens per second of the second of two epochs on BBC News or, with $GPT2CLS_DATA, AG News.
The two processes exchange gradients over gloo, as under Ray Train, but without its start-up.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from corpora import open_corpus
from measuring import Outcome, Report, median, paired_ratio, peak_memory_mb, spread, take_turns
from sides import Spec, payload_of, step_times_ms

from gpt2cls.data.encode import open_tokens
from gpt2cls.training.session import run_rank


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", default="S", choices=("S", "M"))
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        rank_main(json.loads(options.rank))
        return
    report = Report("scaling", f"python benchmarks/scaling.py --rounds {options.rounds}")
    report.machine()
    corpus = "ag_news" if "GPT2CLS_DATA" in os.environ else "bbc"
    with tempfile.TemporaryDirectory() as cache_dir:
        spec = Spec(
            side="ours",
            shape=options.shape,
            corpus=corpus,
            rows=options.rows,
            max_length=128,
            batch_size=options.batch_size,
            precision="auto",
            cache_dir=cache_dir,
        )
        arms = {
            "1 process, 2 threads": lambda: run_ranks(spec, world=1, threads=2),
            "2 processes, 1 thread": lambda: run_ranks(spec, world=2, threads=1),
            "1 process, 1 thread": lambda: run_ranks(spec, world=1, threads=1),
        }
        outcomes = take_turns(arms, options.rounds)
    one = outcomes["1 process, 2 threads"]
    report.document |= {"spec": spec.to_json() | {"cache_dir": ""}, "outcomes": outcomes}
    rows = [
        [
            name,
            spread(found, "tokens_per_s"),
            f"{paired_ratio(found, one, 'tokens_per_s'):.3f}",
            f"{median(found, 'peak_mb'):,.0f}",
        ]
        for name, found in outcomes.items()
    ]
    report.add("", f"{options.shape} on {corpus}, global batch {options.batch_size}:")
    report.table(("", "real tokens/s", "of one process with 2 threads", "peak MB of rank 0"), rows)
    report.write()


def run_ranks(spec: Spec, *, world: int, threads: int) -> Outcome:
    """Train with `world` processes; what rank 0 measured."""
    with tempfile.TemporaryDirectory() as folder:
        asked = {"spec": spec.to_json(), "world": world, "threads": threads, "dir": folder}
        ranks = [
            subprocess.Popen(
                [sys.executable, sys.argv[0], "--rank", json.dumps(asked | {"rank": rank})],
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            )
            for rank in range(world)
        ]
        outputs = [process.communicate()[0] for process in ranks]
        assert all(process.returncode == 0 for process in ranks), outputs
    return json.loads(outputs[0].splitlines()[-1])  # type: ignore[no-any-return]


def rank_main(asked: dict[str, Any]) -> None:
    spec, folder = Spec(**asked["spec"]), Path(asked["dir"])
    corpus = open_corpus(
        spec.corpus,
        rows=spec.rows,
        test_rows=spec.batch_size,
        max_length=spec.max_length,
        cache_dir=Path(spec.cache_dir),
    )
    assert corpus is not None
    payload = payload_of(spec, corpus, folder).model_copy(update={"threads": asked["threads"]})
    if asked["world"] > 1:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=asked["rank"],
            world_size=asked["world"],
        )
    run_rank(payload, rank=asked["rank"], world=asked["world"])
    if asked["rank"] == 0:
        times_ms = step_times_ms(folder)
        seconds = (times_ms[-1] - times_ms[len(times_ms) // 2 - 1]) / 1000
        num_tokens = int(open_tokens(corpus.train_tokens).lengths.sum())
        print(
            json.dumps(
                {
                    "tokens_per_s": round(num_tokens / seconds, 1),
                    "peak_mb": round(peak_memory_mb()),
                    "threads": torch.get_num_threads(),
                }
            )
        )
    if asked["world"] > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
