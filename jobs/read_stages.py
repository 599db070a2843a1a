"""The stages of a pipeline's file: each is checked as the job file it stands for.

A fault keeps its file and line, and its field is that of the whole pipeline.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gpt2cls.errors import RequestError
from jobs.explain import explain, must_be
from jobs.faults import BadRequestError, Problem
from jobs.names import is_folder
from jobs.read import check_tree
from jobs.spec import STAGE_KINDS, AnyJob, PipelineJob
from jobs.spec_uses import PredictJob
from jobs.stage_faults import graph_faults, name_faults
from jobs.stage_graph import MARK
from jobs.tree import MAX_VALUES, Path_, Tree, dotted, read_tree

_NAME = "stage"  # in the place of the true one, which depends on the pipeline's
_ANY_JOB = {"kind": "evaluate", "name": _NAME, "model": "m", "data": {"test": "t"}}
_NO_JOB = "the stage's job in the field job, or in file the path of a job file"


def check_pipeline(
    tree: Tree, base_dir: Path, data_dir: Path | None
) -> tuple[PipelineJob | None, tuple[Problem, ...]]:
    """The pipeline, if its fields are right, and the data of its stages that is not there.

    What is wrong is added to the tree's problems.
    """
    stages = _stages_of(tree)
    _take_in_files(tree, stages, base_dir)
    jobs: dict[str, AnyJob] = {}
    missing: list[Problem] = []
    for name, part in _parts(tree, stages).items():
        folder = stages[name].get("folder")
        root = base_dir / folder if isinstance(folder, str) else base_dir
        job, gone = check_tree(part, root, data_dir, STAGE_KINDS)
        gone += (*_missing_model(part, root), *_bad_output(job, part, root))
        missing += [_placed(p, name) for p in gone if MARK not in str(p.value)]
        tree.problems += [_placed(problem, name) for problem in part.problems]
        if job is not None:
            jobs[name] = job
    tree.problems += _shell_problems(tree, stages)
    faults = [*name_faults(str(tree.values.get("name")), stages), *graph_faults(stages)]
    tree.problems += [must_be(tree, *fault) for fault in faults]
    if tree.problems or len(jobs) < len(stages):
        return None, tuple(missing)
    return _assembled(tree, stages, jobs), tuple(missing)


def _stages_of(tree: Tree) -> dict[str, dict[str, Any]]:
    """The stages that are blocks; what else stands there is a fault of the shell."""
    stages = tree.values.get("stages")
    found = stages.items() if isinstance(stages, dict) else ()
    return {name: stage for name, stage in found if isinstance(stage, dict)}


def _take_in_files(tree: Tree, stages: dict[str, dict[str, Any]], base_dir: Path) -> None:
    """Put the job of each file into its stage, beneath what the stage says itself."""
    read: dict[str, Tree | None] = {}
    num_values = 0
    for name, stage in stages.items():
        file, at = stage.get("file"), ("stages", name)
        if not isinstance(file, str) or not file:
            continue
        if "folder" in stage:
            words = f"left out: paths are taken from the folder of {file}"
            tree.problems.append(must_be(tree, (*at, "folder"), stage["folder"], words))
        if file not in read:
            read[file] = _read_file(tree, (*at, "file"), file, base_dir)
        part = read[file]
        if part is None:
            stage["job"] = None
            continue
        num_values += len(part.lines)
        if num_values > MAX_VALUES:  # one file may stand in many stages
            words = f"of files that hold at most {MAX_VALUES:,} values together"
            tree.problems.append(must_be(tree, (*at, "file"), file, words))
            return
        _merge(tree, stage, part, (*at, "job"))
        stage |= {"file": None, "folder": str(Path(file).parent)}


def _read_file(tree: Tree, at: Path_, file: str, base_dir: Path) -> Tree | None:
    try:
        part = read_tree(base_dir / file)
    except BadRequestError as error:
        where, line = tree.where(at)
        words = f"{dotted(at)} = {file}: {error.problems[0].message}"
        tree.problems.append(Problem(words, where, line, None, dotted(at), file))
        tree.problems += error.problems[1:]
        return None
    tree.problems += part.problems
    return part


def _merge(tree: Tree, stage: dict[str, Any], part: Tree, at: Path_) -> None:
    given = stage.get("job", {})
    if not isinstance(given, dict):
        return  # said of the shell
    below = {key: deepcopy(value) for key, value in part.values.items() if key != "name"}
    stage["job"] = _over(below, given)
    for path, line in part.lines.items():
        if path:
            tree.lines.setdefault((*at, *path), line)


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """The values of both blocks; where both have one, that of `above`."""
    whole = dict(below)
    for key, value in above.items():
        inner = whole.get(key)
        both = isinstance(inner, dict) and isinstance(value, dict)
        whole[key] = _over(inner or {}, value) if both else value
    return whole


def _parts(tree: Tree, stages: Mapping[str, dict[str, Any]]) -> dict[str, Tree]:
    """The job of each stage as a tree of its own."""
    parts = {
        name: Tree(tree.file, stage["job"] | {"name": _NAME})
        for name, stage in stages.items()
        if isinstance(stage.get("job"), dict)
    }
    for path, line in tree.lines.items():
        if len(path) > 2 and path[0] == "stages" and path[2] == "job" and path[1] in parts:
            parts[str(path[1])].lines[path[3:]] = line
    return parts


def _placed(problem: Problem, name: str) -> Problem:
    """A fault of a stage's job as one of the pipeline."""
    if problem.field is None:
        return problem
    field = f"stages.{name}.job.{problem.field}"
    message = problem.message.replace(problem.field, field, 1)
    if message.startswith("no such field"):
        message = message.replace("did you mean '", f"did you mean 'stages.{name}.job.")
    return replace(problem, field=field, message=message)


def _missing_model(part: Tree, base_dir: Path) -> Iterator[Problem]:
    model = part.values.get("model")
    if isinstance(model, str) and is_folder(model) and "\0" not in model:
        folder = base_dir / Path(model).expanduser()
        if not folder.is_dir():
            file, line = part.where(("model",))
            words = f"model = {model}: there is no folder {folder}"
            yield Problem(words, file, line, None, "model", model, "a model that is there")


def _bad_output(job: AnyJob | None, part: Tree, base_dir: Path) -> Iterator[Problem]:
    if not isinstance(job, PredictJob):
        return
    from gpt2cls.data.write import check_output

    fields = (("output",), ("low_confidence", "output"))
    for path, output in zip(fields, job.outputs, strict=False):
        try:
            check_output(base_dir / output, base_dir / job.input)
        except RequestError as error:
            file, line = part.where(path)
            field = dotted(path)
            words = f"{field} = {output}: {error}"
            allowed = "a file that can be written"
            yield Problem(words, file, line, None, field, output, allowed)


def _shell_problems(tree: Tree, stages: Mapping[str, dict[str, Any]]) -> list[Problem]:
    """Faults of the pipeline's own fields; jobs and needs are judged elsewhere."""
    problems, shell = [], {}
    for name, stage in stages.items():
        job = stage.get("job", _ANY_JOB)
        if "job" not in stage:
            file, line = tree.where(("stages", name))
            field = f"stages.{name}.job"
            words = f"{field} is missing: give {_NO_JOB}"
            problems.append(Problem(words, file, line, None, field, None, _NO_JOB))
        elif isinstance(job, dict) and "name" in job:
            path: Path_ = ("stages", name, "job", "name")
            words = "left out: a stage is called after the pipeline and itself"
            problems.append(must_be(tree, path, job["name"], words))
        is_read = isinstance(job, dict) or (job is None and stage.get("file") is not None)
        shell[name] = stage | {"job": _ANY_JOB if is_read else job, "file": None}
        needs = stage.get("needs")
        if isinstance(needs, list) and all(isinstance(need, str) for need in needs):
            shell[name]["needs"] = []
    given = tree.values
    if isinstance(given.get("stages"), dict):
        tree.values = given | {"stages": given["stages"] | shell}
    try:
        PipelineJob.model_validate(tree.values)
    except ValidationError as error:
        # What is between the stages is said of the true ones, not of those that stand here.
        if not any(detail["type"] == "rules" for detail in error.errors()):
            problems += explain(error, tree, PipelineJob)
    finally:
        tree.values = given
    return problems


def _assembled(
    tree: Tree, stages: Mapping[str, dict[str, Any]], jobs: Mapping[str, AnyJob]
) -> PipelineJob:
    pipeline = tree.values["name"]
    named = {
        name: stages[name] | {"job": job.model_copy(update={"name": f"{pipeline}-{name}"})}
        for name, job in jobs.items()
    }
    return PipelineJob.model_validate(tree.values | {"stages": named})
