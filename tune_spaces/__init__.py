"""Search spaces: what may vary in a job, the spaces that come along, and how searchers see them.

Knows the fields of a job, not jobs; Ray and Optuna are imported by the two readers alone.
"""

import difflib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tune_spaces.check import SPACE_WORDS, SpaceError, SpaceFault, checked_space
from tune_spaces.space import Space

SHIPPED = {
    "default": "default.yaml",
    "ulmfit": "ulmfit.yaml",
    "head": "head.yaml",
    "wide": "wide.yaml",
}
"""Name -> file beside this one."""


def read_space(given: str | Mapping[str, Any]) -> Space:
    """A shipped space by its name, or the one that a job file gives.

    Raises:
        SpaceError: all of its faults at once.
    """
    if isinstance(given, Mapping):
        return checked_space(given)
    if not isinstance(given, str) or given not in SHIPPED:
        near = difflib.get_close_matches(str(given), SHIPPED, n=1)
        words = f"one of {', '.join(SHIPPED)}, or {SPACE_WORDS}"
        words += f"; did you mean '{near[0]}'?" if near else ""
        raise SpaceError([SpaceFault((), given, words)])
    return checked_space(shipped_document(given))


@cache
def shipped_document(name: str) -> dict[str, Any]:
    """A shipped space as its file says it, in the words of a job file."""
    text = (Path(__file__).parent / SHIPPED[name]).read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))
