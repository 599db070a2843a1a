"""The fields of a job file that may vary, and what each of them takes."""

import difflib
from typing import Any

from pydantic import ValidationError

from gpt2cls.config import Block, DataConfig, ModelConfig, TrainConfig

_MODELS: dict[str, type[Block]] = {"model": ModelConfig, "train": TrainConfig}
FIELDS = (
    "data.max_length",
    *(f"model.{name}" for name in ModelConfig.model_fields),
    *(f"train.{name}" for name in TrainConfig.model_fields),
)


class UnfitError(ValueError):
    """A value that its field does not take."""


def as_field(field: str, value: Any) -> Any:
    """The value as plain JSON as the job file would hold it after its check.

    Raises:
        UnfitError: the field does not take it.
    """
    block, _, name = field.partition(".")
    try:
        if block == "data":
            checked: Block = DataConfig.model_validate({"train": "x", name: value})
        else:
            checked = _MODELS[block].model_validate({name: value})
    except (ValidationError, RecursionError) as error:
        raise UnfitError(field) from error
    return checked.model_dump(mode="json", include={name})[name]


def takes(field: str, value: Any) -> bool:
    """Whether the field takes the value."""
    try:
        as_field(field, value)
    except UnfitError:
        return False
    return True


def likely_field(text: str) -> str | None:
    """The field that was probably meant."""
    for field in FIELDS:  # `lr` for `train.lr`, `model.lr` likewise
        if text.rpartition(".")[2] == field.rpartition(".")[2]:
            return field
    near = difflib.get_close_matches(text, FIELDS, n=1, cutoff=0.75)
    if not near and "." not in text:
        names = {field.rpartition(".")[2]: field for field in FIELDS}
        near = [names[name] for name in difflib.get_close_matches(text, names, n=1, cutoff=0.75)]
    return near[0] if near else None
