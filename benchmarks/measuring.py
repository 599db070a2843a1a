"""What the benchmarks share: arms in processes of their own, run in turn, and their report.

A machine's speed drifts, so nothing is compared but medians of arms that took turns in one run.
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch

Outcome = dict[str, Any]
RESULTS = Path(__file__).parent / "results"


def peak_memory_mb() -> float:
    """The largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_arm(program: str, spec: dict[str, Any], timeout_s: float = 3600) -> Outcome:
    """One measurement in a process of its own: `program --arm <spec>` prints its JSON last."""
    done = subprocess.run(
        [sys.executable, program, "--arm", json.dumps(spec)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=timeout_s,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    if done.returncode:
        sys.exit(f"{program} --arm '{json.dumps(spec)}' ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def take_turns(
    arms: dict[str, Callable[[], Outcome]], rounds: int, say: Callable[[str], None] = print
) -> dict[str, list[Outcome]]:
    """Every arm once per round; the order is turned around in every other round."""
    outcomes: dict[str, list[Outcome]] = {name: [] for name in arms}
    for turn in range(rounds):
        for name in list(arms) if turn % 2 == 0 else reversed(list(arms)):
            outcome = arms[name]()
            outcomes[name].append(outcome)
            say(f"  round {turn + 1}, {name}: {json.dumps(outcome)}")
    return outcomes


def median(outcomes: Sequence[Outcome], key: str) -> float:
    return statistics.median(outcome[key] for outcome in outcomes)


def spread(outcomes: Sequence[Outcome], key: str) -> str:
    """Median and range, as a table shows them."""
    values = [outcome[key] for outcome in outcomes]
    return f"{statistics.median(values):,.4g} ({min(values):,.4g} to {max(values):,.4g})"


def paired_ratio(ours: Sequence[Outcome], theirs: Sequence[Outcome], key: str) -> float:
    """The median over the rounds of ours / theirs."""
    return statistics.median(a[key] / b[key] for a, b in zip(ours, theirs, strict=True))


def gemm_peak_gflops(dtype: torch.dtype, size: int = 2048, repeats: int = 5) -> float:
    """The best rate of a square matrix product on this machine, now."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    a @ b
    best_s = min(_seconds(lambda: a @ b) for _ in range(repeats))
    return 2 * size**3 / best_s / 1e9


def _seconds(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


@dataclass
class Report:
    """A dated Markdown and JSON file under benchmarks/results."""

    name: str
    command: str
    lines: list[str] = field(default_factory=list)
    document: dict[str, Any] = field(default_factory=dict)

    def machine(self) -> None:
        """What the numbers were measured on; the GEMM peak is of this run."""
        model = next(
            (
                line.partition(":")[2].strip()
                for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")
            ),
            platform.processor(),
        )
        fp32, bf16 = (gemm_peak_gflops(dtype) for dtype in (torch.float32, torch.bfloat16))
        self.document["machine"] = {
            "cpu": model,
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "gemm_fp32_gflops": round(fp32, 1),
            "gemm_bf16_gflops": round(bf16, 1),
        }
        self.add(
            f"{model}, {os.cpu_count()} cores, torch {torch.__version__}; "
            f"GEMM peak {fp32:,.0f} GFLOP/s in fp32, {bf16:,.0f} in bf16 (measured in this run)."
        )

    def peak_gflops(self, precision: str) -> float:
        return float(self.document["machine"][f"gemm_{precision}_gflops"])

    def add(self, *lines: str) -> None:
        self.lines.extend(lines)
        for line in lines:
            print(line, flush=True)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.add("", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head))
        self.add(*("| " + " | ".join(row) + " |" for row in rows), "")

    def write(self, folder: Path = RESULTS) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{date.today().isoformat()}-{self.name}"
        title = f"# {self.name}, {date.today().isoformat()}"
        text = "\n".join([title, "", f"    {self.command}", "", *self.lines]).rstrip() + "\n"
        path.with_suffix(".md").write_text(text, encoding="utf-8")
        path.with_suffix(".json").write_text(
            json.dumps(self.document, indent=1) + "\n", encoding="utf-8"
        )
        print(f"written: {path}.md and .json")
