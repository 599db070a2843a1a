"""What is wrong between the stages of a pipeline: references, conditions, cycles, files.

Works on plain values, as a job file holds them, and never recurses.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os.path import join, normpath
from typing import Any

from jobs.names import MAX_NAME, NAME_PATTERN, NAME_WORDS
from jobs.stage_graph import (
    KINDS_OF_STAGES,
    LABELLED,
    TAKES,
    TEXTS,
    Makers,
    Need,
    cycles,
    marked,
    needs_of,
    parse_reference,
)
from jobs.tree import Path_, dotted

StageFault = tuple[Path_, object, str]
"""Where, what stands there, and what must."""
_OF_LABELS = (
    "accuracy",
    "macro_f1",
    "micro_f1",
    "exact_match",
    "average_precision",
    "log_loss",
    "ece",
)
MEASURED: Makers = {
    "finetune": _OF_LABELS,
    "evaluate": _OF_LABELS,
    "pretrain": ("loss", "perplexity", "bits_per_byte"),
}
"""Kind of a stage -> the metrics that a condition can ask for."""
_NEEDS_NO_LABELS = "pretrain"
_MOST_NAMED = 10
_LONGEST_CYCLE_SHOWN = 30


def graph_faults(stages: Mapping[str, Any]) -> Iterator[StageFault]:
    """All that is wrong between stages: references, conditions, stages not there, cycles."""
    stages = {name: stage for name, stage in stages.items() if isinstance(stage, dict)}
    kinds = {name: _kind(stage) for name, stage in stages.items()}
    needs = {name: needs_of(name, stage) for name, stage in stages.items()}
    for name, stage in stages.items():
        yield from _reference_faults(name, stage, kinds)
        for need in needs[name]:
            if need.stage not in stages:
                yield need.path, need.given, _not_there(need, stages)
    yield from condition_faults(stages, kinds, needs)
    yield from _cycle_faults(needs)
    yield from _output_faults(stages, needs)


def name_faults(pipeline: str, stages: Iterable[str]) -> Iterator[StageFault]:
    """Names of stages that cannot be part of the names of their jobs."""
    longest = MAX_NAME - len(pipeline) - 1
    for name in stages:
        if not re.fullmatch(NAME_PATTERN, name):
            yield ("stages", name), name, f"named in {NAME_WORDS}"
        elif len(name) > longest:
            words = f"a name of at most {longest} letters, as <pipeline>-<stage> has {MAX_NAME}"
            yield ("stages", name), name, words


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
    for path, text in marked(stage.get("job"), at):
        field = path[len(at) :]
        in_list = len(field) > 1 and isinstance(field[-1], int)
        takes = TAKES.get(field[:-1] if in_list else field)
        reference = parse_reference(text)
        if takes is LABELLED and kinds[name] == _NEEDS_NO_LABELS:
            takes = TEXTS
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


def condition_faults(
    stages: Mapping[str, Any], kinds: Mapping[str, Any], needs: Mapping[str, Sequence[Need]]
) -> Iterator[StageFault]:
    """What is wrong with the conditions of stages, and with relying on one that may be skipped."""
    used = {n.stage: name for name in needs for n in needs[name] if n.what or n.is_condition}
    for name, stage in stages.items():
        when, otherwise, at = stage.get("when"), stage.get("otherwise"), ("stages", name)
        if when is None and otherwise is not None:
            yield (*at, "otherwise"), otherwise, "left out: without `when` the stage always runs"
        if not isinstance(when, dict):
            continue
        yield from _limit_faults((*at, "when"), when, kinds)
        if otherwise is None and name in used:
            words = f"the stage that stands for this one if it is skipped: {used[name]} needs one"
            yield (*at, "otherwise"), None, words
        elif otherwise in kinds and kinds[otherwise] != kinds[name]:
            words = f"a stage of kind {kinds[name]}; {otherwise} is of kind {kinds[otherwise]}"
            yield (*at, "otherwise"), otherwise, words


def _limit_faults(
    at: Path_, when: Mapping[str, Any], kinds: Mapping[str, Any]
) -> Iterator[StageFault]:
    if (when.get("below") is None) == (when.get("above") is None):
        yield at, {**when}, "a condition with one of below and above"
    stage, metric = when.get("stage"), when.get("metric")
    kind = kinds.get(stage) if isinstance(stage, str) else None
    if kind not in KINDS_OF_STAGES:
        return  # said elsewhere
    if kind not in MEASURED:
        words = f"of a stage of kind {', '.join(MEASURED)}; {stage} is of kind {kind}"
        yield (*at, "stage"), stage, words
    elif isinstance(metric, str) and metric not in MEASURED[kind]:
        words = f"what {stage} measures: {', '.join(MEASURED[kind])}"
        yield (*at, "metric"), metric, words


def _output_faults(
    stages: Mapping[str, Any], needs: Mapping[str, Sequence[Need]]
) -> Iterator[StageFault]:
    """Stages that would replace the file of another one, or what an earlier one has read."""
    writers: dict[str, str] = {}
    readers: dict[str, list[str]] = {}
    for name, stage in stages.items():
        for source in _sources(stage.get("job")):
            readers.setdefault(_path_of(stage, source), []).append(name)
    for name, stage in stages.items():
        for field, output in _outputs(stage.get("job")):
            path, at = _path_of(stage, output), ("stages", name, "job", *field)
            if writers.setdefault(path, name) != name:
                words = f"another file than that of stage {writers[path]}"
                yield at, output, words
            elif path in readers and (before := _needed_by(name, needs) & {*readers[path]}):
                yield at, output, f"another file than what stage {min(before)} reads"


def _path_of(stage: Mapping[str, Any], file: str) -> str:
    return normpath(join(str(stage.get("folder", ".")), file))


def _needed_by(name: str, needs: Mapping[str, Sequence[Need]]) -> set[str]:
    """All stages that come before one because it needs them."""
    found: set[str] = set()
    left = [name]
    while left:
        parents = {need.stage for need in needs.get(left.pop(), ())} - found
        found |= parents
        left += parents
    return found


def _sources(job: Any) -> Iterator[str]:
    """The files that a job names to read, and what else stands there."""
    job = job if isinstance(job, dict) else {}
    data = job.get("data")
    values = [job.get("input"), *(data.values() if isinstance(data, dict) else ())]
    for value in values:
        yield from (one for one in (value if isinstance(value, list | tuple) else [value])
                    if isinstance(one, str))  # fmt: skip


def _outputs(job: Any) -> Iterator[tuple[Path_, str]]:
    """The fields of a job that name a file to write, and the file."""
    job = job if isinstance(job, dict) else {}
    low = job.get("low_confidence")
    for path, block in ((("output",), job), (("low_confidence", "output"), low)):
        if isinstance(block, dict) and isinstance(output := block.get("output"), str):
            yield path, output


def _not_there(need: Need, stages: Mapping[str, Any]) -> str:
    names = [*stages][:_MOST_NAMED]
    more = f" and {len(stages) - len(names):,} more" if len(stages) > len(names) else ""
    words = f"a stage of this pipeline: {', '.join(names)}{more}"
    near = difflib.get_close_matches(need.stage, names, n=1)
    return f"{words}; did you mean '{near[0]}'?" if near else words


def _kind(stage: Mapping[str, Any]) -> Any:
    job = stage.get("job")
    return job.get("kind") if isinstance(job, dict) else None
