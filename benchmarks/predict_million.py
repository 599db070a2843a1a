"""Predict a file of a million short texts with gpt2-tiny; print the speed and the peak memory.

    python benchmarks/predict_million.py [--rows N] [--format csv|jsonl|parquet] [--threads N]

The texts are random words of a made-up vocabulary, about twelve each; the weights are random,
which costs the same time as trained ones. The memory is that of a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROWS_AT_ONCE = 50_000


def make_texts(num_rows: int, seed: int):
    """Lists of texts, ROWS_AT_ONCE at a time."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlcumwfgypb"))
    words = np.array(["".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(20_000)])
    for first in range(0, num_rows, ROWS_AT_ONCE):
        lengths = rng.poisson(11, min(ROWS_AT_ONCE, num_rows - first)) + 1
        drawn = words[(rng.pareto(1.0, lengths.sum()) * 20).astype(int) % len(words)]
        parts = np.split(drawn, lengths.cumsum()[:-1])
        yield [" ".join(part) for part in parts]


def make_input(path: Path, num_rows: int) -> None:
    from gpt2cls.data.write import open_writer

    first = 0
    with open_writer(path) as write:
        for texts in make_texts(num_rows, seed=0):
            write({"id": list(range(first, first + len(texts))), "text": texts}, len(texts))
            first += len(texts)


def make_model(folder: Path) -> None:
    import pyarrow as pa

    from gpt2cls.config import ModelConfig
    from gpt2cls.data.bpe import train_bpe
    from gpt2cls.data.tasks import Task
    from gpt2cls.model.classifier import build_classifier
    from gpt2cls.model.folder import ModelInfo, save_classifier

    task = Task("single_label", ("business", "sci-tech", "sport", "world"), False)
    texts = next(make_texts(ROWS_AT_ONCE, seed=0))
    tokenizer = train_bpe([pa.chunked_array([texts], pa.large_string())], 8000)
    config = ModelConfig(backbone="gpt2-tiny")
    shape = {"vocab_size": tokenizer.vocab_size, "pad_id": tokenizer.pad_id, "max_length": 128}
    model = build_classifier(config, task, **shape, seed=0, base_dir=folder)
    save_classifier(model, tokenizer, ModelInfo(task=task, model=config, **shape), folder)


def predict(model: Path, source: Path, output: Path, threads: int | None) -> dict[str, float]:
    """In this process: load, predict, and say what it took."""
    from gpt2cls.predict import Predictor
    from gpt2cls.predict_files import predict_file

    def peak_mb() -> float:
        # Not ru_maxrss: that begins at the memory of the process that started this one.
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    started_s = time.perf_counter()
    predictor = Predictor.load(model, device="cpu", threads=threads)
    loaded_s, loaded_mb = time.perf_counter() - started_s, peak_mb()
    started_s = time.perf_counter()
    done = predict_file(predictor, source, output)
    taken_s = time.perf_counter() - started_s
    return {
        "rows": done,
        "load_s": round(loaded_s, 2),
        "predict_s": round(taken_s, 1),
        "rows_per_s": round(done / taken_s),
        "peak_mb_after_load": round(loaded_mb),
        "peak_mb": round(peak_mb()),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--format", default="csv")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--child", nargs=3, type=Path, default=None)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(predict(*options.child, options.threads)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, output = folder / f"in.{options.format}", folder / f"out.{options.format}"
        make_model(folder / "model")
        make_input(source, options.rows)
        given = [sys.executable, __file__, "--child", folder / "model", source, output]
        if options.threads:
            given += ["--threads", str(options.threads)]
        # A process of its own: the peak must not hold what making the file took.
        found = json.loads(subprocess.run(given, check=True, capture_output=True).stdout)
        size_mb = source.stat().st_size / 2**20
    found |= {"format": options.format, "input_mb": round(size_mb), "cores": os.cpu_count()}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
