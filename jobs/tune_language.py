"""The language model below a classifier, fine-tuned on the job's own texts first.

Source: Howard and Ruder 2018, "Universal Language Model Fine-tuning", section 3.2. It is made once
per weights, texts and settings, so the trials of a sweep and the repeats of a job share it.
"""

import json
import shutil
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pyarrow as pa

from gpt2cls.config import BUILTIN_SHAPES
from gpt2cls.data import cache
from gpt2cls.data.tasks import Split
from gpt2cls.data.token_stream import encode_stream
from gpt2cls.errors import ModelError
from gpt2cls.pretrained import find_pretrained, weight_files
from gpt2cls.training import shelf
from gpt2cls.training.payload import RankPayload
from jobs.backbones import fetched
from jobs.plan import num_cores, threads_per_worker
from jobs.spec import FinetuneJob, SweepJob
from jobs.training import train

if TYPE_CHECKING:
    from gpt2cls.model.language_folder import LanguageInfo
    from jobs.attempt import Attempt, Ready

J = TypeVar("J", bound=FinetuneJob | SweepJob)

PART = "language"
"""Folder in the job's own: checkpoints and events of this stage."""


def with_ready_backbone(attempt: "Attempt", job: J, ready: "Ready") -> J:
    """The job as its ranks take it: its backbone is here, and fine-tuned if it asks for it."""
    local = fetched(job, attempt.surroundings, attempt.base_dir)
    if not job.train.lm_epochs:
        return local
    with attempt.watch.stage("language"):
        return with_tuned(local, tuned_language(attempt, local, ready))


def with_tuned(job: J, folder: Path) -> J:
    """The job with a language model that was fine-tuned in the place of its backbone."""
    model = job.model.model_copy(update={"backbone": str(folder)})
    train = job.train.model_copy(update={"lm_epochs": 0, "lm_lr": None})
    return job.model_copy(update={"model": model, "train": train})  # type: ignore[return-value]


def tuned_language(attempt: "Attempt", job: FinetuneJob | SweepJob, ready: "Ready") -> Path:
    """The folder of the language model after `train.lm_epochs` epochs on the job's texts.

    Args:
        attempt: shows and records how it goes.
        job: its `model.backbone` is a folder, a Hugging Face name or a built-in shape.
        ready: its texts: those of the training rows, with and without labels.

    Raises:
        JobStopped: training was told to end; another call goes on with it.
        ModelError: the backbone cannot be had, or is none of ours.
    """
    payload = _payload(attempt, job, ready)
    folder = attempt.surroundings.home.cache / "languages" / _key(payload)
    info = _read(folder)
    if info is None:
        payload.job_dir.mkdir(exist_ok=True)
        attempt.log.say(f"fine-tuning the language model: {job.train.lm_epochs} epochs")
        # A sweep has a Ray for its trials, also where each has one worker.
        ray = None if job.cluster.workers == 1 else attempt.ray
        train(payload, job.cluster, ray, attempt.log)
        from jobs.publish_language import save_best

        _make_room(folder.parent, payload)
        info = save_best(payload, ready.tokenizer, folder)
        shutil.rmtree(payload.job_dir)
    else:
        shelf.note_use(folder)
        attempt.log.say("the language model was fine-tuned on these texts before: used again")
    words = ", ".join(f"{name} {value:.4f}" for name, value in info.metrics.items())
    attempt.log.say(f"language model, held-out texts: {words}")
    attempt.record.metrics(
        {f"lm/{name}": value for name, value in info.metrics.items()}, step=info.step
    )
    return folder


def _make_room(shelf_dir: Path, payload: RankPayload) -> None:
    from gpt2cls.training.saves import BEST

    shelf_dir.mkdir(parents=True, exist_ok=True)
    size_bytes = sum(path.stat().st_size for path in (payload.job_dir / BEST).iterdir())
    limit = shelf.limit_bytes(shelf_dir)
    # A job reads its folder whenever ranks start, and at its end.
    shelf.make_room(shelf_dir, size_bytes, limit, spared_s=shelf.ABANDONED_S)


def _read(folder: Path) -> "LanguageInfo | None":
    # Only here: it imports torch, which the driver of ranks elsewhere need not have.
    from gpt2cls.model.language_folder import read_language_info

    try:
        return read_language_info(folder)
    except ModelError:  # not there, or not whole: it is made
        return None


def _payload(attempt: "Attempt", job: FinetuneJob | SweepJob, ready: "Ready") -> RankPayload:
    is_backward = ready.tokenizer.is_backward
    data, cache_dir = ready.prepared, attempt.surroundings.home.cache
    streams = [
        encode_stream(texts, ready.tokenizer, backward=is_backward, cache_dir=cache_dir)
        for texts in (_texts(data.train, data.unlabelled), _texts(data.validation))
    ]
    settings = {"epochs": job.train.lm_epochs, "lr": job.train.lm_lr or job.train.lr}
    of_labels = {
        "class_weights": "none",
        "label_smoothing": 0.0,
        "freeze": "none",
        "lm_weight": 0.0,
    }
    rhythm = {"eval_every": "1 epoch", "early_stopping": None, "max_steps": None}
    none_left = {"lm_epochs": 0, "lm_lr": None}
    return RankPayload(
        objective="backward" if is_backward else "causal",
        model=job.model,
        train=job.train.model_copy(update=settings | of_labels | rhythm | none_left),
        job_dir=attempt.dir / PART,
        train_tokens=streams[0],
        validation_tokens=streams[1],
        vocab_size=ready.tokenizer.vocab_size,
        num_new=ready.tokenizer.num_new,
        pad_id=ready.tokenizer.pad_id,
        max_length=job.data.max_length,
        base_dir=attempt.base_dir,
        select_metric="loss",
        threads=threads_per_worker(job.cluster, num_cores()),
        device="cuda" if job.cluster.gpus_per_worker else "auto",
    )


def _texts(*splits: Split | None) -> pa.ChunkedArray:
    """All texts of the splits; the second ones of pairs as texts of their own.

    In the order of their keys: so they are the same texts however many of them have labels.
    """
    found = [split for split in splits if split is not None]
    keys = np.concatenate([split.keys for split in found if split.keys is not None])
    order = pa.array(np.argsort(keys, kind="stable"))
    columns = []
    for name in ("texts", "seconds"):
        parts = [part for split in found if (part := getattr(split, name)) is not None]
        if parts:
            whole = pa.chunked_array([c for part in parts for c in part.chunks], pa.large_string())
            columns.append(whole.take(order))
    return pa.chunked_array([c for col in columns for c in col.chunks], pa.large_string())


def _key(payload: RankPayload) -> str:
    """Of all that decides the weights; where the backbone lies is no part of it."""
    model = payload.model.model_dump(mode="json", include={"backbone", "dropout"})
    if payload.model.backbone not in BUILTIN_SHAPES:
        folder = find_pretrained(
            payload.model.backbone, base_dir=payload.base_dir, field="model.backbone"
        )
        model["backbone"] = [cache.sha256(file) for file in weight_files(folder)]
    deciding = [
        *(model, payload.train.model_dump(mode="json"), payload.objective, payload.max_length),
        *(payload.train_tokens.name, payload.validation_tokens.name, payload.vocab_size),
    ]
    return sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:32]
