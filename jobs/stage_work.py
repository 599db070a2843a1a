"""What a stage of a pipeline does, by its kind: read its inputs, say what decides its result, work.

A stage is the job it would be alone; only its folder and its record are the pipeline's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.home import Surroundings
from gpt2cls.config import BUILTIN_SHAPES
from gpt2cls.data.cache import sha256
from gpt2cls.data.partly import PARTS, fingerprint_of
from gpt2cls.model.folder import read_info
from gpt2cls.pretrained import OUR_FORMAT, find_pretrained
from gpt2cls.training.payload import as_before
from jobs.attempt import Attempt, read_data
from jobs.backbones import fetched
from jobs.deploy import deploy, why_gone
from jobs.ensemble import measure_and_register, read_members
from jobs.evaluate import fingerprint_for, rows_for, run_evaluate
from jobs.finetune import train_measure_register
from jobs.models import model_folder
from jobs.outcome import MODEL_FOLDER, numbers
from jobs.predict import run_predict
from jobs.prepare import read_rows, show_report, write_parts
from jobs.pretrain import read_texts, train_and_register
from jobs.registry import registry_name
from jobs.spec import AnyStageJob, FinetuneJob, PretrainJob, dump
from jobs.spec_uses import DeployJob, EnsembleJob, EvaluateJob, PredictJob, PrepareStage
from jobs.spool import write_json
from jobs.stage_graph import TAKES, parse_reference
from jobs.stage_store import Made, hash_of_folder
from jobs.training import ray_for

MADE_DIR = "made"
"""Below a stage's folder: what will be kept of it, until it is moved to its address."""
OUTPUT_DIR = "output"
_NETWORKS = ("backbone", "tokenizer")


@dataclass(frozen=True)
class StageTask:
    """A stage whose inputs are there."""

    settings: dict[str, Any]
    """What of the job decides the result."""
    content: dict[str, Any]
    """Of the inputs: a hash of each."""
    output: str | None
    """What is made, below MADE_DIR."""
    work: Callable[[Attempt], dict[str, Any]]
    """Do it; the document of the job."""
    metrics_of: Callable[[Mapping[str, Any]], dict[str, float]]
    """The headline numbers in that document."""
    why_gone: Callable[[Mapping[str, Any]], str | None] = lambda document: None
    """Why what that document tells of is not there any more, outside of the store; None: it is."""


def with_paths(job: AnyStageJob, made: Mapping[str, Made]) -> AnyStageJob:
    """The job with every reference replaced by what it stands for."""
    values: dict[str, Any] = dump(job)

    def resolved(value: Any) -> Any:
        if isinstance(value, list):
            return [resolved(one) for one in value]
        reference = parse_reference(value) if isinstance(value, str) else None
        return value if reference is None else str(made[reference[0]].part(reference[1]))

    for path in TAKES:
        block: Any = values
        for part in path[:-1]:
            block = block.get(part)
            if not isinstance(block, dict):
                break
        if isinstance(block, dict) and path[-1] in block:
            block[path[-1]] = resolved(block[path[-1]])
    return type(job).model_validate(values)


def task_of(job: AnyStageJob, base_dir: Path, surroundings: Surroundings) -> StageTask:
    """Read the inputs of a stage.

    Args:
        job: without references.
        base_dir: what relative paths in it are taken from.
        surroundings: what the environment says.

    Raises:
        RequestError: the data or the model cannot be used.
    """
    if isinstance(job, FinetuneJob):
        return _finetune(job, base_dir, surroundings)
    if isinstance(job, PretrainJob):
        return _pretrain(job, base_dir, surroundings)
    if isinstance(job, EnsembleJob):
        return _ensemble(job, base_dir, surroundings)
    if isinstance(job, PrepareStage):
        return _prepare(job, base_dir)
    if isinstance(job, EvaluateJob):
        return _evaluate(job, base_dir, surroundings)
    if isinstance(job, DeployJob):
        return _deploy(job, base_dir, surroundings)
    return _predict(job, base_dir, surroundings)


def _finetune(job: FinetuneJob, base_dir: Path, surroundings: Surroundings) -> StageTask:
    job = fetched(job, surroundings, base_dir)
    ready = read_data(job, base_dir, surroundings)
    settings = _settings(job) | {"select": job.registration.gate.metric}
    content = {"data": ready.prepared.fingerprint, **_networks(job, base_dir)}

    def work(attempt: Attempt) -> dict[str, Any]:
        with ray_for(job.cluster, surroundings) as ray:
            document = train_measure_register(replace(attempt, ray=ray), job, ready)
        (attempt.dir / MODEL_FOLDER).rename(attempt.dir / MADE_DIR / MODEL_FOLDER)
        return document

    return StageTask(settings, content, MODEL_FOLDER, work, _measured)


def _pretrain(job: PretrainJob, base_dir: Path, surroundings: Surroundings) -> StageTask:
    job = fetched(job, surroundings, base_dir)
    texts = read_texts(job, base_dir, surroundings)
    content = {"data": texts.corpus.fingerprint, **_networks(job, base_dir)}

    def work(attempt: Attempt) -> dict[str, Any]:
        with ray_for(job.cluster, surroundings) as ray:
            document = train_and_register(replace(attempt, ray=ray), job, texts)
        (attempt.dir / MODEL_FOLDER).rename(attempt.dir / MADE_DIR / MODEL_FOLDER)
        return document

    return StageTask(_settings(job), content, MODEL_FOLDER, work, _measured_texts)


def _ensemble(job: EnsembleJob, base_dir: Path, surroundings: Surroundings) -> StageTask:
    members = read_members(job, base_dir, surroundings)
    settings = {"kind": job.kind, "data": job.data.model_dump(mode="json", exclude={"test"})}
    settings |= _register(job)
    content = {
        "models": [_model(folder) for folder in members.folders],
        "data": fingerprint_for(members.info, members.rows),
    }

    def work(attempt: Attempt) -> dict[str, Any]:
        document = measure_and_register(attempt, job, members)
        (attempt.dir / MODEL_FOLDER).rename(attempt.dir / MADE_DIR / MODEL_FOLDER)
        return document

    return StageTask(settings, content, MODEL_FOLDER, work, _measured)


def _prepare(job: PrepareStage, base_dir: Path) -> StageTask:
    rows = read_rows(job, base_dir)
    settings = job.model_dump(mode="json", exclude={"name", "input"})

    def work(attempt: Attempt) -> dict[str, Any]:
        folder = attempt.dir / MADE_DIR / OUTPUT_DIR
        folder.mkdir()
        report = write_parts(job, rows, folder)
        show_report(report, attempt.console)
        attempt.record.metrics(_counted(report), step=0)
        write_json(attempt.dir / "data_report.json", report)  # what is made moves away
        attempt.record.artifact(attempt.dir / "data_report.json")
        return {"input": job.input, "report": report}

    content = {"rows": fingerprint_of(rows)}
    return StageTask(settings, content, OUTPUT_DIR, work, lambda found: _counted(found["report"]))


def _counted(report: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(report[name]) for name in PARTS}


def _settings(job: FinetuneJob | PretrainJob) -> dict[str, Any]:
    """What a job that trains says, less what is hashed by content and where it runs."""
    settings = {
        "kind": job.kind,
        "data": job.data.model_dump(mode="json", exclude={"train", "validation", "test"}),
        "model": as_before("model", job.model.model_dump(mode="json", exclude={*_NETWORKS})),
        "train": job.train.model_dump(mode="json"),
    }
    return settings | _register(job)


def _register(job: FinetuneJob | PretrainJob | EnsembleJob) -> dict[str, Any]:
    if job.registration.model is None:
        return {}  # nothing is registered that had to be again
    return {"register": job.registration.model_dump(mode="json")}


def _networks(job: FinetuneJob | PretrainJob, base_dir: Path) -> dict[str, Any]:
    return {n: _network(getattr(job.model, n), base_dir, f"model.{n}") for n in _NETWORKS}


def _network(name: Any, base_dir: Path, field: str) -> Any:
    """A built-in shape and a tokenizer to be trained are what they are called."""
    if not isinstance(name, str) or name in BUILTIN_SHAPES:
        return None if name is None else name if isinstance(name, str) else name.model_dump()
    return hash_of_folder(find_pretrained(name, base_dir=base_dir, field=field))


def _evaluate(job: EvaluateJob, base_dir: Path, surroundings: Surroundings) -> StageTask:
    folder = model_folder(job.model, surroundings, base_dir=base_dir)
    info, data = read_info(folder), job.data
    rows = fingerprint_for(info, rows_for(info, data, base_dir))
    content = {"model": _model(folder), "data": rows}
    settings = {"kind": job.kind, "data": data.model_dump(mode="json", exclude={"test"})}

    def work(attempt: Attempt) -> dict[str, Any]:
        document = run_evaluate(
            job.model,
            data,
            base_dir=base_dir,
            surroundings=surroundings,
            console=attempt.console,
        )
        attempt.record.metrics(_measured(document), step=0)
        return document

    return StageTask(settings, content, None, work, _measured)


def _deploy(job: DeployJob, base_dir: Path, surroundings: Surroundings) -> StageTask:
    folder = model_folder(job.model, surroundings, base_dir=base_dir)
    info = read_info(folder)
    rows = fingerprint_for(info, rows_for(info, job.data, base_dir))
    settings = {
        "kind": job.kind,
        "data": job.data.model_dump(mode="json", exclude={"test"}),
        "register": job.registration.model_dump(mode="json"),
        "registry": registry_name(surroundings),
    }

    def metrics_of(document: Mapping[str, Any]) -> dict[str, float]:
        return {"version": float(document["model"]["version"])} | _measured(document)

    return StageTask(
        settings,
        {"model": _model(folder), "data": rows},
        None,
        lambda attempt: deploy(attempt, job),
        metrics_of,
        lambda document: why_gone(document, surroundings),
    )


def _predict(job: PredictJob, base_dir: Path, surroundings: Surroundings) -> StageTask:
    folder = model_folder(job.model, surroundings, base_dir=base_dir)
    source, low = base_dir / job.input, job.low_confidence
    content = {"model": _model(folder), "input": sha256(source), "format": source.suffixes[-2:]}
    settings: dict[str, Any] = {
        "kind": job.kind,
        "spreadsheet_safe": job.spreadsheet_safe,
        "output": Path(job.output).name,
    }
    if low is not None:
        named = {"output": Path(low.output).name}
        settings["low_confidence"] = low.model_dump(mode="json") | named
    made, *_ = files_of(job)

    def work(attempt: Attempt) -> dict[str, Any]:
        paths = [attempt.dir / MADE_DIR / path for path in files_of(job)]
        for path in paths:
            path.parent.mkdir()
        document = run_predict(
            job.model,
            job.input,
            str(paths[0]),
            base_dir=base_dir,
            surroundings=surroundings,
            console=attempt.console,
            spreadsheet_safe=job.spreadsheet_safe,
            low_confidence=low and low.model_copy(update={"output": str(paths[1])}),
        )
        attempt.record.metrics(_rows(document), step=0)
        if low is not None:
            document["low_confidence"]["output"] = low.output
        return document | {"output": job.output}

    return StageTask(settings, content, made, work, _rows)


def files_of(job: PredictJob) -> dict[str, str]:
    """The files of a predict stage below MADE_DIR, and where the job wants each of them."""
    folders = (OUTPUT_DIR, "low_confidence")
    return {f"{folder}/{Path(output).name}": output
            for folder, output in zip(folders, job.outputs, strict=False)}  # fmt: skip


def _model(folder: Path) -> str:
    """Its own file says the checksums of all others, and loading checks them."""
    return sha256(folder / OUR_FORMAT)


def _measured(document: Mapping[str, Any]) -> dict[str, float]:
    split = "test" if document.get("test") else "validation"
    return {f"{split}/{name}": value for name, value in numbers(document[split]).items()}


def _measured_texts(document: Mapping[str, Any]) -> dict[str, float]:
    return {f"validation/{name}": value for name, value in document["validation"].items()}


def _rows(document: Mapping[str, Any]) -> dict[str, float]:
    low = document.get("low_confidence")
    more = {} if low is None else {"low_confidence": float(low["rows"])}
    return {"rows": float(document["rows"])} | more
