"""Faults of a job file in words: what, where, why, what to do.

The validation library's own words are never shown: what a field must be is read from its JSON
schema, so a changed limit changes the message.
"""

import difflib
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from jobs.faults import Problem, shown
from jobs.masking import mask_value
from jobs.names import JOB_ID_PATTERN, MODEL_WORDS, NAME_PATTERN, NAME_WORDS
from jobs.search import Fault
from jobs.tree import Path_, Tree, dotted
from tune_spaces.check import SpaceFault

_PATTERN_IN_WORDS = {
    NAME_PATTERN: NAME_WORDS,
    JOB_ID_PATTERN: "the id of a job, as `gpt2cls jobs` lists them",
    r"^[1-9][0-9]{0,8} (epoch|epochs|step|steps)$": "text such as '1 epoch' or '200 steps'",
    r"^(none|head_only|last_layer|gradual|top:[1-9][0-9]{0,3})$": (
        "none, head_only, last_layer, gradual, or top: and a number, such as top:2"
    ),
}
_TYPE_IN_WORDS = {
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "object": "a block of fields",
}
_LIMITS = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
}
_LIMITS_IN_WORDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}
_MORE_THAN_A_MISTYPE = 0.6


def explain(error: ValidationError, tree: Tree, model: type[BaseModel]) -> list[Problem]:
    """One problem per field, in the order of the file."""
    schema = _schema_of_model(model)
    problems: dict[str, Problem] = {}
    folded: set[Path_] = set()
    details = error.errors(include_url=False, include_input=False)
    for detail in sorted(details, key=lambda d: -len(_path_of(d, tree.values))):
        for problem, path in _explain_one(detail, tree, schema):
            # A union reports every branch: the error deepest in what was given is the true one.
            is_noise = isinstance(_at(tree.values, path), dict | list) and path in folded
            if problem.field not in problems and not is_noise:
                problems[str(problem.field)] = problem
            folded.update(path[:end] for end in range(len(path)))
    return sorted(problems.values(), key=lambda p: (p.line is None, p.line or 0))


@cache  # a pipeline may have thousands of stages with a fault each
def _schema_of_model(model: type[BaseModel]) -> dict[str, Any]:
    return schema_of(model)


def schema_of(job: Any) -> dict[str, Any]:
    """The JSON schema of a job or of the union of all.

    A limit of a number inside a union comes out under pydantic's own name, which no editor knows.
    """
    return dict(_with_known_limits(TypeAdapter(job).json_schema()))


def _with_known_limits(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {_LIMITS.get(key, key): _with_known_limits(value) for key, value in schema.items()}
    return [_with_known_limits(item) for item in schema] if isinstance(schema, list) else schema


def _explain_one(
    detail: Mapping[str, Any], tree: Tree, schema: dict[str, Any]
) -> Iterator[tuple[Problem, Path_]]:
    if detail["type"] == "rules":
        for fault in detail["ctx"]["faults"]:
            yield _explain_rule(fault, tree, schema)
        return
    path = _path_of(detail, tree.values)
    wording = _WORDING.get(detail["type"], _out_of_range)
    yield wording(path, tree, schema), path


def _explain_rule(
    fault: SpaceFault | Fault, tree: Tree, schema: dict[str, Any]
) -> tuple[Problem, Path_]:
    """The words of a rule of ours; its field is dotted, or a path where keys hold dots."""
    if isinstance(fault, SpaceFault):
        return _explain_space(fault, tree, schema)
    field, value, allowed = fault
    path: Path_ = tuple(field.split(".")) if isinstance(field, str) else field
    return must_be(tree, path, value, allowed), path


def _explain_space(fault: SpaceFault, tree: Tree, schema: dict[str, Any]) -> tuple[Problem, Path_]:
    path: Path_ = ("space", *fault.path)
    allowed = fault.allowed
    if fault.like is not None:
        allowed = allowed_words(_schema_at(schema, tuple(fault.like.split("."))))
        allowed += f", as {fault.like}"
    if fault.message is None:
        return must_be(tree, path, fault.value, str(allowed)), path
    words = f"{dotted(path)} = {shown(fault.value)}: {fault.message}"
    return _problem(tree, path, words, fault.value, str(allowed)), path


def must_be(tree: Tree, path: Path_, value: Any, allowed: str) -> Problem:
    """A value that is not what its field takes."""
    field = dotted(path)
    words = f"{field} = {shown(mask_value(field, value))}: must be {allowed}"
    return _problem(tree, path, words, value, allowed)


def _out_of_range(path: Path_, tree: Tree, schema: dict[str, Any]) -> Problem:
    return must_be(tree, path, _at(tree.values, path), allowed_words(_schema_at(schema, path)))


def _missing(path: Path_, tree: Tree, schema: dict[str, Any]) -> Problem:
    allowed = allowed_words(_schema_at(schema, path))
    words = f"{dotted(path)} is missing: give {allowed}"
    return _problem(tree, path, words, None, allowed)


def _unknown(path: Path_, tree: Tree, schema: dict[str, Any]) -> Problem:
    block, key = path[:-1], str(path[-1])
    siblings = [*_schema_at(schema, block).get("properties", {})]
    near = difflib.get_close_matches(key, siblings, n=1, cutoff=_MORE_THAN_A_MISTYPE)
    likely = [dotted((*block, name)) for name in near] or _fields_named(key, schema)
    words = f"no such field '{dotted(path)}'; "
    if likely:
        words += f"did you mean '{likely[0]}'?"
    else:
        words += f"{dotted(block) or 'a job file'} has {', '.join(siblings) or 'no fields'}"
    return _problem(tree, path, words, _at(tree.values, path), ", ".join(siblings))


_WORDING = {"missing": _missing, "extra_forbidden": _unknown}
"""Type of fault -> its wording; every other type is a value that is not what its field takes."""


def _problem(tree: Tree, path: Path_, words: str, value: Any, allowed: str) -> Problem:
    file, line = tree.where(path)
    return Problem(
        message=words, file=file, line=line, field=dotted(path), value=value, allowed=allowed
    )


def allowed_words(schema: dict[str, Any]) -> str:
    """What a JSON schema allows, as one reads it aloud."""
    if branches := schema.get("anyOf"):
        words = [allowed_words(branch) for branch in branches]
        return f"{', '.join(words[:-1])} or {words[-1]}"
    if "oneOf" in schema or "$ref" in schema:  # told apart by their kind; a block among others
        return _TYPE_IN_WORDS["object"]
    if "const" in schema or "enum" in schema:
        values = schema.get("enum", [schema.get("const")])
        return (f"one of {', '.join(values)}") if len(values) > 1 else f"{values[0]}"
    if pattern := schema.get("pattern"):
        return _PATTERN_IN_WORDS.get(pattern, f"text like {pattern}")
    kind = str(schema.get("type"))
    if kind in ("integer", "number"):
        return _number_words(schema)
    if kind == "array" and "prefixItems" not in schema:
        return f"a list, each entry {allowed_words(schema.get('items', {}))}"
    if kind == "array":
        items = schema["prefixItems"]
        return f"a list of {len(items)}: {', '.join(allowed_words(item) for item in items)}"
    if kind == "object" and "properties" not in schema:
        return f"a mapping of names to {allowed_words(schema.get('additionalProperties') or {})}"
    if schema.get("title") == "Model" or "ModelAddress" in str(schema.get("title")):
        return MODEL_WORDS
    return _TYPE_IN_WORDS.get(kind, "another value")


def _number_words(schema: dict[str, Any]) -> str:
    words = "a whole number" if schema["type"] == "integer" else "a number"
    limits = [
        f"{limit_words} {_readable(schema[name])}"
        for name, limit_words in _LIMITS_IN_WORDS.items()
        if name in schema
    ]
    return f"{words} {' and '.join(limits)}" if limits else words


def _readable(number: float) -> str:
    return f"{int(number):,}" if number == int(number) else f"{number:g}"


def _path_of(detail: Mapping[str, Any], values: Any) -> Path_:
    """The location of a fault in the file; names of union branches are not part of it."""
    path: Path_ = ()
    *inner, last = detail["loc"] or ("",)
    for part in (*inner, last):
        is_new_key = part is last and detail["type"] == "missing"
        is_key = isinstance(values, dict) and part in values
        is_index = isinstance(values, list) and isinstance(part, int) and part < len(values)
        if is_key or is_index:
            values = values[part]
            path = (*path, part)
        elif is_new_key:
            path = (*path, part)
    return path


def _at(values: Any, path: Path_) -> Any:
    for part in path:
        if isinstance(values, dict):
            values = values.get(str(part))
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            values = values[part]
        else:
            return None
    return values


def _schema_at(schema: dict[str, Any], path: Path_) -> dict[str, Any]:
    """The schema of a field, with references to other parts of the schema followed."""
    at = schema
    for part in path:
        at = next(_steps_into(at, part, schema), {})
    return _followed(at, schema)


def _steps_into(at: dict[str, Any], part: str | int, schema: dict[str, Any]) -> Iterator[Any]:
    at = _followed(at, schema)
    for branch in [at, *at.get("anyOf", [])]:
        branch = _followed(branch, schema)
        if part in branch.get("properties", {}):
            yield branch["properties"][part]
        elif isinstance(part, int) and part < len(branch.get("prefixItems", [])):
            yield branch["prefixItems"][part]
        elif isinstance(part, int) and isinstance(branch.get("items"), dict):
            yield branch["items"]
        elif isinstance(branch.get("additionalProperties"), dict):
            yield branch["additionalProperties"]


def _followed(at: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    if name := at.get("$ref"):
        return dict(schema["$defs"][name.rpartition("/")[2]])
    return at


def _fields_named(key: str, schema: dict[str, Any]) -> list[str]:
    """Where else a key would be right: `lr` at the top is `train.lr`."""
    blocks = {name: _followed(block, schema) for name, block in schema["properties"].items()}
    return [f"{name}.{key}" for name, block in blocks.items() if key in block.get("properties", {})]
