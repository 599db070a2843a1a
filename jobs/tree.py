"""A YAML text as plain values, each with the line it stands on.

A small, closed reading of YAML: it builds mappings, lists, text, numbers, true/false and null and
nothing else, so no text can make it run code, grow without bound or turn a word into something
else (`no`, `010`, `12:30` and `2024-01-01` stay text). Works on the parser's events, which arrive
one at a time and do not recurse.
"""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from jobs.faults import BadRequestError, Problem
from jobs.masking import mask_value

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_VALUES = 100_000

Path_ = tuple[str | int, ...]
"""Where a value lies: ("train", "lr") or ("cluster", "workers", 0)."""

_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_WORDS: dict[str, Any] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
    ".nan": float("nan"), ".NaN": float("nan"), ".NAN": float("nan"),
    ".inf": float("inf"), "+.inf": float("inf"), "-.inf": float("-inf"),
}  # fmt: skip
_SYNTAX_IN_WORDS = {
    "found character that cannot start any token": "a tab or a reserved character stands where a "
    "value begins; indent with spaces and put the value in quotes",
    "mapping values are not allowed in this context": "a second 'key:' on this line, or an "
    "indentation deeper than that of the line above",
    "did not find expected ',' or ']'": "a list is not closed with ']'",
    "did not find expected ',' or '}'": "a mapping is not closed with '}'",
    "did not find expected node content": "a value is missing, or a bracket is not closed",
    "did not find expected key": "a key is missing, or the indentation differs from the line above",
    "could not find expected ':'": "a key without ':' after it",
    "found unexpected end of stream": "a quote is not closed",
    "control characters are not allowed": "the file holds a control character",
}

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class Tree:
    """A job file before its fields are checked."""

    file: str
    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[Path_, tuple[str, int | None]] = field(default_factory=dict)
    """File and line of each key; what came from the command line has no line."""
    problems: list[Problem] = field(default_factory=list)

    def where(self, path: Path_) -> tuple[str, int | None]:
        """File and line of a value, or of the nearest block around it."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return self.lines[path[:end]]
        return self.file, self.lines.get((), (self.file, None))[1]


def read_tree(path: Path) -> Tree:
    """Read a file of at most one megabyte.

    Raises:
        BadRequestError: it cannot be read, or is not the YAML that a job file may use.
    """
    return parse_tree(_read_text(path), str(path))


def parse_tree(text: str, file: str) -> Tree:
    """The values of a YAML text whose top level is a mapping."""
    tree = Tree(file)
    values = _Builder(text, tree).build()
    if not isinstance(values, dict):
        if not tree.problems:
            words = "the file is empty" if values is None else "the file is not a mapping"
            tree.problems.append(_problem(file, 1, None, f"{words}; begin with 'kind: finetune'"))
        raise BadRequestError(tree.problems)
    tree.values = values
    return tree


def scalar(text: str) -> Any:
    """The value of an unquoted word, after the core schema of YAML 1.2.

    Numbers with a leading zero stay text, because they are more often an id than a number.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and not _LEADING_ZERO.fullmatch(text):
        return float(text)
    return text


def override(tree: Tree, settings: Sequence[str]) -> None:
    """Set `key=value` pairs in the tree, before anything is checked."""
    for setting in settings:
        key, equals, text = setting.partition("=")
        path = tuple(key.strip().split("."))
        if not equals or not all(path):
            tree.problems.append(
                _problem("-s", None, None, f"-s {setting!r}: must look like train.lr=3e-5", setting)
            )
            continue
        num_problems = len(tree.problems)
        value = _setting(text.strip(), path, tree)
        if len(tree.problems) > num_problems:
            continue  # said once; what the file says is checked on
        block = tree.values
        for i, part in enumerate(path[:-1]):
            inner = block.setdefault(part, {})
            if not isinstance(inner, dict):
                inner = block[part] = {}  # like a file that gave the block in the first place
            tree.lines.setdefault(path[: i + 1], ("-s", None))
            block = inner
        block[path[-1]] = value
        tree.lines = {at: line for at, line in tree.lines.items() if at[: len(path)] != path}
        tree.lines[path] = ("-s", None)


def _setting(text: str, path: Path_, tree: Tree) -> Any:
    if text[:1] not in ("[", "{", '"', "'", "!"):
        if _CONTROL.search(text):
            tree.problems.append(_control_problem("-s", None, path, text))
        return scalar(text)
    part = Tree("-s")
    try:
        value = _Builder(text, part).build()
    except BadRequestError as error:
        part.problems.extend(error.problems)
        value = None
    for problem in part.problems:
        at, given = dotted(path), mask_value(dotted(path), text[:80])
        words = f"{at} = {given!r}: {problem.message.removeprefix('line 1: ')}"
        tree.problems.append(replace(problem, message=words, line=None, column=None, field=at))
    return value


def _read_text(path: Path) -> str:
    try:
        # Non-blocking: a pipe that nobody writes to would hold the command for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BadRequestError([_problem(str(path), None, None, "is not a regular file")])
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadRequestError(
            [_problem(str(path), None, None, f"cannot read the job file: {reason}")]
        ) from error
    if len(data) > MAX_BYTES:
        words = f"the file is larger than {MAX_BYTES:,} bytes, the most a job file may have"
        raise BadRequestError([_problem(str(path), None, None, words)])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        words = f"byte 0x{data[error.start]:02x} on line {line} is not UTF-8; save it as UTF-8"
        raise BadRequestError([_problem(str(path), line, None, words)]) from error


class _Builder:
    """Turns the parser's events into values, within the limits, noting lines and faults."""

    def __init__(self, text: str, tree: Tree) -> None:
        self.text, self.tree = text, tree
        self.anchors: dict[str, tuple[Any, int]] = {}
        self.num_values = 0

    def build(self) -> Any:
        try:
            events = iter(yaml.parse(self.text, Loader=_Loader))
            next(events)  # the start of the stream
            if isinstance(next(events), yaml.StreamEndEvent):
                return None
            first: Any = next(events)
            self.tree.lines[()] = (self.tree.file, first.start_mark.line + 1)
            value = self._value(first, events, ())
            next(events)  # the end of the document
            after = next(events)
        except yaml.YAMLError as error:
            raise BadRequestError([*self.tree.problems, self._syntax_problem(error)]) from error
        if not isinstance(after, yaml.StreamEndEvent):
            self._stop(after, (), "a second document begins; a job file holds one")
        return value

    def _value(self, event: Any, events: Iterator[Any], path: Path_) -> Any:
        self.num_values += 1
        if self.num_values > MAX_VALUES:
            self._stop(event, path, f"the file holds more than {MAX_VALUES:,} values")
        if len(path) > MAX_DEPTH:
            self._stop(event, path[:3], f"values are nested more than {MAX_DEPTH} deep")
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, path)
        if event.tag is not None:
            self._stop(event, path, f"{_tag_of(event)} is not allowed; write a plain value")
        before = self.num_values
        value: Any
        if isinstance(event, yaml.MappingStartEvent):
            value = self._mapping(events, path)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self._sequence(events, path)
        else:
            value = self._scalar(event, path)
        if event.anchor:
            self.anchors[event.anchor] = (value, self.num_values - before + 1)
        return value

    def _mapping(self, events: Iterator[Any], path: Path_) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent) or event.tag is not None:
                what = _tag_of(event) or "a list or mapping"
                self._stop(event, path, f"{what} is not allowed as a key; write a plain word")
            key, line = event.value, event.start_mark.line + 1
            if key == "<<":
                words = (
                    "'<<' merges nothing here; write the fields out, or repeat a whole block by *"
                )
                self._stop(event, path, words)
            at = (*path, key)
            if _CONTROL.search(key):
                self.tree.problems.append(_control_problem(self.tree.file, line, path, key))
            if key in values:
                first = self.tree.lines[at][1]
                words = f"{dotted(at)} is given twice, first on line {first}; keep one"
                self.tree.problems.append(_problem(self.tree.file, line, dotted(at), words, key))
            self.tree.lines[at] = (self.tree.file, line)
            values[key] = self._value(next(events), events, at)
        return values

    def _sequence(self, events: Iterator[Any], path: Path_) -> list[Any]:
        values: list[Any] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            at = (*path, len(values))
            self.tree.lines[at] = (self.tree.file, event.start_mark.line + 1)
            values.append(self._value(event, events, at))
        return values

    def _scalar(self, event: Any, path: Path_) -> Any:
        if _CONTROL.search(event.value):
            line = event.start_mark.line + 1
            self.tree.problems.append(_control_problem(self.tree.file, line, path, event.value))
        return scalar(event.value) if event.implicit[0] else event.value

    def _alias(self, event: Any, path: Path_) -> Any:
        if event.anchor not in self.anchors:
            self._stop(event, path, f"'*{event.anchor}' names nothing above it")
        value, size = self.anchors[event.anchor]
        self.num_values += size
        if self.num_values > MAX_VALUES:
            self._stop(event, path, f"aliases make the file more than {MAX_VALUES:,} values large")
        return _copy(value)

    def _stop(self, event: Any, path: Path_, words: str) -> None:
        line = event.start_mark.line + 1
        problem = _problem(self.tree.file, line, dotted(path) or None, f"line {line}: {words}")
        raise BadRequestError([*self.tree.problems, problem])

    def _syntax_problem(self, error: yaml.YAMLError) -> Problem:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        raw = str(getattr(error, "problem", None) or getattr(error, "reason", None) or error)
        words = _SYNTAX_IN_WORDS.get(raw, raw.replace("invalid", "malformed"))
        if mark is None:
            return _problem(self.tree.file, None, None, f"not YAML: {words}")
        line, column = mark.line + 1, mark.column + 1
        text = f"line {line}, column {column}: not YAML: {words}"
        return Problem(message=text, file=self.tree.file, line=line, column=column)


def dotted(path: Path_) -> str:
    """A path as it is written in messages: train.lr, cluster.workers[0]."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _tag_of(event: Any) -> str | None:
    tag = getattr(event, "tag", None)
    return f"tag '{tag.replace('tag:yaml.org,2002:', '!!')}'" if tag else None


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value


def _control_problem(file: str, line: int | None, path: Path_, text: str) -> Problem:
    at = dotted(path)
    words = f"{at} = {text[:80]!r}: holds a line break or control character; write it on one line"
    return _problem(file, line, at, words, text, "text without line breaks or control characters")


def _problem(
    file: str,
    line: int | None,
    at: str | None,
    words: str,
    value: Any = None,
    allowed: str | None = None,
) -> Problem:
    return Problem(message=words, file=file, line=line, field=at, value=value, allowed=allowed)
