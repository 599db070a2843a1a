"""The command line: verbs and flags, one document on standard output, an exit code per fault."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import typer
import yaml

from cluster.errors import ClusterError
from gpt2cls.errors import CheckpointError, DataError, NonFiniteLoss
from jobs.cli import app, main
from jobs.console import Answer
from jobs.errors import JobFailed, JobStopped
from jobs.faults import BadRequestError, Problem
from jobs.verb import verb

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
HEAVY = {"torch", "ray", "mlflow", "transformers", "pandas", "sqlalchemy", "datasets", "numpy"}

FLAGS = {
    "run": "--debug --json --set",
    "validate": "--debug --json --set",
    "schema": "--debug --json",
    "data check": "--debug --json --label --separator --set --text",
    "jobs": "--debug --json",
    "show": "--debug --json",
    "sweep resume": "--debug --json --trials",
    "sweep show": "--debug --json",
    "submit": "--after --debug --json --key --priority --queue --run-within --set --start-within",
    "logs": "--attempt --debug --follow --grep --json --tail",
    "stop": "--debug --json",
    "resume": "--debug --json",
    "retry": "--debug --json",
    "clone": "--debug --json --set",
    "priority": "--debug --json",
    "report": "--debug --json --output",
    "models list": "--debug --json",
    "models promote": "--debug --json",
    "models rollback": "--debug --json",
    "models compare": "--debug --json",
    "predict": "--debug --json --output --spreadsheet-safe",
    "evaluate": "--debug --json --label --separator --text",
    "serve": "--debug --json --port",
    "cluster up": "--cpus --debug --gpus --json",
    "cluster status": "--debug --json",
    "cluster down": "--debug --json",
    "cluster usage": "--debug --json",
    "token add": "--days --debug --json --role",
    "token list": "--debug --json",
    "token revoke": "--debug --json",
    "webhook add": "--debug --json --secret-file --state",
    "webhook list": "--debug --json",
    "webhook remove": "--debug --json",
    "webhook log": "--debug --json",
    "audit": "--debug --json",
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A state folder that is not there yet."""
    monkeypatch.setenv("GPT2CLS_HOME", str(tmp_path / "home"))
    for name in ("GPT2CLS_DATA", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def said(capfd, *arguments):
    """Exit code and, of --json, the document."""
    code = main([*arguments, "--json"])
    return code, json.loads(capfd.readouterr().out)


def test_help_and_a_job_file_cost_no_heavy_import(tmp_path):
    (tmp_path / "job.yaml").write_text("kind: finetune\nname: x\ndata: {train: bbc-news}\n")
    code = (
        "import sys; from jobs.cli import main; main(['--help']); "
        "main(['validate', 'job.yaml']); main(['schema']); main(['models', 'x']); "
        f"bad = {HEAVY!r} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_the_verbs_and_their_flags_are_these():
    found = {}
    for name, command in typer.main.get_command(app).commands.items():
        inner = getattr(command, "commands", None)
        for sub, leaf in (inner or {"": command}).items():
            options = [max(p.opts, key=len) for p in leaf.params if p.opts[0].startswith("-")]
            found[f"{name} {sub}".strip()] = " ".join(sorted(options))
    assert found == FLAGS


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_every_recipe_is_a_job_and_fits_the_schema(capfd, path):
    code, document = said(capfd, "validate", str(path))
    assert code == 0
    _, schema = said(capfd, "schema")
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(path.read_text()), schema)
    jsonschema.validate(document["job"], schema)


def test_the_schema_tells_limits_and_meaning(capfd):
    _, schema = said(capfd, "schema")
    train = schema["$defs"]["TrainConfig"]["properties"]
    assert train["warmup"]["anyOf"][0] == {"minimum": 0, "exclusiveMaximum": 1, "type": "number"}
    assert "optimizer step" in train["batch_size"]["description"]


def test_the_smallest_job_is_shown_with_every_default(capfd, tmp_path):
    (tmp_path / "a.yaml").write_text("kind: finetune\nname: x\ndata: {train: bbc-news}\n")
    code, document = said(capfd, "validate", "a.yaml")
    assert code == 0
    assert document["job"]["train"]["warmup"] == 0.1
    assert document["job"]["register"]["model"] is None
    assert document["plan"]["workers"] == 1
    assert document["plan"]["threads_per_worker"] >= 1
    assert document["warnings"] == []


def test_a_preset_fills_what_the_file_leaves_open(capfd, tmp_path):
    text = "kind: finetune\nname: x\npreset: paper\ndata: {train: bbc-news}\ntrain: {epochs: 2}\n"
    (tmp_path / "a.yaml").write_text(text)
    _, document = said(capfd, "validate", "a.yaml", "-s", "model.heads=2")
    job = document["job"]
    assert (job["train"]["epochs"], job["train"]["warmup"]) == (2, 10_000)
    assert (job["model"]["pooling"], job["model"]["heads"]) == ("attention", 2)
    assert job["preset"] == "paper"


def test_validate_warns_of_data_that_is_not_there(capfd, tmp_path):
    (tmp_path / "a.yaml").write_text("kind: finetune\nname: x\ndata: {train: no.csv}\n")
    code, document = said(capfd, "validate", "a.yaml")
    assert code == 0
    (warning,) = document["warnings"]
    assert warning.startswith("a.yaml:3: data.train")
    assert "no.csv" in warning


def test_the_data_folder_is_filled_in(capfd, tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2CLS_DATA", str(tmp_path))
    (tmp_path / "r.csv").write_text("text,label\na,b\n")
    text = "kind: finetune\nname: x\ndata: {train: '${GPT2CLS_DATA}/r.csv'}\n"
    (tmp_path / "a.yaml").write_text(text)
    _, document = said(capfd, "validate", "a.yaml")
    assert document["job"]["data"]["train"] == f"{tmp_path}/r.csv"
    assert document["warnings"] == []


def test_more_workers_than_cores_are_warned_of(capfd, tmp_path):
    (tmp_path / "a.yaml").write_text("kind: finetune\nname: x\ndata: {train: bbc-news}\n")
    settings = ["-s", "cluster.workers=500", "-s", "train.batch_size=1000"]
    _, document = said(capfd, "validate", "a.yaml", *settings)
    assert "cluster.workers = 500 asks for 500 cores" in document["warnings"][0]


def test_a_person_reads_yaml_that_is_the_same_job(capfd, tmp_path):
    (tmp_path / "a.yaml").write_text("kind: finetune\nname: x\ndata: {train: bbc-news}\n")
    main(["validate", "a.yaml"])
    (tmp_path / "b.yaml").write_text(capfd.readouterr().out)
    assert (
        said(capfd, "validate", "a.yaml")[1]["job"] == said(capfd, "validate", "b.yaml")[1]["job"]
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nope"], "No such command 'nope'"),
        (["run"], "Missing argument 'JOB'"),
        (["run", "a.yaml", "--fast"], "No such option: --fast"),
        (["models", "promote", "x", "y"], "must be a whole number"),
        (["serve", "m", "--port", "0"], "must be greater than or equal to 1"),
        (["show", "../x"], "lower-case letters, digits and dashes"),
        (["show", "/etc"], "lower-case letters, digits and dashes"),
        (["resume", "x/../y"], "lower-case letters, digits and dashes"),
        (["report", "../x"], "lower-case letters, digits and dashes"),
        (["resume", "nope"], "no such job"),
        (["show", "last"], "there is no job"),
        (["models", "../x"], "a name holds letters"),
        (["models", "rollback", "a b"], "a name holds letters"),
        (["models"], "no model is registered"),
        (["predict", "file:///etc/passwd", "a.csv", "-o", "b.csv"], "not a model that can be used"),
        (["evaluate", "http://169.254.169.254/x", "bbc-news"], "not a model that can be used"),
        (["serve", "nowhere"], "there is no folder"),
        (["evaluate", ".", "no.csv"], "no such file"),
        (["predict", ".", "no.csv", "-o", "b.csv"], "no such file"),
        (["data", "check", "no.csv"], "no such file"),
        (["data", "check", "no.yaml"], "cannot read the job file"),
        (["data", "check", "bbc-news", "-s", "a=1"], "is for a job file"),
        (
            ["evaluate", ".", "bbc-news", "--text", "a", "--text", "b", "--text", "c"],
            "--text was given 3",
        ),
    ],
)
def test_a_wrong_request_is_refused_and_makes_nothing(capfd, home, arguments, words):
    code, document = said(capfd, *arguments)
    assert code == 2
    assert words in document["error"]["message"]
    assert not home.exists()
    assert os.listdir() == []


def test_services_that_do_not_run_are_null_and_stopping_them_is_fine(capfd, home):
    assert said(capfd, "cluster", "status") == (
        0,
        {"ray": None, "mlflow": None, "controller": None},
    )
    assert said(capfd, "cluster", "down") == (0, {"mlflow": False, "ray": 0, "controller": False})
    assert said(capfd, "jobs") == (0, {"jobs": []})
    assert not home.exists()


def test_a_server_of_somebody_else_is_named_without_its_password(capfd, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@127.0.0.1:9")
    code, document = said(capfd, "cluster", "status")
    assert code == 0
    assert document["mlflow"] == {
        "uri": "http://***@127.0.0.1:9",
        "answers": False,
        "embedded": False,
    }


def ended_with(error, *, as_json=True, debug=False):
    """Exit code of a verb that meets a fault."""

    @verb
    def failing(**_: bool) -> Answer:
        raise error

    return failing(json=as_json, debug=debug)


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (DataError("no label"), 2, "bad_request"),
        (BadRequestError([Problem("bad", "a.yaml", 3)]), 2, "bad_request"),
        (ClusterError("no server"), 3, "service"),
        (JobFailed("lost"), 1, "job_failed"),
        (NonFiniteLoss(3, float("nan"), "fp16"), 1, "job_failed"),
        (CheckpointError("torn"), 1, "job_failed"),
        (JobStopped("asked to"), 130, "stopped"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyError("oops"), 1, "internal"),
    ],
)
def test_every_fault_has_its_exit_code_and_a_document(capfd, error, code, kind):
    assert ended_with(error) == code
    said = capfd.readouterr()
    assert json.loads(said.out)["error"]["kind"] == kind
    assert "Traceback" not in said.err
    assert ended_with(error, as_json=False) == code
    assert capfd.readouterr().err.count("\n") == 1


def test_a_fault_of_ours_names_the_log_of_its_traceback(capfd, home):
    ended_with(ZeroDivisionError("token=hunter2"), as_json=False)
    words = capfd.readouterr().err
    assert "hunter2" not in words
    (log,) = (home / "logs").iterdir()
    assert str(log) in words
    assert "ZeroDivisionError" in log.read_text()
    assert "hunter2" not in log.read_text()


def test_debug_shows_the_traceback(capfd):
    ended_with(DataError("no label"), debug=True)
    assert "Traceback" in capfd.readouterr().err


def test_only_the_document_is_on_standard_output():
    code = (
        "import os, subprocess, sys\n"
        "from jobs.console import Answer\n"
        "from jobs.verb import verb\n"
        "@verb\n"
        "def noisy(**_):\n"
        "    print('python'); os.write(1, b'library\\n'); subprocess.run(['echo', 'child'])\n"
        "    return Answer({'loss': float('nan'), 'text': '\\u4e2d'}, lambda out: None)\n"
        "noisy(json=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout) == {"loss": None, "text": "\u4e2d"}
    assert {"python", "library", "child"} <= set(done.stderr.split())


def test_a_reader_that_left_is_no_fault():
    command = f"{sys.executable} -m jobs schema --json | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stdout == "{"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "20000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")],
)
def test_threads_that_wait_do_not_take_the_processor_from_others(given, spins):
    code = "from jobs.cli import main; main(['jobs', '--help']); import torch"
    free = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=free | {"OMP_DISPLAY_ENV": "verbose", "OMP_NUM_THREADS": "2"} | given,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert f"GOMP_SPINCOUNT = '{spins}'" in ended.stderr
