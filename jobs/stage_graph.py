"""The stages of a pipeline as a graph: which needs which, in what order they run, what is wrong.

Works on plain values, as a job file holds them, and never recurses: ten thousand stages may stand
in a row.
"""

import difflib
import heapq
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os.path import join, normpath
from typing import Any

from jobs.names import MAX_NAME, NAME_PATTERN, NAME_WORDS
from jobs.tree import Path_, dotted

StageFault = tuple[Path_, object, str]
"""Where, what stands there, and what must."""
KINDS_OF_STAGES = ("prepare", "finetune", "pretrain", "predict", "evaluate")
MARK = "${stages."
"""How the text begins that stands for what another stage made."""
Makers = Mapping[str, tuple[str, ...]]
"""Kind of a stage -> which of the things that it makes."""
MADE: Makers = {
    "finetune": ("model",),
    "pretrain": ("model",),
    "predict": ("output",),
    "prepare": ("labelled", "unlabelled", "texts", "test"),
}
_CLASSIFIER: Makers = {"finetune": ("model",)}
_NETWORK: Makers = {"finetune": ("model",), "pretrain": ("model",)}
_LABELLED: Makers = {"predict": ("output",), "prepare": ("labelled",)}
_TEST: Makers = {"predict": ("output",), "prepare": ("test",)}
_TEXTS: Makers = {"predict": ("output",), "prepare": ("texts", "unlabelled", "labelled")}
TAKES: dict[Path_, Makers] = {
    ("model",): _CLASSIFIER,
    ("model", "backbone"): _NETWORK,
    ("model", "tokenizer"): _NETWORK,
    ("data", "train"): _LABELLED,
    ("data", "validation"): _LABELLED,
    ("data", "test"): _TEST,
    ("input",): _TEXTS,
}
"""Fields of a job that may name what a stage made, and what may stand there. What was held out to
test with is taken by nothing else."""
_NEEDS_NO_LABELS = "pretrain"

_WHAT = "|".join(dict.fromkeys(what for made in MADE.values() for what in made))
_REFERENCE = re.compile(rf"\$\{{stages\.([a-z][a-z0-9-]{{0,62}})\.({_WHAT})\}}")
_MOST_NAMED = 10
_LONGEST_CYCLE_SHOWN = 30


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


def parse_reference(text: str) -> tuple[str, str] | None:
    """Stage, and what of it, that a text stands for; None: it is no reference."""
    found = _REFERENCE.fullmatch(text)
    return (found[1], found[2]) if found else None


def needs_of(name: str, stage: Mapping[str, Any]) -> list[Need]:
    """What a stage needs: as `needs` says, then as the references in its job do."""
    listed = stage.get("needs")
    needs = [
        Need(("stages", name, "needs", i), parent, parent)
        for i, parent in enumerate(listed if isinstance(listed, list | tuple) else ())
        if isinstance(parent, str)
    ]
    for path, text in _marked(stage.get("job"), ("stages", name, "job")):
        if reference := parse_reference(text):
            needs.append(Need(path, text, *reference))
    return needs


def graph_faults(stages: Mapping[str, Any]) -> Iterator[StageFault]:
    """Everything that is wrong between stages: references, stages that are not there, cycles."""
    stages = {name: stage for name, stage in stages.items() if isinstance(stage, dict)}
    kinds = {name: _kind(stage) for name, stage in stages.items()}
    needs = {name: needs_of(name, stage) for name, stage in stages.items()}
    for name, stage in stages.items():
        yield from _reference_faults(name, stage, kinds)
        for need in needs[name]:
            if need.stage not in stages:
                yield need.path, need.given, _not_there(need, stages)
    yield from _cycle_faults(needs)
    yield from _output_faults(stages)


def name_faults(pipeline: str, stages: Iterable[str]) -> Iterator[StageFault]:
    """Names of stages that cannot be part of the names of their jobs."""
    longest = MAX_NAME - len(pipeline) - 1
    for name in stages:
        if not re.fullmatch(NAME_PATTERN, name):
            yield ("stages", name), name, f"named in {NAME_WORDS}"
        elif len(name) > longest:
            words = f"a name of at most {longest} letters, as <pipeline>-<stage> has {MAX_NAME}"
            yield ("stages", name), name, words


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


def _cycle_faults(needs: Mapping[str, Sequence[Need]]) -> Iterator[StageFault]:
    by_name = {name: [need.stage for need in found] for name, found in needs.items()}
    for cycle in cycles(by_name):
        at, after = cycle[0], cycle[1 % len(cycle)]
        need = next(need for need in needs[at] if need.stage == after)
        yield need.path, need.given, f"a stage that does not need this one: {_shown([*cycle, at])}"


def _shown(cycle: Sequence[str]) -> str:
    """As a -> b -> a; of a long one, its two ends."""
    parts = [*cycle]
    if len(parts) > _LONGEST_CYCLE_SHOWN:
        half = _LONGEST_CYCLE_SHOWN // 2
        left_out = len(parts) - 2 * half
        parts = [*parts[:half], f"... {left_out:,} more ...", *parts[-half:]]
    return " -> ".join(parts)


def _reference_faults(
    name: str, stage: Mapping[str, Any], kinds: Mapping[str, Any]
) -> Iterator[StageFault]:
    at: Path_ = ("stages", name, "job")
    for path, text in _marked(stage.get("job"), at):
        field = path[len(at) :]
        in_list = len(field) > 1 and isinstance(field[-1], int)
        takes = TAKES.get(field[:-1] if in_list else field)
        reference = parse_reference(text)
        if takes is _LABELLED and kinds[name] == _NEEDS_NO_LABELS:
            takes = _TEXTS
        if takes is None:
            fields = ", ".join(dotted(field) for field in TAKES)
            yield path, text, f"a plain value: only {fields} may name what another stage made"
        elif reference is None:
            what = next(iter(takes.values()))[0]
            yield path, text, f"the whole of a reference, such as ${{stages.NAME.{what}}}"
        elif reference[0] in kinds:
            yield from _unfit(path, text, reference, kinds[reference[0]], takes)


def _unfit(
    path: Path_, text: str, reference: tuple[str, str], kind: Any, takes: Makers
) -> Iterator[StageFault]:
    """What is wrong with a reference to a stage of this kind in a field that takes this."""
    name, what = reference
    if kind not in KINDS_OF_STAGES:
        return  # said of the kind
    if kind not in takes:
        yield path, text, f"of a stage of kind {', '.join(takes)}; {name} is of kind {kind}"
    elif what not in takes[kind]:
        yield path, text, " or ".join(f"${{stages.{name}.{one}}}" for one in takes[kind])


def _output_faults(stages: Mapping[str, Any]) -> Iterator[StageFault]:
    """Stages that would replace the file of another one."""
    writers: dict[str, str] = {}
    for name, stage in stages.items():
        job = stage.get("job")
        output = job.get("output") if isinstance(job, dict) else None
        if isinstance(output, str):
            path = normpath(join(str(stage.get("folder", ".")), output))
            if writers.setdefault(path, name) != name:
                words = f"another file than that of stage {writers[path]}"
                yield ("stages", name, "job", "output"), output, words


def _not_there(need: Need, stages: Mapping[str, Any]) -> str:
    names = [*stages][:_MOST_NAMED]
    more = f" and {len(stages) - len(names):,} more" if len(stages) > len(names) else ""
    words = f"a stage of this pipeline: {', '.join(names)}{more}"
    near = difflib.get_close_matches(need.stage, names, n=1)
    return f"{words}; did you mean '{near[0]}'?" if near else words


def _kind(stage: Mapping[str, Any]) -> Any:
    job = stage.get("job")
    return job.get("kind") if isinstance(job, dict) else None


def _marked(value: Any, path: Path_) -> Iterator[tuple[Path_, str]]:
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
