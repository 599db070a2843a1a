"""Steps per second while MLflow is away for a minute, against an undisturbed run.

    python benchmarks/mlflow_away.py [--pairs 3] [--away-s 60]

Each pair trains the same job twice, undisturbed and with the MLflow server killed in mid-training
and started again after `--away-s` seconds; the order changes from pair to pair. The rate is taken
over the same steps of both runs. Afterwards every step must be in MLflow exactly once.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cluster.home import Home
from cluster.tracking_server import ensure_server, find_server, stop_server, wait_ready

FIRST_STEP = 100
"""Before it the server starts and imports run."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--away-s", type=float, default=60.0)
    parser.add_argument("--steps", type=int, default=1500)
    options = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder) / "home")
        for pair in range(options.pairs):
            rates = {}
            for is_away in (False, True) if pair % 2 == 0 else (True, False):
                rates[is_away] = run(home, Path(folder), options, is_away)
            ratios.append(rates[True] / rates[False])
            print(
                f"pair {pair + 1}: undisturbed {rates[False]:.2f}, away {rates[True]:.2f} steps/s"
            )
        stop_server(home)
    shown = ", ".join(f"{ratio:.3f}" for ratio in ratios)
    print(f"median ratio {statistics.median(ratios):.3f} of {shown}")


def run(home: Home, folder: Path, options: argparse.Namespace, is_away: bool) -> float:
    """Train once; steps per second from FIRST_STEP to the end."""
    job = {
        "kind": "finetune",
        "name": "away",
        "data": {"train": "bbc-news", "max_length": 32},
        "model": {"backbone": "gpt2-mini", "pooling": "mean"},
        "train": {
            "epochs": 1000,
            "max_steps": options.steps,
            "eval_every": f"{options.steps} steps",
            "checkpoint_every": f"{options.steps} steps",
        },
    }
    (folder / "away.yaml").write_text(json.dumps(job))
    wait_ready(home, ensure_server(home))
    before = set(home.jobs.glob("*"))
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs", "run", str(folder / "away.yaml"), "--json"],
            env=home.child_environment(),
            stdout=subprocess.PIPE,
            stderr=log,
        )
        if is_away:
            while not steps_of(home, before).get(FIRST_STEP):
                assert process.poll() is None, (folder / "log.txt").read_text()
                time.sleep(0.1)
            server = find_server(home)
            assert server is not None
            os.kill(server.pid, signal.SIGKILL)
            time.sleep(options.away_s)
            made = len(steps_of(home, before))
            assert made < options.steps, f"all {made} steps were made meanwhile: raise --steps"
            ensure_server(home)
        output, _ = process.communicate()
    assert process.returncode == 0, (folder / "log.txt").read_text()
    check_record(home, json.loads(output)["run_id"], options.steps)
    times_ms = steps_of(home, before)
    return (options.steps - FIRST_STEP) / (times_ms[options.steps] - times_ms[FIRST_STEP]) * 1000


def steps_of(home: Home, before: set[Path]) -> dict[int, int]:
    """The time of each step so far of the job that is not among `before`."""
    times: dict[int, int] = {}
    for job_dir in set(home.jobs.glob("*")) - before:
        events = job_dir / "events.jsonl"
        if events.exists():
            for line in events.read_bytes().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    event: dict[str, Any] = json.loads(line)
                    if event["kind"] == "step":
                        times[event["step"]] = event["time_ms"]
    return times


def check_record(home: Home, run_id: str, num_steps: int) -> None:
    """Every step is in MLflow exactly once."""
    from mlflow import MlflowClient

    server = find_server(home)
    assert server is not None
    history = MlflowClient(server.uri).get_metric_history(run_id, "train/loss")
    assert [point.step for point in history] == list(range(1, num_steps + 1))


if __name__ == "__main__":
    main()
