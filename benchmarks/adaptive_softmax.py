"""The adaptive softmax against a full one over thousands of labels: time, memory and accuracy.

    GPT2CLS_DATA=<folder with wikitext2> python benchmarks/adaptive_softmax.py [--rounds 3]

Two measurements, each arm in a process of its own and the arms taking turns. `head`: a training
step of the head alone (forward, backward, AdamW) over labels as frequent as 1 / rank. `train`:
which of the most frequent words of WikiText-2 comes after 32 others, as a classification by a
small GPT-2 from scratch; both heads see the same rows in the same order. Times are of the
processor, so that what else runs on the machine is left out.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from measuring import Outcome, Report, median, paired_ratio, run_arm, spread
from measuring import take_turns as in_turns

from gpt2cls.config import ModelConfig, TrainConfig
from gpt2cls.data.tasks import Split, Task
from gpt2cls.training.payload import RankPayload

HEADS = ("adaptive", "linear")
NUM_BEFORE = 32
MAX_LENGTH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arm")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--labels", type=int, default=5_000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[5_000, 20_000])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rows", type=int, default=12_000)
    parser.add_argument("--backbone", default="gpt2-tiny")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.arm:
        spec = json.loads(options.arm)
        print(json.dumps(head_arm(spec) if spec["kind"] == "head" else train_arm(spec)))
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options)


def measure(folder: Path, options: argparse.Namespace) -> None:
    report = Report("adaptive_softmax", f"python benchmarks/adaptive_softmax.py {_said(options)}")
    report.machine()
    shared = {"threads": options.threads, "rows": 64, "width": options.width}
    for size in options.sizes:
        outcomes = _take_turns({"kind": "head", "labels": size, **shared}, options.rounds)
        report.document[f"head of {size}"] = outcomes
        report.add(
            "",
            f"The head alone, {size:,} labels, 64 rows a step, {options.width} features, "
            f"{options.threads} thread(s); median of the rounds (lowest to highest):",
        )
        _table(report, outcomes, {"step_ms": "ms a step", "memory_mb": "MB above before"})
    payload = words_payload(folder, options)
    outcomes = _take_turns({"kind": "train", "payload": payload}, options.rounds)
    report.document["train"] = outcomes
    report.add(
        "",
        f"The word after 32 others out of the {options.labels:,} most frequent of WikiText-2: "
        f"{options.backbone}, {options.rows:,} rows, one epoch, batches of 64. By the frequencies "
        f"of the words alone the log loss is {payload['by_frequency']:.3f}.",
    )
    columns = {"step_ms": "ms a step", "log_loss": "log loss", "accuracy": "accuracy"}
    _table(report, outcomes, columns)
    report.write()


def _said(options: argparse.Namespace) -> str:
    sizes = " ".join(map(str, options.sizes))
    return f"--rounds {options.rounds} --rows {options.rows} --sizes {sizes}"


def _take_turns(spec: dict[str, Any], rounds: int) -> dict[str, list[Outcome]]:
    arms = {name: lambda name=name: run_arm(__file__, {**spec, "head": name}) for name in HEADS}  # type: ignore[misc]
    return in_turns(arms, rounds)


def _table(report: Report, outcomes: dict[str, list[Outcome]], columns: dict[str, str]) -> None:
    rows = [
        [name, f"{median(outcomes[name], 'parameters'):,.0f}"]
        + [spread(outcomes[name], key) for key in columns]
        for name in HEADS
    ]
    report.table(["head", "its parameters", *columns.values()], rows)
    for key, words in columns.items():
        ratio = paired_ratio(outcomes["linear"], outcomes["adaptive"], key)
        report.add(f"- {words}: the full softmax has {ratio:.2f} times the adaptive one's")


def head_arm(spec: dict[str, Any]) -> Outcome:
    """Steps of a head over features that are just numbers: their values cost nothing more."""
    torch.set_num_threads(spec["threads"])
    torch.manual_seed(0)
    head_steps(spec | {"labels": 20}, 3)  # what is loaded with the first step is loaded
    before_mb = memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    times_ms, num_parameters = head_steps(spec, 60)
    return {
        "step_ms": statistics.median(times_ms[10:]),
        "memory_mb": memory_mb("VmHWM") - before_mb,
        "parameters": num_parameters,
    }


def head_steps(spec: dict[str, Any], num_steps: int) -> tuple[list[float], int]:
    """The milliseconds of each step, and how many weights the head has."""
    from gpt2cls.model.head import build_head
    from gpt2cls.training.objectives import Objective

    num_labels, num_rows = spec["labels"], spec["rows"]
    shares = 1 / np.arange(1, num_labels + 1)
    task = Task("single_label", tuple(map(str, range(num_labels))), False)
    config = ModelConfig(head=spec["head"], temperature=1.0)
    head = build_head(config, task, spec["width"], (shares * 1e6).astype(np.int64)).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, fused=True)
    draw = np.random.default_rng(0)
    times_ms = []
    for _ in range(num_steps):
        labels_B = torch.from_numpy(draw.choice(num_labels, num_rows, p=shares / shares.sum()))
        features_BF = torch.randn(num_rows, spec["width"], requires_grad=True)
        started_s = time.process_time()
        loss = _loss(Objective(False), head, features_BF, labels_B)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times_ms.append((time.process_time() - started_s) * 1000)
    return times_ms, sum(parameter.numel() for parameter in head.parameters())


def memory_mb(what: str) -> float:
    """Resident memory of this process: now (VmRSS), or the most since `clear_refs` (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(what))


def _loss(objective: Any, head: Any, features_BF: torch.Tensor, labels_B: torch.Tensor) -> Any:
    from gpt2cls.data.batches import Batch

    tokens_BT = torch.empty(len(labels_B), 0, dtype=torch.int64)
    batch = Batch(tokens_BT, torch.ones(len(labels_B)), torch.zeros(len(labels_B)), labels_B)
    holder = torch.nn.Module()
    holder.head = head
    return objective.loss_of_features(holder, features_BF, batch)


def train_arm(spec: dict[str, Any]) -> Outcome:
    """One epoch; the time of a step leaves out the first ones."""
    from gpt2cls.training.session import run_rank

    given = {key: value for key, value in spec["payload"].items() if key != "by_frequency"}
    with tempfile.TemporaryDirectory() as job_dir:
        given |= {"job_dir": job_dir, "model": {**given["model"], "head": spec["head"]}}
        events: list[dict[str, Any]] = []
        payload = RankPayload.model_validate_json(json.dumps(given))
        assert (
            run_rank(payload, watch=lambda e: events.append({**e, "s": time.process_time()}))
            == "finished"
        )
    steps = [event["s"] for event in events if event["kind"] == "step"][10:]
    (evaluation,) = (event["metrics"] for event in events if event["kind"] == "eval")
    return {
        "step_ms": statistics.median(np.diff(steps)) * 1000,
        "log_loss": evaluation["eval/log_loss"],
        "accuracy": evaluation["eval/accuracy"],
        "parameters": events[0]["parameters_of"]["head"],
    }


def words_payload(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The problem of the next word, encoded, as a payload of a rank."""
    from gpt2cls.data.bpe import train_bpe
    from gpt2cls.data.encode import encode_split

    corpus = Path(os.environ["GPT2CLS_DATA"]) / "wikitext2" / "train.txt"
    words = corpus.read_text(encoding="utf-8").split()
    names = [word for word, _ in Counter(words).most_common(options.labels)]
    task = Task("single_label", tuple(sorted(names)), False)
    number = {word: i for i, word in enumerate(task.labels)}
    ends = np.array([i for i in range(NUM_BEFORE, len(words)) if words[i] in number])
    chosen = np.random.default_rng(0).permutation(ends)[: options.rows + options.rows // 5]
    tokenizer, fields = None, {}
    for name, some in zip(("train", "validation"), np.split(chosen, [options.rows]), strict=True):
        texts = [" ".join(words[i - NUM_BEFORE : i]) for i in some]
        column = pa.chunked_array([pa.array(texts, pa.large_string())])
        split = Split(column, None, np.array([number[words[i]] for i in some]))
        tokenizer = tokenizer or train_bpe([split.texts], 8_000)
        np.save(folder / f"{name}.npy", split.labels)
        fields[f"{name}_labels"] = str(folder / f"{name}.npy")
        path = encode_split(split, tokenizer, max_length=MAX_LENGTH, cache_dir=folder)
        fields[f"{name}_tokens"] = str(path)
    assert tokenizer is not None
    counts = np.bincount(np.load(fields["train_labels"]), minlength=len(names)) + 1
    held_out = np.load(fields["validation_labels"])
    train = TrainConfig(epochs=1, batch_size=64, lr=3e-3, weight_decay=0.01)
    model = ModelConfig(backbone=options.backbone, temperature=1.0, dropout=0.0)
    return {
        **fields,
        "model": model.model_dump(mode="json"),
        "train": train.model_dump(mode="json"),
        "task": task.to_json(),
        "base_dir": str(folder),
        "vocab_size": tokenizer.vocab_size,
        "pad_id": tokenizer.pad_id,
        "max_length": MAX_LENGTH,
        "select_metric": "log_loss",
        "threads": options.threads,
        "device": "cpu",
        "by_frequency": float(-np.log(counts / counts.sum())[held_out].mean()),
    }


if __name__ == "__main__":
    main()
