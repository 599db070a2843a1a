"""Sweeps that are refused: every fault with its place, and nothing is made."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from refusing import refused

from jobs.cli import main

HEAD = "kind: sweep\nname: x\ndata: {train: bbc-news}\n"


def space(*lines):
    return "space:\n" + "".join(f"  {line}\n" for line in lines)


LR, HEADS, CLIP = "space.train.lr", "space.model.heads", "space.train.clip"
SPACES = [
    # id, lines of the space, [(field, line, value, word of what is said)]
    ("low above high", ["train.lr: {uniform: [2, 1]}"],
     [(f"{LR}.uniform", 5, [2, 1], "low below")]),
    ("low equals high", ["train.lr: {uniform: [1, 1]}"],
     [(f"{LR}.uniform", 5, [1, 1], "low below")]),
    ("one bound", ["train.lr: {uniform: [1]}"], [(f"{LR}.uniform", 5, [1], "two numbers")]),
    ("three bounds", ["train.lr: {uniform: [1, 2, 3]}"],
     [(f"{LR}.uniform", 5, [1, 2, 3], "two numbers")]),
    ("a number for bounds", ["train.lr: {uniform: 1}"], [(f"{LR}.uniform", 5, 1, "two numbers")]),
    ("no bounds", ["train.lr: {uniform: }"], [(f"{LR}.uniform", 5, None, "two numbers")]),
    ("a bound in words", ["train.lr: {uniform: [low, 1]}"],
     [(f"{LR}.uniform[0]", 5, "low", "finite number")]),
    ("true for a bound", ["train.lr: {uniform: [true, 2]}"],
     [(f"{LR}.uniform[0]", 5, True, "finite number")]),
    ("not a number", ["train.lr: {uniform: [.nan, 1]}"],
     [(f"{LR}.uniform[0]", 5, "nan", "finite number")]),
    ("infinity", ["train.lr: {uniform: [1, .inf]}"],
     [(f"{LR}.uniform[1]", 5, "inf", "finite number")]),
    ("a number too large for a float", ["train.lr: {uniform: [1, 1e999]}"],
     [(f"{LR}.uniform[1]", 5, "inf", "finite number")]),
    ("both bounds wrong", ["train.lr: {uniform: [a, .nan]}"],
     [(f"{LR}.uniform[0]", 5, "a", "finite"), (f"{LR}.uniform[1]", 5, "nan", "finite")]),
    ("a logarithm of zero", ["train.weight_decay: {log_uniform: [0, 1]}"],
     [("space.train.weight_decay.log_uniform[0]", 5, 0, "above 0")]),
    ("a logarithm of less", ["train.lr: {log_uniform: [-1, 1]}"],
     [(f"{LR}.log_uniform[0]", 5, -1, "above 0")]),
    ("epochs of the language model", ["train.lm_epochs: {choice: [1, 2]}"],
     [("space.train.lm_epochs", 5, "train.lm_epochs", "fine-tuned once")]),
    ("an alias, which may move", ["model.backbone: {choice: ['models:/a@champion', gpt2-tiny]}"],
     [("space.model.backbone", 5, "models:/a@champion", "a version, as models:/name/3")]),
    ("a whole logarithm of zero", ["train.lm_epochs: {integer: [0, 2], log: true}"],
     [("space.train.lm_epochs.integer[0]", 5, 0, "above 0 with log: true"),]),
    ("a rate above its limit", ["train.lr: {uniform: [1, 101]}"],
     [(f"{LR}.uniform[1]", 5, 101, "at most 100, as train.lr")]),
    ("a rate of zero", ["train.lr: {uniform: [0, 1]}"],
     [(f"{LR}.uniform[0]", 5, 0, "above 0 and at most 100")]),
    ("a dropout of all", ["model.dropout: {uniform: [0, 1]}"],
     [("space.model.dropout.uniform[1]", 5, 1, "below 1")]),
    ("no heads", ["model.heads: {integer: [0, 4]}"], [(f"{HEADS}.integer[0]", 5, 0, "at least 1")]),
    ("half a head", ["model.heads: {integer: [1, 2.5]}"],
     [(f"{HEADS}.integer[1]", 5, 2.5, "a whole number")]),
    ("fractions for a count", ["model.heads: {uniform: [1, 4]}"],
     [(f"{HEADS}.uniform", 5, [1, 4], "write integer")]),
    ("a range of words", ["train.freeze: {uniform: [0, 1]}"],
     [("space.train.freeze.uniform[0]", 5, 0, "head_only"),
      ("space.train.freeze.uniform[1]", 5, 1, "head_only")]),
    ("a range across two meanings", ["train.warmup: {uniform: [0, 100]}"],
     [("space.train.warmup.uniform[1]", 5, 100, "below 1 or a whole number")]),
    ("a step of zero", ["train.lr: {uniform: [1, 2], step: 0}"], [(f"{LR}.step", 5, 0, "above 0")]),
    ("a step back", ["train.lr: {uniform: [1, 2], step: -1}"], [(f"{LR}.step", 5, -1, "above 0")]),
    ("a step past the end", ["train.lr: {uniform: [1, 2], step: 3}"],
     [(f"{LR}.step", 5, 3, "at most 1, the width")]),
    ("a step in words", ["train.lr: {uniform: [1, 2], step: small}"],
     [(f"{LR}.step", 5, "small", "a number")]),
    ("a step that is none", ["train.lr: {uniform: [1, 2], step: .nan}"],
     [(f"{LR}.step", 5, "nan", "a number")]),
    ("a step without end", ["train.lr: {uniform: [1, 2], step: 1e-300}"],
     [(f"{LR}.step", 5, 1e-300, "at least 1e-12")]),
    ("half a step", ["model.heads: {integer: [1, 4], step: 0.5}"],
     [(f"{HEADS}.step", 5, 0.5, "whole number")]),
    ("a step in a list", ["model.heads: {choice: [1, 4], step: 1}"],
     [(f"{HEADS}.step", 5, 1, "left out")]),
    ("a logarithm of a list", ["model.heads: {choice: [1, 4], log: true}"],
     [(f"{HEADS}.log", 5, True, "left out")]),
    ("a logarithm given twice", ["train.lr: {log_uniform: [1, 2], log: true}"],
     [(f"{LR}.log", 5, True, "left out")]),
    ("a logarithm in words", ["model.heads: {integer: [1, 2], log: base2}"],
     [(f"{HEADS}.log", 5, "base2", "true or false")]),
    ("a choice of none", ["model.heads: {choice: []}"],
     [(f"{HEADS}.choice", 5, [], "at least one value")]),
    ("a grid of none", ["model.heads: {grid: []}"], [(f"{HEADS}.grid", 5, [], "at least one")]),
    ("a choice that is a word", ["train.freeze: {choice: none}"],
     [("space.train.freeze.choice", 5, "none", "a list")]),
    ("the same twice", ["model.heads: {choice: [1, 2, 1]}"],
     [(f"{HEADS}.choice[2]", 5, 1, "not in the list already")]),
    ("the same number twice", ["train.lr: {choice: [1, 1.0]}"],
     [(f"{LR}.choice[1]", 5, 1.0, "not in the list already")]),
    ("null twice", ["train.clip: {choice: [null, null]}"],
     [(f"{CLIP}.choice[1]", 5, None, "not in the list already")]),
    ("a choice that the field refuses", ["train.freeze: {choice: [none, hed_only]}"],
     [("space.train.freeze.choice[1]", 5, "hed_only", "head_only")]),
    ("several such choices", ["model.heads: {choice: [0, 1.5, 2, true]}"],
     [(f"{HEADS}.choice[0]", 5, 0, "least 1"), (f"{HEADS}.choice[1]", 5, 1.5, "whole"),
      (f"{HEADS}.choice[3]", 5, True, "whole")]),
    ("not a number among choices", ["train.lr: {choice: [1, .nan]}"],
     [(f"{LR}.choice[1]", 5, "nan", "above 0")]),
    ("null where none may be", ["train.lr: {choice: [null, 1]}"],
     [(f"{LR}.choice[0]", 5, None, "above 0")]),
    ("a head that is none", ["model.head: {choice: [linear, deep]}"],
     [("space.model.head.choice[1]", 5, "deep", "adaptive")]),
    ("a wrong metric in a block", ["train.early_stopping: {choice: [null, {metric: f2}]}"],
     [("space.train.early_stopping", 5, "f2", "macro_f1")]),
    ("hundreds of values", [f"train.epochs: {{choice: {[*range(1, 258)]}}}"],
     [("space.train.epochs.choice", 5, [*range(1, 258)], "at most 256 values, not 257")]),
    ("a field that is almost right", ["train.lrr: {uniform: [1, 2]}"],
     [("space.train.lrr", 5, {"uniform": [1, 2]}, "did you mean 'train.lr'?")]),
    ("a field without its block", ["lr: {uniform: [1, 2]}"],
     [("space.lr", 5, {"uniform": [1, 2]}, "did you mean 'train.lr'?")]),
    ("a field of another block", ["model.lr: {uniform: [1, 2]}"],
     [("space.model.lr", 5, {"uniform": [1, 2]}, "did you mean 'train.lr'?")]),
    ("a field like none", ["zzz: {uniform: [1, 2]}"],
     [("space.zzz", 5, {"uniform": [1, 2]}, "fields of model and train")]),
    *(
        (f"{field} may not vary", [f"{field}: {{choice: [1]}}"],
         [(f"space.{field}", 5, {"choice": [1]}, "fields of model and train")])
        for field in ("name", "kind", "cluster.workers", "register.model", "data.train")
    ),
    ("a dimension that is a list", ["train.lr: [1, 2]"], [(LR, 5, [1, 2], "uniform: [low, high]")]),
    ("a dimension that is a number", ["train.lr: 1"], [(LR, 5, 1, "uniform: [low, high]")]),
    ("a dimension of nothing", ["train.lr: {}"], [(LR, 5, {}, "uniform: [low, high]")]),
    ("a kind that is almost right", ["train.lr: {unifrm: [1, 2]}"],
     [(f"{LR}.unifrm", 5, [1, 2], "did you mean 'uniform'?")]),
    ("a kind of another tool", ["train.lr: {loguniform: [1, 2]}"],
     [(f"{LR}.loguniform", 5, [1, 2], "did you mean 'log_uniform'?")]),
    ("a kind like none", ["train.lr: {zzz: [1, 2]}"], [(f"{LR}.zzz", 5, [1, 2], "choice: [value")]),
    ("an option that is almost right", ["train.lr: {uniform: [1, 2], stp: 1}"],
     [(f"{LR}.stp", 5, 1, "did you mean 'step'?")]),
    ("two kinds", ["train.lr: {uniform: [1, 2], choice: [1]}"],
     [(LR, 5, {"uniform": [1, 2], "choice": [1]}, "uniform and choice; keep one")]),
    ("only a step", ["train.lr: {step: 1}"], [(LR, 5, {"step": 1}, "uniform: [low, high]")]),
    ("a reason that is a number", ["train.lr: {uniform: [1, 2], why: 3}"],
     [(f"{LR}.why", 5, 3, "text")]),
    ("a condition on an unknown field", ["train.lr: {uniform: [1, 2], when: {model.poling: max}}"],
     [(f"{LR}.when.model.poling", 5, "max", "did you mean 'model.pooling'?")]),
    ("a condition on the cluster", ["train.lr: {uniform: [1, 2], when: {cluster.workers: 1}}"],
     [(f"{LR}.when.cluster.workers", 5, 1, "fields of model and train")]),
    ("a condition on itself", ["train.lr: {uniform: [1, 2], when: {train.lr: 1}}"],
     [(f"{LR}.when.train.lr", 5, 1, "another field")]),
    ("a condition that is a word", ["train.lr: {uniform: [1, 2], when: always}"],
     [(f"{LR}.when", 5, "always", "a mapping of fields")]),
    ("a condition of nothing", ["train.lr: {uniform: [1, 2], when: {}}"],
     [(f"{LR}.when", 5, {}, "a mapping of fields")]),
    ("a condition without values", ["train.lr: {uniform: [1, 2], when: {model.pooling: []}}"],
     [(f"{LR}.when.model.pooling", 5, [], "a value or a list")]),
    ("a value that its field never has",
     ["train.lr: {uniform: [1, 2], when: {model.pooling: sum}}"],
     [(f"{LR}.when.model.pooling", 5, "sum", "attention")]),
    ("such a value in a list",
     ["train.lr: {uniform: [1, 2], when: {model.pooling: [max, sum]}}"],
     [(f"{LR}.when.model.pooling[1]", 5, "sum", "attention")]),
    ("a value that is not drawn",
     ["model.pooling: {choice: [max, mean]}",
      "train.lr: {uniform: [1, 2], when: {model.pooling: attention}}"],
     [(f"{LR}.when.model.pooling", 6, "attention", "values of model.pooling in this space")]),
    ("a condition on a number that is hardly ever drawn",
     ["model.dropout: {uniform: [0, 0.5]}",
      "train.lr: {uniform: [1, 2], when: {model.dropout: 0.1}}"],
     [(f"{LR}.when.model.dropout", 6, [0.1], "countable values")]),
    ("conditions in a circle",
     ["model.heads: {choice: [1, 2], when: {train.epochs: 1}}",
      "train.epochs: {choice: [1, 2], when: {model.heads: 1}}"],
     [(f"{HEADS}.when.train.epochs", 5, ["model.heads", "train.epochs", "model.heads"], "circle")]),
    ("a space of which nothing varies here",
     ["model.heads: {choice: [1, 2], when: {model.pooling: attention}}"],
     [("space", 4, ["model.heads"], "model.pooling = attention")]),
    ("conditions that tell too much apart",
     [*(f"{f}: {{choice: {[*range(1, 31)]}}}" for f in
        ("train.epochs", "train.batch_size", "model.heads")),
      f"train.lr: {{uniform: [1, 2], when: {{train.epochs: {[*range(1, 31)]}, "
      f"train.batch_size: {[*range(1, 31)]}, model.heads: {[*range(1, 31)]}}}}}"],
     [("space", 4, None, "29,791")]),
    ("fewer rows than workers at one end",
     ["train.batch_size: {integer: [1, 16]}"],
     [("space.train.batch_size", 5, 1, "at least 2")]),
    ("many at once",
     ["train.lrr: {uniform: [1, 2]}", "train.lr: {uniform: [2, 1], step: 0, when: {zzz: 1}}",
      "model.heads: {choice: [0], wen: 3}", "train.clip: {}"],
     [("space.train.lrr", 5, {"uniform": [1, 2]}, "train.lr"), (f"{LR}.uniform", 6, [2, 1], "low"),
      (f"{LR}.when.zzz", 6, 1, "fields of"), (f"{HEADS}.choice[0]", 7, 0, "least 1"),
      (f"{HEADS}.wen", 7, 3, "'when'"), (CLIP, 8, {}, "uniform")]),
]  # fmt: skip


def check(error, expected):
    found = [(p["field"], p["line"], p["value"]) for p in error["problems"]]
    assert sorted(found, key=str) == sorted([row[:3] for row in expected], key=str)
    for field, _, _, word in expected:
        (problem,) = [p for p in error["problems"] if p["field"] == field]
        assert problem["file"] == "job.yaml"
        assert word in f"{problem['message']} {problem['allowed']}"
        assert field in problem["message"]


@pytest.mark.parametrize(
    ("lines", "expected"), [row[1:] for row in SPACES], ids=[row[0] for row in SPACES]
)
def test_a_malformed_space_is_refused_with_place_value_and_what_is_allowed(
    place, capfd, lines, expected
):
    check(refused(capfd, HEAD + space(*lines) + "cluster: {workers: 2}\n"), expected)


GRID = space("model.heads: {choice: [1, 2]}", "train.epochs: {integer: [1, 3]}")
STEPS = space("train.lr: {uniform: [1, 2]}")
BILLION = space(
    "train.epochs: {integer: [1, 1000]}", "train.batch_size: {integer: [2, 1001]}",
    "data.max_length: {integer: [1, 1000]}",
)  # fmt: skip
SEARCHES = [
    # id, space, search, [(field, value, word of what is said)]
    ("no trials", "", "trials: 0", [("search.trials", 0, "at least 1")]),
    ("fewer than none", "", "trials: -1", [("search.trials", -1, "at least 1")]),
    ("a trillion trials", "", "trials: 1e12", [("search.trials", 1e12, "at most 100,000")]),
    ("half a trial", "", "trials: 1.5", [("search.trials", 1.5, "a whole number")]),
    ("no budget", "", "time_budget_s: 0", [("search.time_budget_s", 0, "above 0")]),
    ("a budget without end", "", "time_budget_s: .inf", [("search.time_budget_s", "inf", "most")]),
    ("a seed below zero", "", "seed: -1", [("search.seed", -1, "at least 0")]),
    ("no seeds", "", "seeds: 0", [("search.seeds", 0, "at least 1")]),
    ("many seeds", "", "seeds: 101", [("search.seeds", 101, "at most 100")]),
    ("a seed in words", "", "seeds: two", [("search.seeds", "two", "whole number")]),
    ("none at a time", "", "max_concurrent: 0", [("search.max_concurrent", 0, "at least 1")]),
    ("nothing kept", "", "keep: 0", [("search.keep", 0, "at least 1")]),
    ("no patience", "", "patience: 0", [("search.patience", 0, "at least 1")]),
    ("refit in words", "", "refit: maybe", [("search.refit", "maybe", "true or false")]),
    ("an id that is a path", "", "warm_start: ../x",
     [("search.warm_start", "../x", "id of a job")]),
    ("a key that is almost right", "", "trails: 3", [("search.trails", 3, "trials")]),
    ("an unknown metric", "", "metric: f2", [("search.metric", "f2", "macro_f1")]),
    ("a metric of another split", "", "metric: test/accuracy",
     [("search.metric", "test/accuracy", "accuracy")]),
    ("a mode that is a typo", "", "mode: mx", [("search.mode", "mx", "max")]),
    ("the least accurate", "", "metric: eval/accuracy, mode: min",
     [("search.mode", "min", "max with search.metric accuracy")]),
    ("the greatest loss", "", "metric: log_loss, mode: max",
     [("search.mode", "max", "must be min")]),
    ("an unknown scheduler", "", "scheduler: fast", [("search.scheduler", "fast", "asha")]),
    ("an unknown searcher", "", "searcher: skopt", [("search.searcher", "skopt", "hyperopt")]),
    *(
        (f"{name} is not installed", "", f"searcher: {name}{more}",
         [("search.searcher", name, f"pip install {package}")])
        for name, package, more in (
            ("hyperopt", "hyperopt", ""), ("bayesopt", "bayesian-optimization", ""),
            ("ax", "ax-platform", ""), ("hebo", "HEBO", ""), ("nevergrad", "nevergrad", ""),
            ("zoopt", "zoopt", ""), ("bohb", "hpbandster", ", scheduler: hyperband"),
        )
    ),
    ("a grid of numbers without end", STEPS, "searcher: grid",
     [("space.train.lr", {"uniform": [1, 2]}, "give it a step")]),
    ("more trials than points", GRID, "searcher: grid, trials: 7",
     [("search.trials", 7, "at most 6")]),
    ("a grid of a billion", BILLION, "searcher: grid",
     [("space", ["train.epochs", "train.batch_size", "data.max_length"], "1,000,000,000")]),
    ("a billion, cut short", BILLION, "searcher: grid, trials: 5",
     [("space", ["train.epochs", "train.batch_size", "data.max_length"], "1,000,000,000")]),
    ("grids of a million for random",
     space(*(f"{f}: {{grid: {[*range(2, 102)]}}}" for f in
             ("train.epochs", "train.batch_size", "data.max_length"))), "",
     [("space", ["train.epochs", "train.batch_size", "data.max_length"], "1,000,000")]),
    ("a grid for optuna", space("model.heads: {grid: [1, 2]}"), "searcher: optuna",
     [("space.model.heads.grid", [1, 2], "choice: [...]")]),
    ("runs without end", "", "trials: 100000, seeds: 2", [("search.seeds", 2, "100,000 runs")]),
    ("more kept than tried", "", "trials: 3, keep: 4", [("search.keep", 4, "at most 3")]),
    ("more kept than there are", GRID, "searcher: grid, keep: 7",
     [("search.keep", 7, "at most 6")]),
    ("a seed that varies and is repeated", space("train.seed: {integer: [1, 5]}"), "seeds: 2",
     [("space.train.seed", {"integer": [1, 5]}, "search.seeds above 1")]),
    ("a population of three", STEPS, "scheduler: pbt, trials: 3",
     [("search.trials", 3, "at least 4")]),
    ("a population of a small grid", space("train.lr: {choice: [1, 2]}"),
     "scheduler: pbt, searcher: grid", [("space", ["train.lr"], "4 points")]),
    ("a population with repeats", STEPS, "scheduler: pbt, seeds: 2",
     [("search.seeds", 2, "its trials change")]),
    ("a population with a searcher", STEPS, "scheduler: pbt, searcher: optuna",
     [("search.searcher", "optuna", "searches by itself")]),
    ("a population of networks", space("model.heads: {choice: [1, 2]}", "train.lr: {choice: [1]}"),
     "scheduler: pbt", [("space.model.heads", {"choice": [1, 2]}, "train.weight_decay")]),
    ("several that do not fit", STEPS, "scheduler: pbt, seeds: 2, trials: 1, mode: min",
     [("search.seeds", 2, "pbt"), ("search.trials", 1, "pbt"), ("search.mode", "min", "max")]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "search", "expected"), [row[1:] for row in SEARCHES], ids=[row[0] for row in SEARCHES]
)
def test_a_search_that_cannot_be_is_refused(place, capfd, given, search, expected):
    error = refused(capfd, f"{HEAD}search: {{{search}}}\n{given}")
    lines = {"search": 4, "space": 5}
    rows = []
    for field, value, word in expected:
        line = lines[field.partition(".")[0]]
        rows.append((field, line + (field.startswith("space.")), value, word))
    check(error, rows)


@pytest.mark.parametrize(
    ("given", "value", "word"),
    [
        pytest.param("space: defalt", "defalt", "did you mean 'default'?", id="near miss"),
        pytest.param("space: zzz", "zzz", "one of default, ulmfit, head, wide", id="unknown"),
        pytest.param("space: {}", {}, "at least one", id="empty"),
        pytest.param("space: []", [], "one of default", id="a list"),
        pytest.param("space: 3", 3, "one of default", id="a number"),
        pytest.param("space:", None, "one of default", id="null"),
    ],
)
def test_what_is_no_space_is_refused(place, capfd, given, value, word):
    check(refused(capfd, f"{HEAD}{given}\n"), [("space", 4, value, word)])


def test_faults_of_space_search_and_the_rest_are_told_together(place, capfd):
    text = "space: {train.lr: {uniform: [2, 1]}}\nsearch: {trials: 0, mode: x}\ntrain: {lr: 0}\n"
    error = refused(capfd, HEAD + text)
    assert [p["field"] for p in error["problems"]] == [
        "space.train.lr.uniform", "search.trials", "search.mode", "train.lr",
    ]  # fmt: skip


def test_validate_refuses_what_run_refuses(place, capfd):
    refused(capfd, HEAD + "space: {train.lr: {uniform: [2, 1]}}\n", verb="validate")


def test_a_field_given_twice_in_a_space_is_refused(place, capfd):
    error = refused(capfd, HEAD + space(*["train.lr: {uniform: [1, 2]}"] * 2))
    assert "is given twice, first on line 5" in error["message"]


def test_a_space_of_the_command_line_is_placed_there(place, capfd):
    (problem,) = refused(capfd, HEAD, "-s", "space={train.lr: {uniform: [2, 1]}}")["problems"]
    assert (problem["file"], problem["field"]) == ("-s", "space.train.lr.uniform")


def test_a_finetune_job_has_no_search(place, capfd):
    text = HEAD.replace("sweep", "finetune") + "search: {trials: 3}\nspace: default\n"
    assert [p["field"] for p in refused(capfd, text)["problems"]] == ["search", "space"]


def test_checking_a_sweep_imports_nothing_heavy(place):
    Path("job.yaml").write_text(HEAD + "search: {searcher: hyperopt, trials: 0}\n")
    Path("good.yaml").write_text(HEAD + "search: {searcher: optuna}\n")
    code = (
        "import sys; from jobs.cli import main; assert main(['run', 'job.yaml']) == 2; "
        "assert main(['validate', 'good.yaml']) == 0; "
        "bad = {'torch', 'ray', 'optuna', 'mlflow', 'numpy'} & set(sys.modules); "
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_the_sweep_of_the_documentation_is_valid(place, capfd):
    text = space(
        "train.lr: {log_uniform: [1.0e-5, 1.0e-2]}",
        "train.warmup: {uniform: [0.0, 0.2]}",
        "model.dropout: {uniform: [0.0, 0.3], step: 0.05}",
        "model.heads: {choice: [1, 2, 4, 8]}",
        "train.layer_decay: {choice: [1.0, 2.6], when: {train.schedule: slanted_triangular}}",
    )
    search = "{trials: 12, scheduler: asha, searcher: random, metric: accuracy, mode: max, "
    search += "time_budget_s: null, seed: 0, seeds: 1, refit: false}"
    Path("job.yaml").write_text(f"{HEAD}{text}search: {search}\n")
    assert main(["validate", "job.yaml", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert [row["field"] for row in document["space"]][:2] == ["train.lr", "train.warmup"]
    assert document["plan"]["trials"] == 12
    (warning,) = document["warnings"]
    assert "space.train.layer_decay never varies" in warning


def test_a_good_sweep_is_valid(place, capfd):
    Path("job.yaml").write_text(HEAD + GRID + "search: {searcher: grid, trials: 4}\n")
    assert main(["validate", "job.yaml"]) == 0
    shown = capfd.readouterr().out
    assert "space: 6 points, 4 trials" in shown
    assert "train.epochs" in shown
