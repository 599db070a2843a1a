"""What a trial costs beside its training, and what many trials leave behind.

    python benchmarks/trial_overhead.py [--trials 30] [--documented 4]

Trials of one optimizer step, one at a time, on the built-in BBC news: the time from the end of one
trial to the end of the next is what a trial costs that trains for no time at all. Beside it the
pattern of Ray's documentation, a Ray Train run inside a Tune trial, whose worker does nothing.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from measuring import Outcome, Report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--documented", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=0, help="of training per trial, about")
    options = parser.parse_args()
    report = Report("trial_overhead", f"python benchmarks/trial_overhead.py {_words(sys.argv[1:])}")
    report.machine()
    ours = _ours(options.trials, options.seconds)
    theirs = _documented(options.documented) if options.documented else None
    report.document |= {"ours": ours, "documented": theirs}
    rows = [[name, str(ours[name])] for name in ours if name != "gaps_s"]
    if theirs:
        rows.append(["documented pattern: seconds per trial, median", str(theirs["median_s"])])
    report.table(("", "measured"), rows)
    report.write()


def _words(arguments: list[str]) -> str:
    return " ".join(arguments) or "--trials 30"


def _ours(trials: int, seconds: float) -> Outcome:
    job: dict[str, Any] = {
        "kind": "sweep",
        "name": "overhead",
        "data": {"train": "bbc-news", "max_length": 16},
        "model": {"backbone": "gpt2-tiny", "tokenizer": {"train": 1000}},
        "train": {"max_steps": max(1, round(seconds * 60)), "batch_size": 16},
        "space": {"train.lr": {"log_uniform": [1e-4, 1e-2]}},
        "search": {
            "trials": trials,
            "scheduler": "none",
            "max_concurrent": 1 if not seconds else 2,
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        path, home = Path(folder) / "sweep.yaml", Path(folder) / "home"
        path.write_text(json.dumps(job))
        program = [sys.executable, "-m", "jobs"]
        environment = os.environ | {"GPT2CLS_HOME": str(home)}
        started_s = time.perf_counter()
        with subprocess.Popen(
            [*program, "run", str(path), "--json"],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        ) as process:
            watch = _Watch(process.pid, home)
            document = json.loads(process.communicate()[0])
            watch.end()
        total_s = time.perf_counter() - started_s
        children = _num_children(program, environment, document)
        left = _left_over(str(home))
        subprocess.run([*program, "cluster", "down"], env=environment, capture_output=True)
    ends = sorted(trial["finished_unix_s"] for trial in document["trials"])
    gaps = [round(b - a, 3) for a, b in itertools.pairwise(ends)]
    return {
        "trials finished": sum(t["status"] == "FINISHED" for t in document["trials"]),
        "seconds in all": round(total_s, 1),
        "seconds from end to end of trials, median": statistics.median(gaps),
        "child runs in MLflow": children,
        "driver's memory after a tenth of the trials, MB": watch.early_mb(),
        "driver's memory at the end of the trials, MB": watch.late_mb(),
        "largest folder of the sweep while it ran, MB": round(watch.largest_mb, 1),
        "processes of Ray left over": left,
        "gaps_s": gaps,
    }


class _Watch:
    """Memory of the driver and disk of the sweep, while it runs."""

    def __init__(self, pid: int, home: Path) -> None:
        self.process, self.home = psutil.Process(pid), home
        self.points: list[tuple[int, float]] = []
        self.largest_mb = 0.0
        self.is_over = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def _look(self) -> None:
        while not self.is_over.wait(1.0):
            try:
                memory_mb = self.process.memory_info().rss / 1e6
            except psutil.Error:
                return
            for journal in self.home.glob("jobs/*/trials.jsonl"):
                done = journal.read_text().count('"status":"FINISHED"')
                self.points.append((done, memory_mb))
                files = journal.parent.rglob("*")
                size = sum(file.lstat().st_size for file in files if file.exists())
                self.largest_mb = max(self.largest_mb, size / 1e6)

    def end(self) -> None:
        self.is_over.set()
        self.thread.join()

    def early_mb(self) -> float:
        most = max(done for done, _ in self.points)
        return round(next(mb for done, mb in self.points if done >= most / 10), 1)

    def late_mb(self) -> float:
        most = max(done for done, _ in self.points)
        return round(next(mb for done, mb in self.points if done == most), 1)


def _num_children(program: list[str], environment: dict[str, str], document: Any) -> int:
    asked = subprocess.run(
        [*program, "cluster", "status", "--json"], env=environment, capture_output=True, text=True
    )
    from mlflow import MlflowClient

    client = MlflowClient(json.loads(asked.stdout)["mlflow"]["uri"])
    experiment = client.get_run(document["run_id"]).info.experiment_id
    words = f"tags.`mlflow.parentRunId` = '{document['run_id']}' and status = 'FINISHED'"
    return len(client.search_runs([experiment], words, max_results=10_000))


def _left_over(home: str) -> int:
    found = 0
    for process in psutil.process_iter():
        try:
            is_ours = process.environ().get("GPT2CLS_HOME") == home
            found += is_ours and "ray" in " ".join(process.cmdline()[:3])
        except psutil.Error:
            continue
    return found


def _documented(trials: int) -> Outcome:
    import ray
    from ray import tune

    with tempfile.TemporaryDirectory() as folder:
        ray.init(num_cpus=2, logging_level="error", log_to_driver=False)
        started_s = time.perf_counter()
        tune.Tuner(
            _driver,
            param_space={"folder": folder, "number": tune.grid_search([*range(trials)])},
            tune_config=tune.TuneConfig(max_concurrent_trials=1),
            run_config=tune.RunConfig(storage_path=f"{folder}/tune", verbose=0),
        ).fit()
        ends = sorted(float(path.read_text()) for path in Path(folder).glob("*.ended"))
        seconds = time.perf_counter() - started_s
        ray.shutdown()
    gaps = [round(b - a, 2) for a, b in itertools.pairwise(ends)]
    return {"median_s": statistics.median(gaps), "seconds": round(seconds, 1), "gaps_s": gaps}


def _driver(config: dict[str, Any]) -> None:
    import ray.train
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    TorchTrainer(
        _nothing,
        scaling_config=ray.train.ScalingConfig(num_workers=1),
        run_config=ray.train.RunConfig(
            name=f"train-{config['number']}",
            storage_path=f"{config['folder']}/train",
            callbacks=[TuneReportCallback()],
        ),
    ).fit()
    Path(config["folder"], f"{config['number']}.ended").write_text(str(time.time()))


def _nothing() -> None:
    import ray.train

    ray.train.report({"score": 1.0})


if __name__ == "__main__":
    main()
