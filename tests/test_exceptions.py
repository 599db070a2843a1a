"""Every exception of ours survives the way from one process to another."""

import ast
import builtins
import importlib
import inspect
import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest

from jobs.faults import Problem
from jobs.search import Fault
from tune_spaces.check import SpaceFault

ROOT = Path(__file__).parent.parent
ROOMS = ("cluster", "gpt2cls", "jobs", "tune_spaces")
SAMPLES = {
    int: 3,
    float: 1.5,
    str: "words",
    Sequence[SpaceFault]: [SpaceFault(("train.lr", "uniform"), [2, 1], "low below high")],
    list[Fault]: [("train.lr", 0, "above 0")],
}


def exception_classes():
    """(module, name) of every class that comes from an exception, found without importing."""
    classes = {}
    for file in sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                classes[module, node.name] = bases
    known = {name for name, value in vars(builtins).items() if is_exception(value)}
    found = set()
    while new := {at for at, bases in classes.items() if at not in found and bases & known}:
        found |= new
        known |= {name for _, name in new}
    return sorted(found)


def is_exception(value):
    return isinstance(value, type) and issubclass(value, BaseException)


def an_example(kind):
    """One of the class, its constructor's parameters filled by their types."""
    if "__init__" not in vars(kind):
        return kind("train.lr = 0: must be above 0")
    parameters = list(inspect.signature(kind).parameters.values())
    return kind(*(SAMPLES.get(p.annotation, [Problem("bad", "a.yaml", 3)]) for p in parameters))


@pytest.mark.parametrize(("module", "name"), exception_classes())
def test_an_exception_is_the_same_after_pickling(module, name):
    error = an_example(getattr(importlib.import_module(module), name))
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_the_search_finds_what_is_there():
    names = {name for _, name in exception_classes()}
    assert names >= {"RequestError", "DataError", "NonFiniteLoss", "ClusterError", "JobFailed"}
    assert "FinetuneJob" not in names
