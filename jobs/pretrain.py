"""One pretrain job, from its job file to a registered language model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.home import Surroundings
from cluster.local import RayPlace
from gpt2cls.data.corpus import Corpus, read_corpus
from gpt2cls.data.objects import with_local_files
from gpt2cls.data.token_stream import encode_stream, open_stream
from gpt2cls.data.tokenizer import TextTokenizer
from gpt2cls.data.tokenizer_source import get_tokenizer
from gpt2cls.training.payload import RankPayload
from jobs.attempt import Attempt, Stopwatch, Tell, new_job, record_page, run_work
from jobs.backbones import fetched, pinned
from jobs.plan import num_cores, threads_per_worker
from jobs.spec import PretrainJob
from jobs.spool import write_json
from jobs.tables import metrics_table, plain_table
from jobs.training import ray_for, train

MODEL_FOLDER = "model"
"""In the job's folder: the language model, for `model.backbone` and transformers."""


@dataclass(frozen=True)
class Texts:
    """The texts of a job, and a tokenizer for them."""

    corpus: Corpus
    tokenizer: TextTokenizer


def run_pretrain(
    text: str,
    job: PretrainJob,
    base_dir: Path,
    surroundings: Surroundings,
    console: Console,
    ray: RayPlace | None,
) -> dict[str, Any]:
    """Run a job to its end; the document of `gpt2cls run --json`.

    Raises:
        RequestError: the texts or the model cannot be used; nothing was created.
        JobFailed, JobStopped: the job ended early; its record says so.
    """
    watch = Stopwatch()
    job = pinned(job, surroundings)
    with watch.stage("data"):
        texts = read_texts(job, base_dir, surroundings)
    job_id = new_job(text, job, base_dir, surroundings)
    return run_work(
        job_id,
        job,
        _work(job, texts),
        surroundings=surroundings,
        console=console,
        ray=ray,
        watch=watch,
    )


def attempt_pretrain(
    job_id: str,
    job: PretrainJob,
    surroundings: Surroundings,
    console: Console,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Begin a job that is written down, or go on with it."""
    with ray_for(job.cluster, surroundings) as ray:
        return run_work(
            job_id,
            job,
            _work(job),
            surroundings=surroundings,
            console=console,
            ray=ray,
            watch=Stopwatch(),
            tell=tell,
        )


def read_texts(job: PretrainJob, base_dir: Path, surroundings: Surroundings) -> Texts:
    """Read and divide the texts of a job; creates nothing but cache files.

    Raises:
        RequestError: the texts or the model cannot be used.
    """
    cache_dir = surroundings.home.cache
    data = with_local_files(job.data, cache_dir)
    corpus = read_corpus(data, base_dir=base_dir, seed=job.train.seed, cache_dir=cache_dir)
    model = fetched(job, surroundings, base_dir).model.as_model()
    return Texts(corpus, get_tokenizer(model, corpus.train, cache_dir=cache_dir, base_dir=base_dir))


def _work(job: PretrainJob, texts: Texts | None = None) -> Callable[[Attempt], dict[str, Any]]:
    def work(attempt: Attempt) -> dict[str, Any]:
        own = pinned(job, attempt.surroundings, attempt.dir)
        read = texts or read_texts(own, attempt.base_dir, attempt.surroundings)
        return train_and_register(attempt, own, read)

    return work


def train_and_register(attempt: Attempt, job: PretrainJob, texts: Texts) -> dict[str, Any]:
    """The whole work of a pretrain job, in the folder of the attempt."""
    with attempt.watch.stage("tokens"):
        streams = _streams(attempt, job, texts)
    payload = _payload(attempt, job, texts.tokenizer, streams)
    with attempt.watch.stage("train"):
        train(payload, job.cluster, attempt.ray, attempt.log)

    # What packages and registers is imported now: nobody waits for a first step any more.
    from jobs.publish_language import publish_language, save_best

    info = save_best(payload, texts.tokenizer, attempt.dir / MODEL_FOLDER)
    attempt.log.show(metrics_table(info.metrics, {}, f"{job.name}: held-out texts"))
    document = {
        "job_id": attempt.job_id,
        "best_step": info.step,
        "validation": info.metrics,
        "test": None,
        "folder": str(attempt.dir / MODEL_FOLDER),
    }
    with attempt.watch.stage("register"):
        document |= publish_language(attempt, job, info, texts.corpus.fingerprint, MODEL_FOLDER)
    document["seconds"] = attempt.watch.seconds
    write_json(attempt.dir / "result.json", document)
    record_page(attempt)
    return document


def _streams(attempt: Attempt, job: PretrainJob, texts: Texts) -> dict[str, Path]:
    """The tokens of both splits, and what there is of them on screen, on disk, in the record."""
    corpus, cache_dir = texts.corpus, attempt.surroundings.home.cache
    backward = job.train.objective == "backward"
    folders = {
        name: encode_stream(split.texts, texts.tokenizer, backward=backward, cache_dir=cache_dir)
        for name, split in (("train", corpus.train), ("validation", corpus.validation))
    }
    found = {name: open_stream(folder) for name, folder in folders.items()}
    counts = {
        name: {
            "texts": stream.num_texts,
            "bytes": stream.num_bytes,
            "tokens": stream.num_targets,
            "blocks": -(-stream.num_targets // job.data.max_length),
        }
        for name, stream in found.items()
    }
    report = {"splits": counts, "fingerprint": corpus.fingerprint, "notes": list(corpus.notes)}
    write_json(attempt.dir / "data_report.json", report)
    rows = [[name, *values.values()] for name, values in counts.items()]
    attempt.log.show(plain_table(["split", "texts", "bytes", "tokens", "blocks"], rows, "Data"))
    for note in corpus.notes:
        attempt.log.say(note)
    attempt.record.tags({"gpt2cls.data_fingerprint": corpus.fingerprint})
    attempt.record.artifact(attempt.dir / "data_report.json")
    return folders


def _payload(
    attempt: Attempt, job: PretrainJob, tokenizer: TextTokenizer, streams: dict[str, Path]
) -> RankPayload:
    local = fetched(job, attempt.surroundings, attempt.base_dir)
    return RankPayload.model_validate(
        {
            "objective": job.train.objective,
            "model": local.model.as_model(),
            "train": job.train.as_train(),
            "job_dir": attempt.dir,
            "train_tokens": streams["train"],
            "validation_tokens": streams["validation"],
            "vocab_size": tokenizer.vocab_size,
            "pad_id": tokenizer.pad_id,
            "max_length": job.data.max_length,
            "base_dir": attempt.base_dir,
            "select_metric": "loss",
            "threads": threads_per_worker(job.cluster, num_cores()),
            "device": "cuda" if job.cluster.gpus_per_worker else "auto",
        }
    )
