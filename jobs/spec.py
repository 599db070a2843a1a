"""What a job file may say: one strict, frozen model per kind of job."""

from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, Strict, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from gpt2cls.config import (
    BUILTIN_SHAPES,
    Block,
    CorpusConfig,
    DataConfig,
    LanguageModelConfig,
    ModelConfig,
    Number,
    PretrainConfig,
    TrainConfig,
)
from gpt2cls.data.locate import address_fault, is_object
from jobs.input_forms import form_faults, with_metrics_of_values
from jobs.names import MODEL_WORDS, JobName, check_model, is_registered
from jobs.search import Fault, SearchConfig, SpaceGiven, num_trials, sweep_faults
from jobs.spec_uses import (
    DeployJob,
    EnsembleJob,
    EvaluateJob,
    PredictJob,
    PrepareJob,
    PrepareStage,
    RegisterConfig,
)
from jobs.stage_faults import StageFault, graph_faults, name_faults
from jobs.stage_graph import KINDS_OF_STAGES, needs_of, order
from jobs.tree import dotted
from tune_spaces import read_space
from tune_spaces.fields import FIELDS
from tune_spaces.space import Space

_Workers = Annotated[int, Field(ge=1, le=512)]


class ClusterConfig(Block):
    """What the job runs on."""

    workers: _Workers | Annotated[tuple[_Workers, _Workers], Strict(False)] = 1
    """Data-parallel ranks, one process each; [min, max]: as many as there is room for."""
    cpus_per_worker: Annotated[Number, Field(gt=0, le=1024)] | None = None
    """None: the cores of the machine / workers, in a sweep 1. Sets the threads of a rank."""
    gpus_per_worker: int = Field(0, ge=0, le=1)
    """A rank drives at most one GPU."""
    retries: int = Field(3, ge=0, le=1000)
    """Lost workers and failed attempts survived before the job fails."""

    @property
    def max_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def min_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]


class TrainingJob(Block):
    """What finetune jobs and sweeps have in common."""

    kind: Literal["finetune", "sweep"]
    """What the job does."""
    name: JobName
    """Of the job, and of the MLflow experiment."""
    preset: Literal["paper", "gpt1", "ulmfit"] | None = None
    """Fills fields of data, model and train: explicit > preset > default."""
    data: DataConfig
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    cluster: ClusterConfig = ClusterConfig()
    # `register` in the file; in Python the name is taken
    registration: RegisterConfig = Field(RegisterConfig(), alias="register")

    @model_validator(mode="before")
    @classmethod
    def _values_are_judged_by_their_correlation(cls, values: Any) -> Any:
        return with_metrics_of_values(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _the_parts_fit_each_other(self) -> Self:
        if faults := [*self._faults()]:
            # One error for all of them: validation stops at the first that is raised.
            raise PydanticCustomError("rules", "several fields do not fit", {"faults": faults})
        return self

    def _faults(self) -> Iterator[Any]:
        yield from _data_faults(self.data)
        yield from _training_faults(self)
        yield from form_faults(self)


class FinetuneJob(TrainingJob):
    """Fine-tune one classifier."""

    kind: Literal["finetune"]
    """What the job does."""


class SweepJob(TrainingJob):
    """Search for the best settings: many finetune jobs that differ in some fields."""

    kind: Literal["sweep"]
    """What the job does."""
    space: SpaceGiven = "default"
    """What varies: a shipped space, or fields such as train.lr with the values they may have."""
    search: SearchConfig = SearchConfig()

    @cached_property
    def search_space(self) -> Space:
        """The space, read."""
        return read_space(self.space)

    @cached_property
    def fixed(self) -> dict[str, Any]:
        """What the fields that may vary have outside the space, by their dotted names."""
        values = self.model_dump(mode="json", include={"data", "model", "train"})
        return {field: _at(values, field) for field in FIELDS}

    @property
    def num_trials(self) -> int:
        """Points that are tried, not counting repeats."""
        return num_trials(self.search_space, self.search, self.fixed)

    def _faults(self) -> Iterator[Any]:
        yield from super()._faults()
        yield from _backbone_faults(self)
        yield from sweep_faults(self.search_space, self.search, self.fixed)


class LanguageGate(Block):
    """What a new version must reach on the held-out texts."""

    beats: Literal["champion"] | None = None
    """champion: fewer bits per byte make a version champion; None: the newest becomes it."""


class LanguageRegisterConfig(Block):
    """Whether, and under which name, the language model goes to the registry."""

    model: JobName | None = None
    """Name in the registry; None: the model is not registered."""
    gate: LanguageGate = LanguageGate()
    """What a new version must reach on the held-out texts."""


class PretrainJob(Block):
    """Train one language model on texts without labels; other jobs take it as their backbone."""

    kind: Literal["pretrain"]
    """What the job does."""
    name: JobName
    """Of the job, and of the MLflow experiment."""
    data: CorpusConfig
    model: LanguageModelConfig = LanguageModelConfig()
    train: PretrainConfig = PretrainConfig()
    cluster: ClusterConfig = ClusterConfig()
    registration: LanguageRegisterConfig = Field(LanguageRegisterConfig(), alias="register")

    @model_validator(mode="after")
    def _the_parts_fit_each_other(self) -> Self:
        if faults := [*_pretrain_faults(self)]:
            raise PydanticCustomError("rules", "several fields do not fit", {"faults": faults})
        return self


AnyStageJob = (
    PrepareStage | FinetuneJob | PretrainJob | EnsembleJob | PredictJob | EvaluateJob | DeployJob
)


_OPEN_BLOCK = {"type": "object", "properties": {}}
"""For editors: a file may give what a schema of a whole job would miss."""


class When(Block):
    """What an earlier stage must have measured for a stage to run."""

    stage: str = Field(min_length=1)
    """A finetune, pretrain or evaluate stage."""
    metric: str = Field(min_length=1)
    """As its table names it, such as accuracy or log_loss; of a stage that trains on its validation
    split, of an evaluate stage on its test data."""
    below: Number | None = None
    """It runs where the metric is below this."""
    above: Number | None = None
    """It runs where the metric is above this, for losses; one of the two is given."""


class Stage(Block):
    """One job of a pipeline, and what has to be done before it."""

    needs: Annotated[tuple[str, ...], Strict(False)] = ()
    """Stages that have to be done first; one that a reference names need not be repeated here."""
    when: When | None = None
    """Run it only where an earlier stage did not reach what was asked for; None: always."""
    otherwise: str | None = Field(None, min_length=1)
    """With `when`: the stage whose result stands for that of this one where it is skipped."""
    file: str | None = Field(None, min_length=1)
    """A job file that holds the job; what stands in `job` beside it replaces what the file says."""
    folder: str = Field(".", min_length=1)
    """What relative paths in the job are taken from; with `file`, the folder of that file."""
    job: Annotated[AnyStageJob, Field(discriminator="kind"), WithJsonSchema(_OPEN_BLOCK)]
    """A job of another kind than sweep and pipeline, without a name: that is <pipeline>-<stage>.
    Beside `file` a part of one, or left out."""

    model_config = ConfigDict(json_schema_extra=lambda schema: schema.pop("required", None))


class PipelineJob(Block):
    """Jobs that build on one another; a stage that was done before is not done again."""

    kind: Literal["pipeline"]
    """What the job does."""
    name: JobName
    """Of the job, and of the MLflow experiment."""
    stages: dict[str, Stage] = Field(min_length=1)
    """The jobs, by names of letters, digits and dashes."""

    @model_validator(mode="before")
    @classmethod
    def _stages_are_named_after_the_pipeline(cls, values: Any) -> Any:
        stages = values.get("stages") if isinstance(values, dict) else None
        if not isinstance(stages, dict):
            return values
        named = {
            name: _with_name(stage, values.get("name"), name) for name, stage in stages.items()
        }
        return {**values, "stages": named}

    @model_validator(mode="after")
    def _the_stages_fit_each_other(self) -> Self:
        if faults := [*_stage_faults(self)]:
            # Said whole: the queue's face shows this text, and nothing else of it.
            words = [f"{dotted(path)} must be {allowed}" for path, _, allowed in faults[:3]]
            given = {"faults": faults, "words": "; ".join(words)}
            raise PydanticCustomError("rules", "{words}", given)
        return self

    @cached_property
    def needs(self) -> dict[str, tuple[str, ...]]:
        """What each stage needs, said or by reference; the stages in the order they run."""
        needs = {
            name: tuple(dict.fromkeys(need.stage for need in needs_of(name, stage)))
            for name, stage in _as_plain(self).items()
        }
        return {name: needs[name] for name in order(needs)}

    @cached_property
    def inputs(self) -> dict[str, tuple[str, ...]]:
        """Of each stage the needs that its result depends on: not those that decide if it runs."""
        return {
            name: tuple(dict.fromkeys(n.stage for n in needs_of(name, stage) if not n.is_condition))
            for name, stage in _as_plain(self).items()
        }


AnyJob = AnyStageJob | SweepJob | PipelineJob
Job = Annotated[
    FinetuneJob
    | PretrainJob
    | SweepJob
    | EnsembleJob
    | PrepareJob
    | PredictJob
    | EvaluateJob
    | DeployJob
    | PipelineJob,
    Field(discriminator="kind"),
]

KINDS: dict[str, type[AnyJob]] = {
    "finetune": FinetuneJob,
    "pretrain": PretrainJob,
    "sweep": SweepJob,
    "ensemble": EnsembleJob,
    "prepare": PrepareJob,
    "predict": PredictJob,
    "evaluate": EvaluateJob,
    "deploy": DeployJob,
    "pipeline": PipelineJob,
}
STAGE_KINDS: dict[str, type[AnyJob]] = {
    kind: PrepareStage if kind == "prepare" else KINDS[kind] for kind in KINDS_OF_STAGES
}
KINDS_TO_COME = ("distill", "prompt")


def _data_faults(data: DataConfig) -> Iterator[Fault]:
    columns = [data.text] if isinstance(data.text, str) else [*data.text]
    if len(set(columns)) < len(columns):
        yield "data.text", columns, "two different columns"
    if data.pair == "both_orders" and len(columns) == 1:
        yield "data.pair", data.pair, "ordered, or data.text [first, second]: one text has no order"
    columns += [data.choices] if data.choices is not None else []
    if data.choices in columns[:-1]:
        yield "data.choices", data.choices, "a column that is not also data.text"
    if data.label in columns:
        yield "data.label", data.label, "a column that is not also data.text"
    if isinstance(data.test, float) and isinstance(data.validation, float):
        left = 1 - data.test - data.validation
        if left <= 0:
            share = f"below {1 - data.validation:g}, as data.validation takes {data.validation:g}"
            yield "data.test", data.test, share


def _at(values: dict[str, Any], field: str) -> Any:
    block, _, name = field.partition(".")
    return values[block][name]


def _training_faults(job: TrainingJob) -> Iterator[Fault]:
    yield from _worker_faults(job.train, job.cluster, "row")
    yield from _address_faults(job.model)
    yield from _object_faults(job.data)
    if job.train.lm_weight and job.train.freeze != "none":
        words = f"none with train.lm_weight = {job.train.lm_weight:g}: all layers learn the texts"
        yield "train.freeze", job.train.freeze, words
    yield from _encdec_faults(job.model, job.train)
    yield from _embedding_faults(job.model, job.train)


def _encdec_faults(model: ModelConfig, train: TrainConfig) -> Iterator[Fault]:
    if model.head != "encdec":
        return
    if model.pooling != "last":
        words = "last (the default) with model.head = encdec, whose queries read all of a text"
        yield "model.pooling", model.pooling, words
    if train.freeze not in ("none", "head_only", "gradual"):
        words = "none, head_only or gradual with model.head = encdec, whose layers are all new"
        yield "train.freeze", train.freeze, words
    if model.hidden:
        words = "0 with model.head = encdec, whose layers are its own"
        yield "model.hidden", model.hidden, words
    if train.lm_weight:
        words = "0 with model.head = encdec, whose encoder sees the tokens that come next"
        yield "train.lm_weight", train.lm_weight, words


def _embedding_faults(model: ModelConfig, train: TrainConfig) -> Iterator[Fault]:
    if model.embedding_init == "random":
        return
    with_it = f"with model.embedding_init = {model.embedding_init}"
    if model.backbone not in BUILTIN_SHAPES:
        words = f"one of {', '.join(BUILTIN_SHAPES)} {with_it}: any other has its own embedding"
        yield "model.backbone", model.backbone, words
    if train.freeze != "none":
        yield "train.freeze", train.freeze, f"none {with_it}: the embedding learns on"
    if train.lm_epochs:
        words = f"0 {with_it}, which the language model does not begin with"
        yield "train.lm_epochs", train.lm_epochs, words


def _pretrain_faults(job: PretrainJob) -> Iterator[Fault]:
    yield from _worker_faults(job.train, job.cluster, "block")
    yield from _address_faults(job.model)
    yield from _object_faults(job.data)
    if job.train.objective in ("masked", "joint"):
        words = "causal or backward: this version has no masked and no joint objective"
        yield "train.objective", job.train.objective, words


_OF_LANGUAGE = ("model.backbone", "model.tokenizer", "data.max_length")


def _backbone_faults(job: SweepJob) -> Iterator[Fault]:
    space = job.search_space
    for field in space:
        path = ("space", field)
        if field in ("train.lm_epochs", "train.lm_lr"):
            yield path, field, "a field of the classifier: the language model is fine-tuned once"
        elif field in _OF_LANGUAGE and job.train.lm_epochs:
            words = f"outside the space, or train.lm_epochs = 0 in place of {job.train.lm_epochs}"
            yield path, field, f"{words}: the language model is fine-tuned once, before the trials"
        elif field in _OF_LANGUAGE[:2]:
            for value in space[field].values:
                if is_registered(value) and "@" in value:
                    yield path, value, "a version, as models:/name/3: an alias may move"


def _worker_faults(train: TrainConfig, cluster: ClusterConfig, unit: str) -> Iterator[Fault]:
    if cluster.min_workers > cluster.max_workers:
        yield "cluster.workers", cluster.workers, "[min, max] with min no larger than max"
    elif train.batch_size < cluster.max_workers:
        words = (
            f"at least {cluster.max_workers}, so that each of cluster.workers has a {unit} per "
            "step; raise it, or ask for fewer workers"
        )
        yield "train.batch_size", train.batch_size, words


def _address_faults(model: ModelConfig | LanguageModelConfig) -> Iterator[Fault]:
    for field in ("backbone", "tokenizer"):
        value = getattr(model, field)
        if isinstance(value, str) and is_registered(value):
            try:
                check_model(value)
            except ValueError:
                yield f"model.{field}", value, MODEL_WORDS


def _object_faults(data: DataConfig | CorpusConfig) -> Iterator[Fault]:
    for field in ("train", "validation", "test"):
        given = getattr(data, field, None)
        for value in given if isinstance(given, tuple) else (given,):
            if is_object(value) and (words := address_fault(value)):
                yield f"data.{field}", value, words


def _with_name(stage: Any, pipeline: Any, name: str) -> Any:
    job = stage.get("job") if isinstance(stage, dict) else None
    return (
        {**stage, "job": {"name": f"{pipeline}-{name}"} | job} if isinstance(job, dict) else stage
    )


def _stage_faults(job: PipelineJob) -> Iterator[StageFault]:
    yield from name_faults(job.name, job.stages)
    yield from graph_faults(_as_plain(job))
    for name, stage in job.stages.items():
        if stage.file is not None:
            words = "null: a file is read where the pipeline's own file is"
            yield ("stages", name, "file"), stage.file, words


def _as_plain(job: PipelineJob) -> dict[str, Any]:
    values: dict[str, Any] = job.model_dump(mode="json", include={"stages"})
    return dict(values["stages"])


def dump(job: AnyJob) -> dict[str, Any]:
    """The resolved job as plain JSON values, every default filled in; itself a legal job file."""
    values = job.model_dump(mode="json", by_alias=True)
    if isinstance(job, PipelineJob):
        for stage in values["stages"].values():
            del stage["job"]["name"]
    return values
