"""What a job file may say of jobs that train nothing: prepare, predict, evaluate, deploy, ..."""

from os.path import normpath
from typing import Annotated, Literal, Self

from pydantic import Field, Strict, model_validator
from pydantic_core import PydanticCustomError

from gpt2cls.config import Block, Number, Pair, Share
from jobs.names import JobName, ModelAddress


class Gate(Block):
    """What a new version must reach on the test split."""

    metric: Literal["accuracy", "macro_f1", "micro_f1", "exact_match", "pearson", "spearman"] = (
        "accuracy"
    )
    """What is judged, and which evaluation in training counts as the best. Of regression: pearson,
    which it is then unless given, or spearman."""
    min: Annotated[Number, Field(ge=0, le=1)] | None = None
    """Below this the model is not registered; None: no floor."""
    beats: Literal["champion"] | None = "champion"
    """The version that must be beaten to become champion; None: the newest becomes it."""


class RegisterConfig(Block):
    """Whether, and under which name, the model goes to the registry."""

    model: JobName | None = None
    """Name in the registry; None: the model is not registered."""
    gate: Gate = Gate()
    """What a new version must reach on the test split."""


class EvaluationData(Block):
    """Labelled texts to measure a model on."""

    test: str = Field(min_length=1)
    """A built-in name, a file, a glob, a directory, or hf:<dataset>[/<config>]."""
    text: str | Pair | None = None
    """None: the column that the model was trained on."""
    choices: str | None = Field(None, min_length=1)
    """Of answers to choose from; None: the column that the model was trained on, if it chooses."""
    label: str = "label"
    """The column of the label."""
    separator: str | None = Field(None, min_length=1)
    """Splits the label column into several labels; a list column needs none."""


class PrepareStage(Block):
    """Divide texts of which only some have a label: what to learn from, and a test kept apart."""

    kind: Literal["prepare"]
    """What the job does."""
    name: JobName
    """Of the job."""
    input: str = Field(min_length=1)
    """A built-in name, a file, a glob, a directory, or hf:<dataset>[/<config>]."""
    text: str = Field("text", min_length=1)
    """The column of the text."""
    label: str = Field("label", min_length=1)
    """The column of the label; where it is empty or null the row has none."""
    separator: str | None = Field(None, min_length=1)
    """Splits the label column into several labels; a list column needs none."""
    test: Share = 0.2
    """Share of the labelled texts (stratified, seeded) that is in no other file than its own."""
    keep_labels: Share | None = None
    """Forget the labels of all but this share of the texts, to try what few labels do; None: no."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Of what is held out and what is forgotten."""

    @model_validator(mode="after")
    def _the_columns_differ(self) -> Self:
        if self.label == self.text:
            fault = ("label", self.label, "a column that is not also text")
            raise PydanticCustomError("rules", "several fields do not fit", {"faults": [fault]})
        return self


class PrepareJob(PrepareStage):
    """Divide texts of which only some have a label: what to learn from, and a test kept apart."""

    output: str = Field(min_length=1)
    """A folder for labelled.parquet, unlabelled.parquet, texts.parquet (both, without labels),
    test.parquet and report.json. A stage of a pipeline has no such field."""


class LowConfidence(Block):
    """The texts that the model is least sure of, for a person to label."""

    output: str = Field(min_length=1)
    """A file as `output`: the columns of the input, an empty label, the predicted one, and how sure
    that is; the least sure text first. Replaced when the whole is written."""
    below: Annotated[Number, Field(gt=0, le=1)] = 0.6
    """Probability that the label is right; of several, that of the one decided least surely."""
    most: int = Field(1000, ge=1, le=100_000)
    """Texts in the file; they are held in memory."""


class PredictJob(Block):
    """Predict every row of a file with a model."""

    kind: Literal["predict"]
    """What the job does."""
    name: JobName
    """Of the job."""
    model: ModelAddress
    """The model to use."""
    input: str = Field(min_length=1)
    """CSV, TSV, JSON, JSONL or Parquet, each also gzipped."""
    output: str = Field(min_length=1)
    """A file of any of these formats, Parquet without .gz; replaced when the whole is written."""
    spreadsheet_safe: bool = False
    """Keep cells that begin like a formula from being one in a spreadsheet."""
    low_confidence: LowConfidence | None = None
    """The texts that the model is least sure of, for a person to label; left out: no such file."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """All files that are written."""
        low = self.low_confidence
        return (self.output,) if low is None else (self.output, low.output)

    @model_validator(mode="after")
    def _the_files_differ(self) -> Self:
        low = self.low_confidence
        if low is not None and normpath(low.output) == normpath(self.output):
            fault = ("low_confidence.output", low.output, "another file than output")
            raise PydanticCustomError("rules", "several fields do not fit", {"faults": [fault]})
        return self


class EvaluateJob(Block):
    """Measure a model on labelled data."""

    kind: Literal["evaluate"]
    """What the job does."""
    name: JobName
    """Of the job."""
    model: ModelAddress
    """The model to use."""
    data: EvaluationData


class EnsembleJob(Block):
    """Make one model of several: its probabilities are the mean of theirs."""

    kind: Literal["ensemble"]
    """What the job does."""
    name: JobName
    """Of the job, and of the MLflow experiment."""
    models: Annotated[tuple[ModelAddress, ...], Strict(False), Field(min_length=2, max_length=32)]
    """Models of one task, for example one that reads forward and one that reads backward."""
    data: EvaluationData
    registration: RegisterConfig = Field(RegisterConfig(), alias="register")


class DeployRegisterConfig(Block):
    """The name under which the model is served."""

    model: JobName
    """Name in the registry."""
    gate: Gate = Gate()
    """What it must reach on the labelled texts; below `min` the job fails."""


class DeployJob(Block):
    """Measure a model, register it, let the gate decide whether it is champion, and try it out."""

    kind: Literal["deploy"]
    """What the job does."""
    name: JobName
    """Of the job, and of the MLflow experiment."""
    model: ModelAddress
    """The model to deploy; one that is registered under the name already gets no new version."""
    data: EvaluationData
    registration: DeployRegisterConfig = Field(alias="register")
