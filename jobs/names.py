"""What names, ids and addresses of models may look like: checked at the edge, before any use."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from gpt2cls.errors import RequestError

NAME_PATTERN = r"^[a-z][a-z0-9-]{0,62}$"
MAX_NAME = 63
NAME_WORDS = (
    "1 to 63 lower-case letters, digits and dashes, starting with a letter, such as bbc-news"
)
MODEL_WORDS = "models:/name@alias, models:/name/3, runs:/<run id>, or a model folder"

JobName = Annotated[str, Field(pattern=NAME_PATTERN)]

JOB_ID_PATTERN = r"^[a-z0-9][a-z0-9-]{0,127}$"
_JOB_ID = re.compile(JOB_ID_PATTERN.strip("^$"))
_REGISTERED_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}"
_REGISTERED = re.compile(rf"models:/{_REGISTERED_NAME}(@[A-Za-z0-9_-]{{1,255}}|/[1-9][0-9]{{0,8}})")
_RUN = re.compile(r"runs:/[0-9a-f]{32}(/[A-Za-z0-9_-]{1,64})?")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def check_model(model: str) -> str:
    """The address of a model as it was given, if it is one.

    Raises:
        ValueError: it names another scheme (file:, http:, ...), or is written wrongly.
    """
    if _CONTROL.search(model) or not model.strip():
        raise ValueError(f"must be {MODEL_WORDS}")
    if _SCHEME.match(model) and not (_REGISTERED.fullmatch(model) or _RUN.fullmatch(model)):
        raise ValueError(f"must be {MODEL_WORDS}")
    return model


def is_registered(model: object) -> bool:
    """Whether a value is meant as the address of a registered model, rightly written or not."""
    return isinstance(model, str) and model.startswith(("models:", "runs:"))


def is_folder(model: str) -> bool:
    """Whether the address of a model is a path, not one of a registry."""
    return _SCHEME.match(model) is None


def check_registered_name(name: str) -> str:
    """The name of a registered model as it was given, if it can be one."""
    if not re.fullmatch(_REGISTERED_NAME, name):
        raise RequestError(
            f"model name {ascii(name)[:120]}: a name holds letters, digits, '_', '-' and '.'; "
            "`gpt2cls models` lists them"
        )
    return name


def check_job_id(job_id: str) -> str:
    """The id of a job as it was given, if it can be one; `last` is the newest job."""
    if not _JOB_ID.fullmatch(job_id):
        raise RequestError(
            f"job id {ascii(job_id)[:120]}: an id holds lower-case letters, digits and dashes; "
            "`gpt2cls jobs` lists them"
        )
    return job_id


ModelAddress = Annotated[str, Field(min_length=1), AfterValidator(check_model)]
