"""Which alias a new version earns, and which version was champion before. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CHAMPION, CHALLENGER = "champion", "challenger"


@dataclass(frozen=True)
class Standing:
    """What is known of a version when it is judged."""

    version: int
    metrics: Mapping[str, float]
    split: str
    """`test` or `validation`: where the metrics were measured."""
    data_fingerprint: str


@dataclass(frozen=True)
class Verdict:
    alias: str | None
    reason: str


def judge(
    new: Standing,
    champion: Standing | None,
    *,
    metric: str,
    minimum: float | None,
    beats_champion: bool,
) -> Verdict:
    """Champion only if it wins; a version that passes but does not win is the challenger."""
    value = new.metrics.get(metric)
    if value is None:
        known = ", ".join(sorted(new.metrics))
        return Verdict(None, f"no metric {metric!r} was measured on {new.split}; there is {known}")
    shown = f"{new.split} {metric} {value:.4f}"
    if minimum is not None and not value >= minimum:
        return Verdict(None, f"{shown} is below the minimum of {minimum:g}")
    if champion is None:
        return Verdict(CHAMPION, f"{shown}; there was no champion")
    if champion.version == new.version:
        return Verdict(CHAMPION, f"{shown}; it is the champion already")
    if not beats_champion:
        return Verdict(CHAMPION, f"{shown}; version {champion.version} need not be beaten")
    return _against(champion, new, metric, value, shown)


def _against(champion: Standing, new: Standing, metric: str, value: float, shown: str) -> Verdict:
    rival = champion.metrics.get(metric)
    name = f"champion version {champion.version}"
    if rival is None or champion.split != new.split:
        return Verdict(CHALLENGER, f"{shown}; {name} has no {new.split} {metric} to compare with")
    note = ""
    if champion.data_fingerprint != new.data_fingerprint:
        note = " (measured on other data: compare with care)"
    if is_better(metric, value, rival):
        return Verdict(CHAMPION, f"{shown} beats {name} with {rival:.4f}{note}")
    return Verdict(CHALLENGER, f"{shown} does not beat {name} with {rival:.4f}{note}")


def is_better(metric: str, value: float, rival: float) -> bool:
    """Losses and errors are better when smaller; a tie is no win, and NaN never wins."""
    return value < rival if metric in ("log_loss", "ece", "mse", "bits_per_byte") else value > rival


def former_champion(moves: Sequence[tuple[str, int | None]]) -> int | None:
    """The champion before the present one.

    Args:
        moves: (action, version) from the oldest to the newest; a `rollback` undoes the last move
            that is not undone yet, so that two rollbacks go back two champions.
    """
    stack: list[int | None] = []
    for action, version in moves:
        if action == "rollback":
            del stack[-1:]
        else:
            stack.append(version)
    return stack[-2] if len(stack) > 1 else None
