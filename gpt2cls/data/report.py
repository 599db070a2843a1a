"""The data report, as `data check` gives it and as a job's record keeps it."""

from pydantic import BaseModel, ConfigDict


class Problem(BaseModel):
    """Something that does not stop training but makes its result worse or harder to trust."""

    model_config = ConfigDict(frozen=True)

    kind: str
    count: int
    """Rows, or classes where the kind speaks of classes or labels."""
    examples: list[str]
    """At most three, each with where it is."""


class TokenReport(BaseModel):
    """Lengths of the texts of a split in tokens, before anything is cut off."""

    model_config = ConfigDict(frozen=True)

    mean: float
    p50: float
    p95: float
    max: int
    share_truncated: float
    """Share of the texts that are longer than `max_length`."""


class NumberReport(BaseModel):
    """The labels of a split that are numbers."""

    model_config = ConfigDict(frozen=True)

    mean: float
    std: float
    min: float
    max: float


class DataReport(BaseModel):
    """What a job is about to train on."""

    model_config = ConfigDict(frozen=True)

    rows: int
    """In all splits."""
    splits: dict[str, int]
    """Rows of train, validation and, if there is one, test."""
    kind: str
    is_pair: bool
    labels: dict[str, dict[str, int]]
    """For each label, its rows in each split; empty where labels are numbers."""
    numbers: dict[str, NumberReport] = {}
    """For each split, where labels are numbers."""
    tokens: dict[str, TokenReport]
    """For each split; empty when lengths were not asked for."""
    max_length: int
    fingerprint: str
    notes: list[str]
    problems: list[Problem]
