"""Whether a stage runs: what an earlier one measured against what was asked for. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.errors import JobFailed
from jobs.spec import When

_SPLIT = {"finetune": "validation", "pretrain": "validation", "evaluate": "test"}
"""Kind of a stage -> the table that decides. A test split that decided would be one no more."""


@dataclass(frozen=True)
class Decision:
    """Whether the condition holds, and why."""

    holds: bool
    words: str


def decide(when: When, kind: str, result: Mapping[str, Any]) -> Decision:
    """Compare a metric with its limit.

    Args:
        when: the condition.
        kind: of the stage that was measured.
        result: the document of its job.

    Raises:
        JobFailed: it has no such metric.
    """
    split = _SPLIT[kind]
    table = result.get(split) or {}
    value = table.get(when.metric)
    if not isinstance(value, int | float):
        there = ", ".join(name for name, found in table.items() if isinstance(found, float))
        raise JobFailed(
            f"when: {when.stage} measured no {when.metric} on {split}; there is {there}"
        )
    name = f"{when.stage}: {split} {when.metric} {value:.4f}"
    if when.below is not None:
        holds, limit = value < when.below, f"below {when.below:g}"
    else:
        assert when.above is not None
        holds, limit = value > when.above, f"above {when.above:g}"
    return Decision(holds, f"{name} is {'' if holds else 'not '}{limit}")
