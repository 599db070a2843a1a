"""Seconds from the exec of `gpt2cls run` to the first optimizer step, stage by stage.

    python benchmarks/startup.py [--rounds 5] [--source FOLDER ...] [--out startup]

Rows: one worker; two workers with a private Ray (cold); two workers on a running Ray, which is
started here with `ray start --head` and stopped again; each with MLflow up and down, and one worker
with an empty token cache as well. A round runs every row once, of every `--source` (folders with
this project, to compare versions), so that what else the machine does meets all of them alike.

A stage ends where a file of the job says so: "accepted" when the data was accepted (job.yaml),
"tokens" with the data report, "ranks" when rank 0 announced the start, "step" with the first step.
CPU seconds are those of the command and all that it started, until the first step was seen.
Writes OUT.json and OUT.md.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import psutil
from measuring import RESULTS

from cluster.home import Home
from cluster.tracking_server import ensure_server, stop_server, wait_ready

STAGES = ("accepted", "tokens", "ranks", "step")
_PATIENCE_S = 180.0


@dataclass(frozen=True)
class Row:
    """One thing that is measured."""

    name: str
    workers: int = 1
    running_ray: bool = False
    mlflow_up: bool = True
    empty_cache: bool = False


ROWS = (
    Row("1 worker"),
    Row("1 worker, MLflow down", mlflow_up=False),
    Row("1 worker, no tokens cached", empty_cache=True),
    Row("2 workers, cold", 2),
    Row("2 workers, cold, MLflow down", 2, mlflow_up=False),
    Row("2 workers, running Ray", 2, running_ray=True),
    Row("2 workers, running Ray, MLflow down", 2, running_ray=True, mlflow_up=False),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--source", type=Path, nargs="+", default=[Path(__file__).parent.parent])
    parser.add_argument("--row", nargs="*", help="only these rows")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{date.today()}-startup")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is ended
    rows = [r for r in ROWS if not options.row or r.name in options.row]
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="su") as folder:
        bench = Bench(Path(folder))
        for source in options.source:  # tokens and compiled modules are made
            bench.run(Row("warm-up"), source)
        for number in range(options.rounds):
            for row in rows if number % 2 == 0 else reversed(rows):
                for source in options.source:
                    measured = bench.run(row, source)
                    runs.append({"row": row.name, "source": os.path.relpath(source), **measured})
                    print(json.dumps(runs[-1]), flush=True)
        stop_server(Home(bench.home))
    options.out.parent.mkdir(exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps(runs, indent=1))
    options.out.with_suffix(".md").write_text(table(runs))
    print(table(runs))


class Bench:
    """One state folder, in which all commands run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "h"

    def environment(self, source: Path, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY", "MLFLOW"))}
        own = {"GPT2CLS_HOME": str(self.home), "PYTHONPATH": str(source.resolve())}
        return kept | own | more

    def run(self, row: Row, source: Path) -> dict[str, Any]:
        """Run a job to its first step, and end it."""
        if row.mlflow_up:
            wait_ready(Home(self.home), ensure_server(Home(self.home)))
        else:
            stop_server(Home(self.home))
        if row.empty_cache:
            shutil.rmtree(self.home / "cache", ignore_errors=True)
        job = self.folder / "job.yaml"
        job.write_text(json.dumps(job_of(row)))
        if not row.running_ray:
            return self._first_step(job, self.environment(source))
        environment = self.environment(source, RAY_USAGE_STATS_ENABLED="0")
        # The niceness of its workers is the cluster's own affair: 15 unless its operator says.
        ray = [str(Path(sys.executable).with_name("ray"))]
        flags = ["--head", "--port=26379", "--num-cpus=2"]
        flags += ["--include-dashboard=false", "--disable-usage-stats"]
        with tempfile.TemporaryDirectory(prefix="su") as temp:
            flags.append(f"--temp-dir={temp}")
            silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            with subprocess.Popen(
                [*ray, "start", *flags, "--block"],
                env=environment | {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"},
                start_new_session=True,
                **silent,  # type: ignore[arg-type]
            ) as head:
                wait_for_port(26379)
                time.sleep(8)  # its other processes are up, and idle again
                try:
                    more = {"RAY_ADDRESS": "auto", "RAY_AUTH_MODE": "disabled"}
                    return self._first_step(job, environment | more)
                finally:
                    family = psutil.Process(head.pid).children(recursive=True)
                    for process in family:
                        with suppress(psutil.NoSuchProcess):
                            process.kill()
                    head.kill()
                    psutil.wait_procs(family, timeout=10)

    def _first_step(self, job: Path, environment: dict[str, str]) -> dict[str, Any]:
        before = set(self.home.glob("jobs/*"))
        began_s = time.time()
        with (self.folder / "log.txt").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "jobs", "run", str(job)],
                env=environment,
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )
        try:
            folder = self._wait_for_step(process, before)
            cpu_s = cpu_seconds(process.pid)
            return stages(folder, began_s) | {"cpu": round(cpu_s, 2), "load": os.getloadavg()[0]}
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _wait_for_step(self, process: subprocess.Popen[bytes], before: set[Path]) -> Path:
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            assert process.poll() is None, (self.folder / "log.txt").read_text()
            for folder in set(self.home.glob("jobs/*")) - before:
                if "step" in events_of(folder):
                    return folder
            time.sleep(0.05)
        raise AssertionError(f"no step: {(self.folder / 'log.txt').read_text()}")


def wait_for_port(port: int) -> None:
    """Return as soon as somebody of this machine listens there."""
    deadline = time.monotonic() + _PATIENCE_S
    while all(c.laddr.port != port or c.status != "LISTEN" for c in psutil.net_connections("tcp")):
        assert time.monotonic() < deadline, f"nobody listens on {port}"
        time.sleep(0.2)


def job_of(row: Row) -> dict[str, Any]:
    return {
        "kind": "finetune",
        "name": "startup",
        "data": {"train": "bbc-news", "max_length": 128},
        "model": {"backbone": "gpt2-mini", "pooling": "mean"},
        "train": {"epochs": 1000},
        "cluster": {"workers": row.workers},
    }


def events_of(folder: Path) -> dict[str, float]:
    """When the first event of each kind was written."""
    path, times = folder / "events.jsonl", {}
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        if line.endswith(b"\n"):
            event = json.loads(line)
            times.setdefault(event["kind"], event["time_ms"] / 1000)
    return times


def stages(folder: Path, began_s: float) -> dict[str, float]:
    """Seconds from the start of the command to the end of each stage."""
    events = events_of(folder)
    ends = (
        (folder / "job.yaml").stat().st_mtime,
        (folder / "data_report.json").stat().st_mtime,
        events["start"],
        events["step"],
    )
    return {name: round(end - began_s, 2) for name, end in zip(STAGES, ends, strict=True)}


def cpu_seconds(pid: int) -> float:
    """Of a process, its living children and the children they have ended."""
    total = 0.0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
        except psutil.NoSuchProcess:
            continue
    return total


def table(runs: list[dict[str, Any]]) -> str:
    """A line per row and source: the median of every stage, and the spread of the whole."""
    lines = [
        "| row | source | runs | " + " | ".join(STAGES) + " | least - most | CPU s |",
        "| --- | --- | ---: |" + " ---: |" * (len(STAGES) + 2),
    ]
    for key in dict.fromkeys((run["row"], run["source"]) for run in runs):
        own = [run for run in runs if (run["row"], run["source"]) == key]
        medians = [f"{statistics.median(run[stage] for run in own):.1f}" for stage in STAGES]
        steps = sorted(run["step"] for run in own)
        cpu = statistics.median(run["cpu"] for run in own)
        cells = [*key, str(len(own)), *medians, f"{steps[0]:.1f} - {steps[-1]:.1f}", f"{cpu:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
