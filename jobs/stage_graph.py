"""The stages of a pipeline as a graph: which needs which, what it takes, in what order they run.

Works on plain values, as a job file holds them, and never recurses: ten thousand stages may stand
in a row.
"""

import heapq
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.tree import Path_

KINDS_OF_STAGES = (
    "prepare",
    "finetune",
    "pretrain",
    "ensemble",
    "predict",
    "evaluate",
    "deploy",
)
MARK = "${stages."
"""How the text begins that stands for what another stage made."""
Makers = Mapping[str, tuple[str, ...]]
"""Kind of a stage -> which of the things that it makes."""
MADE: Makers = {
    "finetune": ("model",),
    "pretrain": ("model",),
    "ensemble": ("model",),
    "predict": ("output",),
    "prepare": ("labelled", "unlabelled", "texts", "test"),
}
_CLASSIFIER: Makers = {"finetune": ("model",), "ensemble": ("model",)}
_NETWORK: Makers = {"finetune": ("model",), "pretrain": ("model",)}
LABELLED: Makers = {"predict": ("output",), "prepare": ("labelled",)}
_TEST: Makers = {"predict": ("output",), "prepare": ("test",)}
TEXTS: Makers = {"predict": ("output",), "prepare": ("texts", "unlabelled", "labelled")}
TAKES: dict[Path_, Makers] = {
    ("model",): _CLASSIFIER,
    ("models",): _CLASSIFIER,
    ("model", "backbone"): _NETWORK,
    ("model", "tokenizer"): _NETWORK,
    ("data", "train"): LABELLED,
    ("data", "validation"): LABELLED,
    ("data", "test"): _TEST,
    ("input",): TEXTS,
}
"""Fields of a job that may name what a stage made, and what may stand there. What was held out to
test with is taken by nothing else."""

_WHAT = "|".join(dict.fromkeys(what for made in MADE.values() for what in made))
_REFERENCE = re.compile(rf"\$\{{stages\.([a-z][a-z0-9-]{{0,62}})\.({_WHAT})\}}")


@dataclass(frozen=True)
class Need:
    """One place of a pipeline that says that a stage needs another one."""

    path: Path_
    """From the top of the job file."""
    given: Any
    stage: str
    """The one that is needed."""
    what: str | None = None
    """Of what it makes, where a reference says it."""
    is_condition: bool = False
    """It only decides whether the stage runs."""


def parse_reference(text: str) -> tuple[str, str] | None:
    """Stage, and what of it, that a text stands for; None: it is no reference."""
    found = _REFERENCE.fullmatch(text)
    return (found[1], found[2]) if found else None


def needs_of(name: str, stage: Mapping[str, Any]) -> list[Need]:
    """What a stage needs: as `needs` says, as its condition does, as references in its job do."""
    listed = stage.get("needs")
    needs = [
        Need(("stages", name, "needs", i), parent, parent)
        for i, parent in enumerate(listed if isinstance(listed, list | tuple) else ())
        if isinstance(parent, str)
    ]
    for field, parent in _conditions(stage):
        needs.append(Need(("stages", name, *field), parent, parent, is_condition=True))
    for path, text in marked(stage.get("job"), ("stages", name, "job")):
        if reference := parse_reference(text):
            needs.append(Need(path, text, *reference))
    return needs


def _conditions(stage: Mapping[str, Any]) -> Iterator[tuple[Path_, str]]:
    when = stage.get("when")
    asked = when.get("stage") if isinstance(when, dict) else None
    for field, parent in ((("when", "stage"), asked), (("otherwise",), stage.get("otherwise"))):
        if isinstance(parent, str):
            yield field, parent


def order(needs: Mapping[str, Sequence[str]]) -> list[str]:
    """The stages, each after all that it needs, else in the order given.

    What lies on a cycle, or behind one, is left out; so is a need that is no stage.
    """
    names = [*needs]
    waits = {name: {need for need in needs[name] if need in needs} for name in names}
    behind: dict[str, list[int]] = {name: [] for name in names}
    for i, name in enumerate(names):
        for need in waits[name]:
            behind[need].append(i)
    ready = [i for i, name in enumerate(names) if not waits[name]]
    done = []
    while ready:
        name = names[heapq.heappop(ready)]
        done.append(name)
        for i in behind[name]:
            waits[names[i]].discard(name)
            if not waits[names[i]]:
                heapq.heappush(ready, i)
    return done


def cycles(needs: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Cycles among the stages, at least one if there is any; each names its first stage once."""
    runs = set(order(needs))
    stuck = [name for name in needs if name not in runs]
    next_of = {name: _first(needs[name], lambda need: need in needs and need not in runs)
               for name in stuck}  # fmt: skip
    walk_of: dict[str, str] = {}
    found = []
    for start in stuck:
        at, path = start, []
        while at not in walk_of:
            walk_of[at] = start
            path.append(at)
            at = next_of[at]
        if walk_of[at] == start:  # else an earlier walk has been here
            found.append(path[path.index(at) :])
    return found


def _first(names: Sequence[str], is_meant: Callable[[str], bool]) -> str:
    return next(name for name in names if is_meant(name))


def marked(value: Any, path: Path_) -> Iterator[tuple[Path_, str]]:
    """Every text that holds a reference, or what begins like one, in the order of the file."""
    left = [(path, value)]
    while left:
        path, value = left.pop()
        if isinstance(value, str) and MARK in value:
            yield path, value
        elif isinstance(value, dict):
            left += [((*path, key), inner) for key, inner in reversed(value.items())]
        elif isinstance(value, list | tuple):
            left += [((*path, i), inner) for i, inner in reversed([*enumerate(value)])]
