"""A job file to a checked job: the only reader of job files."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jobs.explain import explain, must_be
from jobs.faults import BadRequestError, Problem
from jobs.presets import PRESETS, fill
from jobs.spec import KINDS, KINDS_TO_COME, AnyJob, SweepJob
from jobs.tree import Path_, Tree, dotted, override, read_tree

DATA_VARIABLE = "${GPT2CLS_DATA}"
_PATHS: tuple[Path_, ...] = (
    ("data", "train"),
    ("data", "validation"),
    ("data", "test"),
    ("model", "backbone"),
    ("model", "tokenizer"),
    ("model",),
    ("models",),
    ("input",),
    ("output",),
    ("low_confidence", "output"),
)
_SOURCES: tuple[Path_, ...] = (
    ("data", "train"),
    ("data", "validation"),
    ("data", "test"),
    ("input",),
)


@dataclass(frozen=True)
class JobFile:
    """A job file that holds no fault."""

    job: AnyJob
    text: str
    """The file as it was given."""
    base_dir: Path
    """What relative paths in it are taken from."""
    missing: tuple[Problem, ...]
    """Data that is not there."""


def read_job(
    path: Path,
    settings: Sequence[str] = (),
    *,
    data_dir: Path | None,
    needs_data: bool = True,
    base_dir: Path | None = None,
) -> JobFile:
    """Read, override, fill and check a job file; starts and writes nothing.

    Args:
        path: the file.
        settings: `key=value` texts that replace what the file says.
        data_dir: what ${GPT2CLS_DATA} stands for.
        needs_data: whether data that is not there is a fault, not a remark.
        base_dir: what relative paths in it are taken from; None: its own folder.

    Raises:
        BadRequestError: all the faults of the file at once.
    """
    tree = read_tree(path)
    text = path.read_text(encoding="utf-8-sig")
    override(tree, settings)
    base_dir = base_dir or path.absolute().parent
    job: AnyJob | None
    if tree.values.get("kind") == "pipeline":
        from jobs.read_stages import check_pipeline

        job, missing = check_pipeline(tree, base_dir, data_dir)
    else:
        job, missing = check_tree(tree, base_dir, data_dir)
    problems = _once_each([*tree.problems, *(missing if needs_data else ())])
    if job is None or problems:
        raise BadRequestError(problems)
    return JobFile(job, text, base_dir, missing)


def check_tree(
    tree: Tree,
    base_dir: Path,
    data_dir: Path | None,
    kinds: Mapping[str, type[AnyJob]] = KINDS,
) -> tuple[AnyJob | None, tuple[Problem, ...]]:
    """The job of a tree, if the fields are right, and the data that is not there.

    What is wrong with the fields is added to the tree's problems.
    """
    missing = (*_expand(tree, data_dir), *_missing_data(tree, base_dir))
    return _check(tree, kinds), missing


def _check(tree: Tree, kinds: Mapping[str, type[AnyJob]]) -> AnyJob | None:
    kind = tree.values.get("kind")
    likely = _check_kind(kind, tree, kinds)
    if likely is None:
        return None
    _check_preset(tree)
    given, tree.values = tree.values, fill(tree.values) | {"kind": likely}
    try:
        job = kinds[likely].model_validate(tree.values)
        if isinstance(job, SweepJob):
            tree.problems.extend(_ends_of_space(job, tree))
        return job
    except ValidationError as error:
        tree.problems.extend(explain(error, tree, kinds[likely]))
        return None
    finally:
        tree.values = given


def _check_kind(kind: Any, tree: Tree, kinds: Mapping[str, type[AnyJob]]) -> str | None:
    """The kind that is meant; None: it cannot be told."""
    if isinstance(kind, str) and kind in kinds:
        return kind
    allowed = f"one of {', '.join(kinds)}"
    if kind in KINDS_TO_COME:
        words = f"kind = {kind}: this version runs {', '.join(kinds)}"
        near = []
    else:
        problem = must_be(tree, ("kind",), kind, allowed)
        near = difflib.get_close_matches(str(kind), kinds, n=1)
        words = problem.message if kind is not None else f"kind is missing: give {allowed}"
        words += f"; did you mean '{near[0]}'?" if near else ""
    file, line = tree.where(("kind",))
    tree.problems.append(Problem(words, file, line, None, "kind", kind, allowed))
    return near[0] if near else None


def _check_preset(tree: Tree) -> None:
    """Words for the presets that are published but not part of this version."""
    preset = tree.values.get("preset")
    if isinstance(preset, str) and preset not in PRESETS:
        allowed = f"one of {', '.join(PRESETS)}, or null: this version has no other preset"
        tree.problems.append(must_be(tree, ("preset",), preset, allowed))


def _ends_of_space(job: SweepJob, tree: Tree) -> Iterator[Problem]:
    """What the ends of the space make wrong with the rest of the job."""
    from jobs.trial_job import worst_cases

    for path, value, allowed in worst_cases(job):
        assert isinstance(path, tuple), "worst cases are placed by paths: fields hold dots"
        yield must_be(tree, path, value, allowed)


def _texts(tree: Tree, paths: Sequence[Path_]) -> Iterator[tuple[Path_, Any, str]]:
    """Each text at one of the paths, or in a list there, with the block or list that holds it."""
    for path in paths:
        block: Any = tree.values
        for part in path[:-1]:
            block = block.get(part) if isinstance(block, dict) else None
        value = block.get(path[-1]) if isinstance(block, dict) else None
        if isinstance(value, str):
            yield path, block, value
        elif isinstance(value, list):
            of_list = ((i, text) for i, text in enumerate(value) if isinstance(text, str))
            yield from (((*path, i), value, text) for i, text in of_list)


def _expand(tree: Tree, data_dir: Path | None) -> list[Problem]:
    """Put the folder in the place of its variable; without one the data is not there."""
    missing = []
    for path, block, value in _texts(tree, _PATHS):
        if not value.startswith(DATA_VARIABLE):
            continue
        if data_dir is None:
            words = "a path without ${GPT2CLS_DATA}, or set that environment variable to a folder"
            missing.append(must_be(tree, path, value, words))
        else:
            block[path[-1]] = f"{data_dir}{value.removeprefix(DATA_VARIABLE)}"
    return missing


def _missing_data(tree: Tree, base_dir: Path) -> Iterator[Problem]:
    from gpt2cls.data.locate import check_corpus_exists, check_source_exists, is_object

    kind = tree.values.get("kind")
    is_there = check_corpus_exists if kind == "pretrain" else check_source_exists
    for path, _, value in _texts(tree, _SOURCES):
        if value.startswith(DATA_VARIABLE) or not value:
            continue
        if path == ("input",) and kind != "prepare":
            source = base_dir / value
            fault = None if source.is_file() else f"no such file: {source}"
        elif is_object(value) and kind in ("finetune", "sweep", "pretrain"):
            fault = None  # the network is asked when the job runs
        else:
            fault = is_there(value, base_dir=base_dir)
        if fault is not None:
            file, line = tree.where(path)
            words = f"{dotted(path)}: {fault}"
            allowed = "data that is there"
            yield Problem(words, file, line, None, dotted(path), value, allowed)


def _once_each(problems: Sequence[Problem]) -> list[Problem]:
    """The first problem of each place, in the order of the file, the command line last."""
    seen: dict[tuple[Any, ...], Problem] = {}
    for problem in problems:
        key = (problem.file, problem.field or problem.message)
        seen.setdefault(key, problem)
    return sorted(seen.values(), key=lambda p: (p.line is None, p.line or 0))
