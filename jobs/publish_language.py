"""From the best weights of a language model to a version in the registry."""

from pathlib import Path
from typing import Any

from gpt2cls.data.tokenizer import TextTokenizer
from gpt2cls.model.language_folder import LanguageInfo, read_language_info, save_language_model
from gpt2cls.training.learn_language import new_language_model
from gpt2cls.training.payload import RankPayload
from gpt2cls.training.saves import load_best
from jobs.attempt import Attempt
from jobs.models import model_folder
from jobs.package import ModelDoesNotReload, store_language_model
from jobs.registry import register, run_on_server
from jobs.spec import PretrainJob
from jobs.tracking import connect

GATE_METRIC = "bits_per_byte"
"""Of two language models with different tokenizers only this one can be compared."""


def save_best(payload: RankPayload, tokenizer: TextTokenizer, folder: Path) -> LanguageInfo:
    """Write the best weights of a finished training as a model folder; what it says of itself."""
    model = new_language_model(payload)
    best = load_best(payload.job_dir, model)
    info = LanguageInfo.model_validate(
        {
            "objective": payload.objective,
            "max_length": payload.max_length,
            "vocab_size": payload.vocab_size,
            "end_id": payload.pad_id,
            "step": best["step"],
            "metrics": best["metrics"],
        }
    )
    save_language_model(model, tokenizer, info, folder)
    return info


def publish_language(
    attempt: Attempt, job: PretrainJob, info: LanguageInfo, data_fingerprint: str, folder: str
) -> dict[str, Any]:
    """Register the model if the job asks for it.

    Returns:
        `{model: {name, version, alias} | None, gate: {passed, reason} | None}`.

    Raises:
        JobFailed: what came back from MLflow is not what was stored, or MLflow is away.
    """
    name = job.registration.model
    if name is None:
        return {"model": None, "gate": None}
    surroundings, log = attempt.surroundings, attempt.log
    run_id, uri = run_on_server(attempt.record, surroundings)
    model_uri = store_language_model(connect(uri), run_id=run_id, model_folder=attempt.dir / folder)
    _compare(attempt, model_uri, attempt.dir / folder)
    registered = register(
        surroundings,
        tracking_uri=uri,
        name=name,
        model_uri=model_uri,
        run_id=run_id,
        job_id=attempt.job_id,
        metrics=info.metrics,
        split="validation",
        data_fingerprint=data_fingerprint,
        gate_metric=GATE_METRIC,
        beats_champion=job.registration.gate.beats is not None,
    )
    log.say(f"{name} version {registered.version}: {registered.alias} ({registered.reason})")
    return {
        "model": {"name": name, "version": registered.version, "alias": registered.alias},
        "gate": {"passed": True, "reason": registered.reason},
    }


def _compare(attempt: Attempt, model_uri: str, made: Path) -> None:
    """Fetch what was stored as another job would, and compare every file's checksum."""
    stored = model_folder(model_uri, attempt.surroundings, base_dir=attempt.base_dir)
    if read_language_info(stored) != read_language_info(made):
        raise ModelDoesNotReload(
            f"model {model_uri}: what MLflow gives back is not what was stored; it was not "
            "registered"
        )
