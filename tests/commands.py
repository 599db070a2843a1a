"""The command line as a test uses it: in processes of its own, with a state folder of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

GPT2CLS = [sys.executable, "-m", "jobs"]


@dataclass(frozen=True)
class Commands:
    """`gpt2cls` with $GPT2CLS_HOME = home, run from `folder`."""

    home: Path
    folder: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    """Of the environment, beside those."""

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW", "RAY"))}
        return kept | {"GPT2CLS_HOME": str(self.home), "HF_HUB_OFFLINE": "1", **self.variables}

    def run(self, *words: str, timeout_s: float = 280) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*GPT2CLS, *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def json(self, *words: str) -> Any:
        """The document of a command that must succeed."""
        ended = self.run(*words, "--json")
        assert ended.returncode == 0, ended.stderr + ended.stdout
        return json.loads(ended.stdout)

    @contextmanager
    def started(self, *words: str) -> Iterator[subprocess.Popen[bytes]]:
        """A command on its way; what it writes is in `stdout.txt` and `stderr.txt`."""
        with self.stdout.open("wb") as out, self.stderr.open("wb") as err:
            process = subprocess.Popen(
                [*GPT2CLS, *words], cwd=self.folder, env=self.environment, stdout=out, stderr=err
            )
            try:
                yield process
            finally:
                process.kill()
                process.wait()

    @property
    def stdout(self) -> Path:
        return self.folder / "stdout.txt"

    @property
    def stderr(self) -> Path:
        return self.folder / "stderr.txt"

    def wait_for_step(self, step: int, process: subprocess.Popen[bytes]) -> Path:
        """Wait until a job that has no result yet has made so many steps; its folder."""
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            assert process.poll() is None, self.stderr.read_text()
            for events in self.home.glob("jobs/*/events.jsonl"):
                is_done = (events.parent / "result.json").exists()
                if not is_done and last_step(events) >= step:
                    return events.parent
            time.sleep(0.05)
        raise AssertionError(f"no step {step}: {self.stderr.read_text()}")

    def processes(self, word: str = "") -> list[psutil.Process]:
        """Living processes of this state folder whose command line has the word."""
        found = []
        for process in psutil.process_iter():
            try:
                is_ours = process.environ().get("GPT2CLS_HOME") == str(self.home)
                if is_ours and word in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def mlflow(self) -> Any:
        """A client of the server of this state folder."""
        from mlflow import MlflowClient

        return MlflowClient(self.json("cluster", "status")["mlflow"]["uri"])

    def end(self) -> None:
        self.run("cluster", "down")
        for process in self.processes():
            process.send_signal(signal.SIGKILL)


def last_step(events: Path) -> int:
    lines = [json.loads(line) for line in events.read_bytes().splitlines(keepends=True)[:-1]]
    return max((line["step"] for line in lines if line["kind"] == "step"), default=0)


def write_job(path: Path, **changes: Any) -> Path:
    """A small job on real text: BBC news, 32 tokens, the smallest network; `a__b` sets a.b."""
    job: dict[str, Any] = {
        "kind": "finetune",
        "name": "small",
        "data": {"train": "bbc-news", "max_length": 32},
        "model": {"backbone": "gpt2-tiny", "pooling": "mean", "dropout": 0.1},
        "train": {"epochs": 1, "lr": 2.0e-3, "precision": "fp32"},
    }
    for name, value in changes.items():
        block, _, field = name.partition("__")
        if field:
            job.setdefault(block, {})[field] = value
        else:
            job[block] = value
    path.write_text(json.dumps(job, indent=1))  # JSON is YAML
    return path
