"""One fault of a request as data, and the exception that carries all of them."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gpt2cls.errors import RequestError
from jobs.masking import mask, mask_value

_SHOWN_CHARACTERS = 120


@dataclass(frozen=True)
class Problem:
    """What is wrong, where, and what would be right."""

    message: str
    """One sentence with field, value and what is allowed; without file and line."""
    file: str | None = None
    line: int | None = None
    column: int | None = None
    field: str | None = None
    value: Any = None
    allowed: str | None = None

    def text(self) -> str:
        """One line for a person: train.yaml:9: train.epochs = 0: must be at least 1."""
        where = ":".join(str(part) for part in (self.file, self.line, self.column) if part)
        return mask(f"{where}: {self.message}" if where else self.message)

    def document(self) -> dict[str, Any]:
        """The same for a program; every value is legal JSON."""
        return {
            "file": self.file,
            "line": self.line,
            "field": self.field,
            "value": plain(mask_value(self.field, self.value)),
            "allowed": self.allowed,
            "message": mask(self.message),
        }


class BadRequestError(RequestError):
    """A request has faults; nothing was started or written."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(list(problems))  # so that pickle can rebuild it
        self.problems = list(problems)

    def __str__(self) -> str:
        return "\n".join(problem.text() for problem in self.problems)


def shown(value: Any) -> str:
    """A value as it stands in a message: short, on one line, as one would write it."""
    if isinstance(value, str):
        printable = value if value.isprintable() and value else repr(value)
        text = printable if len(value) < _SHOWN_CHARACTERS else ascii(value)
    elif value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, dict | list):
        text = json.dumps(plain(value), ensure_ascii=True)
    else:
        text = {"nan": ".nan", "inf": ".inf", "-inf": "-.inf"}.get(str(value), str(value))
    if len(text) > _SHOWN_CHARACTERS:
        return f"{text[:_SHOWN_CHARACTERS]}... ({len(text):,} characters)"
    return text


def plain(value: Any, not_finite: Callable[[float], Any] | None = str) -> Any:
    """The nearest thing that JSON can hold; NaN and infinity as told, None: null."""
    if isinstance(value, dict):
        return {str(key): plain(inner, not_finite) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner, not_finite) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return not_finite(value) if not_finite else None
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if hasattr(value, "item"):  # a number of numpy
        return plain(value.item(), not_finite)
    return str(value)
