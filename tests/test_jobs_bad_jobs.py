"""Job files that are refused: exit code, every fault with its place, and nothing is made."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from refusing import refused

from jobs.cli import main

HEAD = "kind: finetune\nname: x\ndata: {train: bbc-news}\n"


TABLE = [
    # id, text, [(field, line, value, word of what is allowed)]
    ("a key that is almost right", "train: {epohs: 3}", [("train.epohs", 4, 3, "epochs")]),
    (
        "a key of another block",
        "train:\n  max_length: 3",
        [("train.max_length", 5, 3, "data.max_length")],
    ),
    ("a key at the top that belongs below", "lr: 3", [("lr", 4, 3, "train.lr")]),
    ("a key like none", "train: {zzz: 1}", [("train.zzz", 4, 1, "batch_size")]),
    ("a block that is a word", "train: fast", [("train", 4, "fast", "a block of fields")]),
    ("a block that is a list", "model: [1]", [("model", 4, [1], "a block of fields")]),
    ("text for a number", "train: {epochs: two}", [("train.epochs", 4, "two", "whole number")]),
    ("a fraction for a count", "train: {epochs: 1.5}", [("train.epochs", 4, 1.5, "whole number")]),
    ("a quoted word", "train: {lr: 'x'}", [("train.lr", 4, "x", "a number above 0")]),
    ("true for a number", "train: {epochs: true}", [("train.epochs", 4, True, "whole number")]),
    ("a number for a name", "data: {train: 3}", [("data.train", 4, 3, "text")]),
    (
        "a list for a separator",
        "data: {train: bbc-news, separator: []}",
        [("data.separator", 4, [], "null")],
    ),
    ("a negative rate", "train: {lr: -1}", [("train.lr", 4, -1, "above 0 and at most 100")]),
    ("a rate of zero", "train: {lr: 0}", [("train.lr", 4, 0, "above 0")]),
    ("not a number", "train: {lr: .nan}", [("train.lr", 4, "nan", "above 0")]),
    ("infinity", "train: {clip: .inf}", [("train.clip", 4, "inf", "above 0 or null")]),
    ("a number too large for a float", "train: {lr: 1e999}", [("train.lr", 4, "inf", "at most")]),
    ("a trillion epochs", "train: {epochs: 1e12}", [("train.epochs", 4, 1e12, "100,000")]),
    (
        "ten to the eighteenth",
        "train: {epochs: 999999999999999999}",
        [("train.epochs", 4, 999999999999999999, "at most 100,000")],
    ),
    ("no workers", "cluster: {workers: 0}", [("cluster.workers", 4, 0, "at least 1")]),
    ("fewer than none", "cluster: {workers: -1}", [("cluster.workers", 4, -1, "at least 1")]),
    ("workers in words", "cluster: {workers: two}", [("cluster.workers", 4, "two", "a list of 2")]),
    (
        "a range from the end",
        "cluster: {workers: [4, 2]}",
        [("cluster.workers", 4, [4, 2], "min no larger than max")],
    ),
    ("a range with zero", "cluster: {workers: [0, 2]}", [("cluster.workers[0]", 4, 0, "least 1")]),
    ("a range of three", "cluster: {workers: [1, 2, 3]}", [("cluster.workers", 4, [1, 2, 3], "2")]),
    ("two GPUs a rank", "cluster: {gpus_per_worker: 2}", [("cluster.gpus_per_worker", 4, 2, "1")]),
    (
        "workers without a row",
        "train: {batch_size: 2}\ncluster: {workers: 3}",
        [("train.batch_size", 4, 2, "at least 3")],
    ),
    (
        "a share of all",
        "data: {train: bbc-news, validation: 1.0}",
        [("data.validation", 4, 1.0, "below 1")],
    ),
    (
        "shares that leave nothing",
        "data: {train: bbc-news, validation: 0.5, test: 0.5}",
        [("data.test", 4, 0.5, "below 0.5")],
    ),
    (
        "what only classes have, with numbers",
        "data: {train: bbc-news, task: regression, separator: x}\n"
        "model: {temperature: 2, prob_floor: 0.1}\n"
        "train: {class_weights: balanced, label_smoothing: 0.1}",
        [
            ("data.separator", 4, "x", "null"),
            ("model.temperature", 5, 2, "0.5, its default"),
            ("model.prob_floor", 5, 0.1, "0.0, its default"),
            ("train.class_weights", 6, "balanced", "none, its default"),
            ("train.label_smoothing", 6, 0.1, "0.0, its default"),
        ],
    ),
    (
        "numbers judged as classes",
        "data: {train: bbc-news, task: regression}\n"
        "train: {early_stopping: {metric: macro_f1}}\nregister: {gate: {metric: accuracy}}",
        [
            ("register.gate.metric", 6, "accuracy", "pearson, spearman, mse"),
            ("train.early_stopping.metric", 5, "macro_f1", "pearson, spearman, mse"),
        ],
    ),
    (
        "classes judged as numbers",
        "register: {gate: {metric: pearson}}",
        [("register.gate.metric", 4, "pearson", "accuracy")],
    ),
    (
        "what no choice among answers has",
        "data: {train: bbc-news, text: [a, b], choices: c, separator: x, pair: both_orders}\n"
        "train: {class_weights: balanced, label_smoothing: 0.1}",
        [
            ("data.separator", 4, "x", "null with data.choices"),
            ("data.pair", 4, "both_orders", "ordered with data.choices"),
            ("train.class_weights", 5, "balanced", "none with data.choices"),
            ("train.label_smoothing", 5, 0.1, "0.0 with data.choices"),
        ],
    ),
    (
        "answers that are the text",
        "data: {train: bbc-news, choices: text}",
        [("data.choices", 4, "text", "not also data.text")],
    ),
    (
        "two orders of one text",
        "data: {train: bbc-news, pair: both_orders}",
        [("data.pair", 4, "both_orders", "data.text [first, second]")],
    ),
    (
        "the label as the text",
        "data: {train: bbc-news, text: a, label: a}",
        [("data.label", 4, "a", "not also data.text")],
    ),
    (
        "a pair of one column",
        "data: {train: bbc-news, text: [a, a]}",
        [("data.text", 4, ["a", "a"], "two different columns")],
    ),
    ("a warm-up of all", "train: {warmup: 1.0}", [("train.warmup", 4, 1.0, "below 1 or a whole")]),
    ("a warm-up below zero", "train: {warmup: -5}", [("train.warmup", 4, -5, "at least 0")]),
    (
        "a rhythm in days",
        "train: {eval_every: 3 days}",
        [("train.eval_every", 4, "3 days", "200 st")],
    ),
    ("a freeze of nothing", "train: {freeze: top:0}", [("train.freeze", 4, "top:0", "head_only")]),
    (
        "a weight below zero",
        "train: {class_weights: {a: -1}}",
        [("train.class_weights.a", 4, -1, "0")],
    ),
    (
        "a vocabulary of ten",
        "model: {tokenizer: {train: 10}}",
        [("model.tokenizer.train", 4, 10, "260")],
    ),
    ("a pooling of one's own", "model: {pooling: sum}", [("model.pooling", 4, "sum", "attention")]),
    (
        "a metric that is none",
        "train: {early_stopping: {metric: f2}}",
        [("train.early_stopping.metric", 4, "f2", "macro_f1")],
    ),
    (
        "a gate above one",
        "register: {model: m, gate: {min: 90}}",
        [("register.gate.min", 4, 90, "1")],
    ),
    (
        "a gate on a loss",
        "register: {gate: {metric: log_loss}}",
        [("register.gate.metric", 4, "log_loss", "accuracy")],
    ),
    ("a head that is none", "model: {head: deep}", [("model.head", 4, "deep", "adaptive")]),
    (
        "a pooling beside a decoder",
        "model: {head: encdec, pooling: mean}",
        [("model.pooling", 4, "mean", "last (the default) with model.head = encdec")],
    ),
    (
        "an untrained encoder that stays",
        "model: {head: encdec}\ntrain: {freeze: last_layer}",
        [("train.freeze", 5, "last_layer", "none, head_only or gradual")],
    ),
    (
        "a language model that sees what comes next",
        "model: {head: encdec}\ntrain: {lm_weight: 0.5}",
        [("train.lm_weight", 5, 0.5, "0 with model.head = encdec")],
    ),
    (
        "a pre-trained embedding that would be lost",
        "model: {backbone: gpt2, embedding_init: lsa}",
        [("model.backbone", 4, "gpt2", "one of gpt2-tiny, gpt2-mini, gpt2-small, awd-lstm-tiny")],
    ),
    (
        "a new embedding that stays as it began, or was not there yet",
        "model: {backbone: gpt2-tiny, embedding_init: lsa}\ntrain: {freeze: gradual, lm_epochs: 1}",
        [
            ("train.freeze", 5, "gradual", "none with model.embedding_init = lsa"),
            ("train.lm_epochs", 5, 1, "0 with model.embedding_init = lsa"),
        ],
    ),
    (
        "a hidden layer beside a decoder",
        "model: {head: encdec, hidden: 50}",
        [("model.hidden", 4, 50, "0 with model.head = encdec")],
    ),
    (
        "texts learned by frozen layers",
        "train: {lm_weight: 0.5, freeze: head_only}",
        [("train.freeze", 4, "head_only", "none with train.lm_weight = 0.5")],
    ),
    ("a rate of nothing", "train: {lm_epochs: 2, lm_lr: 0}", [("train.lm_lr", 4, 0, "above 0")]),
    ("a preset to come", "preset: lccc", [("preset", 4, "lccc", "paper")]),
    ("a preset that is a number", "preset: 3", [("preset", 4, 3, "paper")]),
    (
        "many at once",
        "train: {epochs: two, lr: -1,\n  epohs: 3}\nmodel: {dropout: 1.5}\nzzz: 1",
        [
            ("train.epochs", 4, "two", "whole number"),
            ("train.lr", 4, -1, "above 0"),
            ("train.epohs", 5, 3, "epochs"),
            ("model.dropout", 6, 1.5, "below 1"),
            ("zzz", 7, 1, "cluster"),
        ],
    ),
]


@pytest.mark.parametrize(
    ("text", "expected"), [row[1:] for row in TABLE], ids=[r[0] for r in TABLE]
)
def test_a_fault_is_named_with_line_field_value_and_what_is_allowed(place, capfd, text, expected):
    head = HEAD if "data:" not in text else "kind: finetune\nname: x\n\n"
    error = refused(capfd, head + text + "\n")
    found = [(p["field"], p["line"], p["value"]) for p in error["problems"]]
    assert sorted(found, key=str) == sorted([row[:3] for row in expected], key=str)
    for field, _, _, word in expected:
        (problem,) = [p for p in error["problems"] if p["field"] == field]
        assert problem["file"] == "job.yaml"
        assert word in f"{problem['message']} {problem['allowed']}"
        assert field in problem["message"]


@pytest.mark.parametrize(
    "name",
    ["", "../x", "/x", "x/y", "X", "1x", "a b", "x" * 10_000, "\u00e9t\u00e9", "\U0001f600",
     "\u202egnp", "<script>", "x;ls", "$(ls)", "`ls`", "{{ 7 * 7 }}", "x.y", "-x"],
)  # fmt: skip
def test_a_name_of_other_letters_is_refused(place, capfd, name):
    text = (
        f"kind: finetune\nname: {json.dumps(name, ensure_ascii=False)}\ndata: {{train: bbc-news}}\n"
    )
    error = refused(capfd, text)
    (problem,) = error["problems"]
    assert (problem["field"], problem["line"], problem["value"]) == ("name", 2, name)
    assert "lower-case letters, digits and dashes" in problem["allowed"]
    assert len(problem["message"]) < 400
    assert problem["message"].isprintable()


@pytest.mark.parametrize(
    ("text", "field", "word"),
    [
        pytest.param("kind: finetun\nname: x", "kind", "did you mean 'finetune'", id="near"),
        pytest.param(
            "kind: xyz\nname: x", "kind", "finetune, pretrain, sweep, ensemble", id="unknown"
        ),
        pytest.param("kind: distill\nname: x", "kind", "this version runs finetune", id="to come"),
        pytest.param("name: x", "kind", "kind is missing", id="none"),
        pytest.param("kind: [1]\nname: x", "kind", "must be one of", id="a list"),
        pytest.param("kind: finetune\nname: x", "data", "data is missing", id="no data"),
        pytest.param("kind: finetune\nname: x\ndata: {}", "data.train", "missing", id="no train"),
        pytest.param(
            "kind: predict\nname: x\nmodel: m", "input", "input is missing", id="no input"
        ),
    ],
)
def test_what_is_missing_or_of_no_kind_is_named(place, capfd, text, field, word):
    problems = refused(capfd, text + "\n")["problems"]
    assert any(p["field"] == field and word in p["message"] for p in problems)


@pytest.mark.parametrize(
    "model",
    ["file:///etc/passwd", "http://169.254.169.254/", "models:/x", "models:/../x@a", "s3://b"],
)
def test_an_address_that_is_no_model_is_refused(place, capfd, model):
    text = f"kind: evaluate\nname: x\nmodel: {model}\ndata: {{test: bbc-news}}\n"
    (problem,) = refused(capfd, text)["problems"]
    assert (problem["field"], problem["line"], problem["value"]) == ("model", 3, model)
    assert "models:/name@alias" in problem["allowed"]


def test_a_syntax_error_says_line_and_column(place, capfd):
    (problem,) = refused(capfd, HEAD + "  train: [\n")["problems"]
    assert problem["line"] == 4
    assert "line 4, column" in problem["message"]


def test_a_key_given_twice_is_named_beside_the_other_faults(place, capfd):
    error = refused(capfd, HEAD + "train: {epochs: 3, epochs: 4, lr: -1}\n")
    assert {p["field"] for p in error["problems"]} == {"train.epochs", "train.lr"}


def test_a_tag_runs_nothing(place, capfd):
    error = refused(capfd, "!!python/object/apply:os.system ['touch canary']\n")
    assert "tag '!!python/object/apply:os.system' is not allowed" in error["message"]


def test_data_that_is_not_there_is_refused_by_run_beside_other_faults(place, capfd):
    text = "kind: finetune\nname: x\ndata: {train: /nope/none.csv}\ntrain: {lr: 0}\n"
    error = refused(capfd, text)
    assert {p["field"] for p in error["problems"]} == {"data.train", "train.lr"}
    assert "/nope/none.csv" in error["message"]


@pytest.mark.parametrize(
    "value",
    ["; touch canary", "$(touch canary)", "`touch canary`", "| touch canary", "& touch canary"],
)
def test_shell_characters_are_never_run(place, capfd, value):
    text = f"kind: finetune\nname: x\ndata: {{train: {json.dumps(value)}}}\n"
    error = refused(capfd, text)
    assert error["problems"][0]["value"] == value


@pytest.mark.parametrize("value", ["a\\nb", "a\\0b", "a\\eb"])
def test_line_breaks_and_control_characters_are_refused_everywhere(place, capfd, value):
    text = f'kind: finetune\nname: x\ndata: {{train: "{value}"}}\n'
    error = refused(capfd, text)
    assert "line breaks or control characters" in str(error["problems"][0]["allowed"])


def test_a_fault_of_the_command_line_is_placed_there(place, capfd):
    (problem,) = refused(capfd, HEAD, "-s", "train.lr=-1")["problems"]
    assert (problem["file"], problem["line"], problem["field"]) == ("-s", None, "train.lr")


def test_a_setting_can_mend_the_file(place, capfd):
    Path("job.yaml").write_text(HEAD + "train: {lr: -1}\n")
    assert main(["validate", "job.yaml", "-s", "train.lr=3e-5", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["job"]["train"]["lr"] == 3e-5


def test_the_data_folder_that_is_not_set_is_named(place, capfd):
    text = "kind: finetune\nname: x\ndata: {train: '${GPT2CLS_DATA}/a.csv'}\n"
    (problem,) = refused(capfd, text)["problems"]
    assert problem["field"] == "data.train"
    assert "set that environment variable" in problem["allowed"]
    Path("job.yaml").write_text(text)
    assert main(["validate", "job.yaml", "--json"]) == 0  # a remark only
    assert "GPT2CLS_DATA" in json.loads(capfd.readouterr().out)["warnings"][0]


def test_a_secret_in_a_wrong_place_is_not_repeated(place, capfd):
    text = HEAD + "hf_token: hunter2\ncluster: {address: 'ray://me:hunter2@host'}\n"
    assert "hunter2" not in json.dumps(refused(capfd, text))


def test_a_real_process_refuses_alike(place):
    Path("job.yaml").write_text(HEAD + "train: {epohs: 3}\n")
    command = [sys.executable, "-m", "jobs", "run", "job.yaml", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["problems"][0]["field"] == "train.epohs"
    assert done.stderr == ""
    assert os.listdir() == ["job.yaml"]
