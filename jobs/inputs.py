"""What ranks need before they can train: tokens, labels and settings, as files and a payload."""

from pathlib import Path

import numpy as np

from cluster.home import Surroundings
from gpt2cls.config import ModelConfig
from gpt2cls.data.encode import encode_split
from gpt2cls.data.prepare import Prepared
from gpt2cls.data.tasks import Split, joined
from gpt2cls.data.tokenizer import TextTokenizer
from gpt2cls.data.tokenizer_source import get_tokenizer
from gpt2cls.training.payload import RankPayload
from jobs.spec import FinetuneJob, SweepJob


def tokenizer_of(
    job: FinetuneJob | SweepJob, prepared: Prepared, surroundings: Surroundings, base_dir: Path
) -> TextTokenizer:
    """The tokenizer that a job names, read or trained on the texts that it reads; cached."""
    return get_tokenizer(
        job.model,
        texts_read(job.model, prepared),
        cache_dir=surroundings.home.cache,
        base_dir=base_dir,
        special_tokens=job.data.special_tokens,
    )


def texts_read(model: ModelConfig, prepared: Prepared) -> Split:
    """The training rows whose texts the model reads, whether or not it reads their labels."""
    if model.embedding_init == "random" or prepared.unlabelled is None:
        return prepared.train
    return joined(prepared.train, prepared.unlabelled)


def tokens_of(
    job: FinetuneJob | SweepJob,
    prepared: Prepared,
    tokenizer: TextTokenizer,
    surroundings: Surroundings,
) -> dict[str, Path]:
    """The folder with the tokens of each split; cached. Of `unlabelled` too, where it is read."""
    cache_dir, max_length = surroundings.home.cache, job.data.max_length
    splits = prepared.splits
    if job.model.embedding_init != "random" and prepared.unlabelled is not None:
        splits["unlabelled"] = prepared.unlabelled
    return {
        name: encode_split(
            split, tokenizer, max_length=max_length, cache_dir=cache_dir, task=prepared.task
        )
        for name, split in splits.items()
    }


def write_labels(prepared: Prepared, folder: Path) -> dict[str, Path]:
    """The labels that ranks read, as files in `folder`."""
    paths = {name: folder / f"{name}_labels.npy" for name in ("train", "validation")}
    for name, path in paths.items():
        np.save(path, prepared.splits[name].labels)
    return paths


def payload_of(
    job: FinetuneJob,
    prepared: Prepared,
    tokenizer: TextTokenizer,
    tokens: dict[str, Path],
    labels: dict[str, Path],
    *,
    job_dir: Path,
    base_dir: Path,
    cache_dir: Path,
    threads: int,
) -> RankPayload:
    """What every rank of a job is told."""
    return RankPayload(
        model=job.model,
        train=job.train,
        task=prepared.task.to_json(),
        job_dir=job_dir,
        train_tokens=tokens["train"],
        validation_tokens=tokens["validation"],
        unlabelled_tokens=tokens.get("unlabelled"),
        train_labels=labels["train"],
        validation_labels=labels["validation"],
        vocab_size=tokenizer.vocab_size,
        num_new=tokenizer.num_new,
        pad_id=tokenizer.pad_id,
        max_length=job.data.max_length,
        base_dir=base_dir,
        select_metric=job.registration.gate.metric,
        cache_dir=cache_dir,
        threads=threads,
        device="cuda" if job.cluster.gpus_per_worker else "auto",
    )
