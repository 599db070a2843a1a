"""Sixteen head-only jobs as one program, against the same jobs one after another.

    python benchmarks/heads.py [--pairs 3] [--members 16] [--epochs 10] [--backbone gpt2-mini]

Both sides run in this process over the same texts of bbc-news, with pooled vectors that were
computed beforehand; their order changes from pair to pair. Where others use the machine, look at
the processor time, which leaves out the wait for the disk. Each job has settings and a seed of its
own (`--one-seed`: the same seed, as the trials of a sweep have it). The time of a job is that of
all it does from its payload to its best weights. Prints the median ratio, what it is with the
pooled vectors counted, and the largest differences between the results.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Report

from gpt2cls.config import DataConfig, ModelConfig, TrainConfig
from gpt2cls.training.payload import RankPayload

SCHEDULES = ("linear", "cosine", "constant", "slanted_triangular")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--backbone", default="gpt2-mini")
    parser.add_argument("--one-seed", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options)


def measure(folder: Path, options: argparse.Namespace) -> None:
    from gpt2cls.training.session import run_rank

    payloads = prepare_payloads(folder, options)
    build_s = seconds(lambda: run_rank(payloads[0]))
    shutil.rmtree(payloads[0].job_dir)
    single_s = seconds(lambda: run_rank(payloads[0]))
    build_s -= single_s
    sides = {"alone": run_alone, "together": run_together}
    ratios: list[tuple[float, float]] = []
    times: dict[str, tuple[float, float]] = {}
    for pair in range(options.pairs):
        for name in sides if pair % 2 == 0 else reversed(sides):
            placed = [in_folder(payload, folder / name) for payload in payloads]
            shutil.rmtree(folder / name, ignore_errors=True)
            cpu_s = time.process_time()
            wall_s = seconds(lambda name=name, placed=placed: sides[name](placed))  # type: ignore[misc]
            times[name] = wall_s, time.process_time() - cpu_s
        (alone, alone_cpu), (together, together_cpu) = times["alone"], times["together"]
        ratios.append((alone / together, alone_cpu / together_cpu))
        print(
            f"pair {pair + 1}: alone {alone:.2f} s, together {together:.2f} s, "
            f"ratio {ratios[-1][0]:.1f}, of processor time {ratios[-1][1]:.1f}",
            flush=True,
        )
    members = len(payloads)
    steps = num_steps(folder / "alone" / payloads[0].job_dir.name)
    wall, cpu = (statistics.median(values) for values in zip(*ratios, strict=True))
    report = Report("heads", f"python benchmarks/heads.py --pairs {options.pairs}")
    report.machine()
    report.add(
        f"median ratio {wall:.1f}, of processor time {cpu:.1f} ({members} jobs of {steps} steps);",
        f"alone {alone:.2f} s, together {together:.2f} s in the last pair.",
        f"The pooled vectors take {build_s:.2f} s; with the times of the last pair",
        f"the ratio is {(alone + build_s) / (together + build_s):.1f} with them computed once for",
        f"each side, {(alone + members * build_s) / (together + build_s):.1f} where each job alone",
        "computes its own.",
        "",
    )
    report.add(*differences(folder, payloads))
    report.document |= {"ratios": ratios, "pooled_vectors_s": build_s}
    report.write()


def seconds(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


def run_alone(payloads: list[RankPayload]) -> None:
    from gpt2cls.training.session import run_rank

    for payload in payloads:
        assert run_rank(payload) == "finished"


def run_together(payloads: list[RankPayload]) -> None:
    from gpt2cls.training.heads import run_heads

    assert {outcome.reason for outcome in run_heads(payloads)} == {"finished"}


def in_folder(payload: RankPayload, folder: Path) -> RankPayload:
    return payload.model_copy(update={"job_dir": folder / payload.job_dir.name})


def prepare_payloads(folder: Path, options: argparse.Namespace) -> list[RankPayload]:
    from gpt2cls.data.encode import encode_split
    from gpt2cls.data.prepare import prepare
    from gpt2cls.data.tokenizer_source import get_tokenizer
    from gpt2cls.model.backbone import build_backbone, save_backbone

    prepared = prepare(DataConfig(train="bbc-news"), base_dir=folder, seed=0)
    model = ModelConfig(backbone=options.backbone)
    tokenizer = get_tokenizer(model, prepared.train, cache_dir=folder, base_dir=folder)
    shared: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size,
        "pad_id": tokenizer.pad_id,
        "max_length": options.max_length,
    }
    # On disk, so that the pooled vectors do not depend on the seeds of the jobs.
    torch.manual_seed(0)
    save_backbone(build_backbone(model, **shared, base_dir=folder), folder / "backbone")
    for name in ("train", "validation"):
        split = prepared.splits[name]
        np.save(folder / f"{name}.npy", split.labels)
        shared[f"{name}_labels"] = folder / f"{name}.npy"
        shared[f"{name}_tokens"] = encode_split(
            split, tokenizer, max_length=options.max_length, cache_dir=folder
        )
    return [
        RankPayload(
            model=ModelConfig(
                backbone=str(folder / "backbone"),
                pooling="mean",
                dropout=0.1 * (i % 5),
                temperature=(0.5, 1.0)[i % 2],
            ),
            train=TrainConfig(
                freeze="last_layer",
                epochs=options.epochs,
                batch_size=options.batch_size,
                lr=1e-3 * 1.3**i,
                weight_decay=(0.0, 0.1, 1.0)[i % 3],
                schedule=SCHEDULES[i % 4],  # type: ignore[arg-type]
                clip=(None, 1.0)[i % 2],
                label_smoothing=(0.0, 0.1)[i // 2 % 2],
                seed=0 if options.one_seed else i,
            ),
            task=prepared.task.to_json(),
            job_dir=folder / "first" / f"job-{i}",
            base_dir=folder,
            cache_dir=folder / "cache",
            threads=options.threads,
            device="cpu",
            **shared,
        )
        for i in range(options.members)
    ]


def events(job_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = (job_dir / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def num_steps(job_dir: Path) -> int:
    return int(events(job_dir, "start")[0]["num_steps"])


def differences(folder: Path, payloads: list[RankPayload]) -> list[str]:
    """The largest over all jobs: of the best weights, training losses and evaluations."""
    from gpt2cls.training.checkpoint import read_whole

    largest: dict[str, float] = {}

    def note(name: str, difference: float) -> None:
        largest[name] = max(difference, largest.get(name, 0.0))

    for payload in payloads:
        alone, together = (folder / side / payload.job_dir.name for side in ("alone", "together"))
        ours, theirs = (read_whole(job_dir / "best") for job_dir in (alone, together))
        note("step of the best weights", abs(ours.step - theirs.step))
        others = theirs.tensors("model")
        for name, tensor in ours.tensors("model").items():
            note("best weights", float((tensor - others[name]).abs().max()))
        for kind in ("step", "eval"):
            for a, b in zip(events(alone, kind), events(together, kind), strict=True):
                for name in set(a["metrics"]) - {"train/tokens_per_second"}:
                    note(name, abs(a["metrics"][name] - b["metrics"][name]))
    return [
        f"- largest difference, {name}: {difference:.1e}"
        for name, difference in sorted(largest.items())
    ]


if __name__ == "__main__":
    main()
