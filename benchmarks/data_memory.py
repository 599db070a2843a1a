"""How much memory and time a million short rows cost: read, check, split, tokenise.

    python benchmarks/data_memory.py [ROWS] [FORMAT]

Prints one JSON document; `peak_rss_mb` is that of the whole process.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WORDS_PER_ROW = 12


def write_table(path: Path, num_rows: int, kind: str) -> None:
    rng = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(5000)])
    with path.open("w", encoding="utf-8") as file:
        if kind == "csv":
            file.write("text,label\n")
        for start in range(0, num_rows, 10_000):
            shape = (min(10_000, num_rows - start), WORDS_PER_ROW)
            chosen = words[rng.integers(0, len(words), shape)]
            for i, row in enumerate(chosen):
                record = {"text": " ".join(row), "label": f"class {(start + i) % 10}"}
                line = ",".join(record.values()) if kind == "csv" else json.dumps(record)
                file.write(line + "\n")


def peak_rss_mb() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def main(num_rows: int = 1_000_000, kind: str = "csv") -> None:
    from gpt2cls.config import DataConfig, ModelConfig
    from gpt2cls.data.check import check
    from gpt2cls.data.encode import encode_split, open_tokens
    from gpt2cls.data.prepare import prepare
    from gpt2cls.data.tokenizer_source import get_tokenizer

    seconds, peaks = {}, {"imports": peak_rss_mb()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows.{kind}"
        write_table(path, num_rows, kind)
        marks = [time.perf_counter()]

        def done(what: str) -> None:
            marks.append(time.perf_counter())
            seconds[what] = round(marks[-1] - marks[-2], 1)
            peaks[what] = peak_rss_mb()

        prepared = prepare(DataConfig(train=str(path), test=0.1), base_dir=Path(folder), seed=0)
        done("read_and_split")
        model = ModelConfig(backbone="gpt2-mini")
        cache = Path(folder) / "cache"
        tokenizer = get_tokenizer(model, prepared.train, cache_dir=cache, base_dir=Path(folder))
        done("train_tokenizer")
        lengths = {}
        for name, split in prepared.splits.items():
            tokens = encode_split(split, tokenizer, max_length=64, cache_dir=cache)
            lengths[name] = open_tokens(tokens).full_lengths
        done("tokenise")
        report = check(prepared, full_lengths=lengths, max_length=64)
        done("check")
    result = {"rows": report.rows, "format": kind, "peak_rss_mb": peak_rss_mb()}
    print(json.dumps(result | {"seconds": seconds, "peak_rss_mb_after": peaks}))


if __name__ == "__main__":
    main(*(int(arg) if arg.isdigit() else arg for arg in sys.argv[1:]))
