"""Packages, versions and champions against a real embedded server."""

import json
import os
import shutil
import subprocess
import sys

import mlflow
import pandas as pd
import pyarrow as pa
import pytest

from cluster.home import Home, Surroundings
from cluster.tracking_server import ensure_server, stop_server, wait_ready
from gpt2cls.config import ModelConfig
from gpt2cls.data.bpe import train_bpe
from gpt2cls.data.tasks import Task
from gpt2cls.errors import RequestError
from gpt2cls.model.classifier import build_classifier
from gpt2cls.model.folder import ModelInfo, save_classifier
from gpt2cls.predict import Predictor
from jobs.models import model_folder
from jobs.package import (
    ModelDoesNotReload,
    requirements,
    store_package,
    verify_in_fresh_process,
)
from jobs.registry import PromotionConflict, promote, register, rollback
from jobs.store import Store
from jobs.tracking import connect, find_or_create_run
from jobs.versions import compare, list_models, model_versions

pytestmark = pytest.mark.system

TEXTS = [f"text {i} about {'sport' if i % 2 else 'trade'}" for i in range(20)]
FRAME = pd.DataFrame({"text": TEXTS})


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory):
    home = Home(tmp_path_factory.mktemp("registry") / "home")
    wait_ready(home, ensure_server(home))
    yield Surroundings(home, None, None, None)
    stop_server(home)


@pytest.fixture(scope="module")
def uri(surroundings):
    return ensure_server(surroundings.home).uri


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder with random weights."""
    folder = tmp_path_factory.mktemp("model") / "model"
    task = Task("single_label", ("sport", "trade"), False)
    tokenizer = train_bpe([pa.chunked_array([TEXTS], pa.large_string())], 300)
    config = ModelConfig(backbone="gpt2-tiny", temperature=0.1)
    shape = {"vocab_size": tokenizer.vocab_size, "pad_id": tokenizer.pad_id, "max_length": 16}
    model = build_classifier(config, task, **shape, seed=0, base_dir=folder)
    save_classifier(model, tokenizer, ModelInfo(task=task, model=config, **shape), folder)
    return folder


@pytest.fixture(scope="module")
def predictor(folder):
    return Predictor.load(folder, device="cpu")


def store(uri, folder, predictor, job_id):
    client = connect(uri)
    run_id = find_or_create_run(
        client, experiment="exp", job_id=job_id, run_name=job_id, start_ms=1000
    )
    model_uri = store_package(
        client,
        run_id=run_id,
        model_folder=folder,
        example=FRAME.head(2),
        example_output=predictor.predict_frame(FRAME.head(2)),
        pip_requirements=requirements(is_generic=False),
    )
    return run_id, model_uri


@pytest.fixture(scope="module")
def stored(uri, folder, predictor):
    return store(uri, folder, predictor, "j-stored")


def add_version(surroundings, uri, stored, name, accuracy, job_id, **gate):
    """A version of its own: the same weights are registered from another run."""
    client = connect(uri)
    run_id, _ = stored
    model = client.create_logged_model(
        client.get_run(run_id).info.experiment_id, name="model", source_run_id=run_id
    )
    client.finalize_logged_model(model.model_id, "READY")
    return register(
        surroundings,
        tracking_uri=uri,
        name=name,
        model_uri=f"models:/{model.model_id}",
        run_id=run_id,
        job_id=job_id,
        metrics={"accuracy": accuracy},
        split="test",
        data_fingerprint="d1",
        **gate,
    )


def champion(surroundings, name):
    versions = model_versions(surroundings, name)["versions"]
    return [v["version"] for v in versions if "champion" in v["aliases"]]


def test_a_stored_model_predicts_in_a_fresh_process_as_it_did_here(stored, uri, predictor):
    difference = verify_in_fresh_process(
        stored[1],
        tracking_uri=uri,
        frame=FRAME,
        expected_probs_NC=predictor.probabilities(TEXTS),
    )
    assert difference < 1e-5


def test_storing_the_same_model_again_finds_it(stored, uri, folder, predictor):
    assert store(uri, folder, predictor, "j-stored") == stored


def test_a_stored_model_says_what_it_takes_and_gives_and_holds_no_pickle(stored, uri, tmp_path):
    location = connect(uri).get_logged_model(stored[1].removeprefix("models:/")).artifact_location
    mlflow.artifacts.download_artifacts(
        artifact_uri=location, dst_path=str(tmp_path), tracking_uri=uri
    )
    (root,) = [path.parent for path in tmp_path.rglob("MLmodel")]
    suffixes = {path.suffix for path in root.rglob("*") if path.is_file()}
    assert suffixes <= {"", ".json", ".safetensors", ".yaml", ".txt", ".py"}
    signature = mlflow.models.Model.load(str(root)).signature
    assert signature.inputs.input_names() == ["text"]
    assert signature.outputs.input_names() == ["label", "score", "p_sport", "p_trade"]
    assert "torch==" in (root / "requirements.txt").read_text()
    assert (root / "input_example.json").exists()
    assert (root / "code" / "gpt2cls" / "predict.py").exists()


def test_a_model_that_was_altered_is_not_accepted(uri, folder, predictor, tmp_path):
    altered = tmp_path / "model"
    shutil.copytree(folder, altered)
    weights = altered / "head.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 0xFF
    weights.write_bytes(data)
    _, model_uri = store(uri, altered, predictor, "j-altered")
    with pytest.raises(ModelDoesNotReload, match="checksum"):
        verify_in_fresh_process(
            model_uri,
            tracking_uri=uri,
            frame=FRAME,
            expected_probs_NC=predictor.probabilities(TEXTS),
        )


def test_other_predictions_than_the_trainers_are_not_accepted(stored, uri, predictor):
    expected = predictor.probabilities(TEXTS)
    expected[3] += 0.01
    with pytest.raises(ModelDoesNotReload, match="1 of 20 predictions"):
        verify_in_fresh_process(
            stored[1], tracking_uri=uri, frame=FRAME, expected_probs_NC=expected
        )


def test_registering_gives_version_alias_and_metrics_once(surroundings, uri, stored):
    wanted = dict(
        tracking_uri=uri, name="once", model_uri=stored[1], run_id=stored[0], job_id="j-stored",
        metrics={"accuracy": 0.9}, split="test", data_fingerprint="d1",
    )  # fmt: skip
    first = register(surroundings, **wanted)
    assert (first.version, first.alias) == (1, "champion")
    assert register(surroundings, **wanted).version == 1
    (version,) = model_versions(surroundings, "once")["versions"]
    assert version["metrics"] == {"accuracy": 0.9}
    assert (version["run_id"], version["aliases"]) == (stored[0], ["champion"])
    assert {"name": "once", "num_versions": 1, "champion": 1} in list_models(surroundings)


def test_a_registered_model_is_fetched_and_predicts(surroundings, uri, stored, predictor, tmp_path):
    register(
        surroundings, tracking_uri=uri, name="fetch", model_uri=stored[1], run_id=stored[0],
        job_id="j-stored", metrics={"accuracy": 0.9}, split="test", data_fingerprint="d1",
    )  # fmt: skip
    texts = ("models:/fetch@champion", "models:/fetch/1", f"runs:/{stored[0]}", stored[1])
    folders = {model_folder(text, surroundings, base_dir=tmp_path) for text in texts}
    (fetched,) = folders
    found = Predictor.load(fetched, device="cpu").probabilities(TEXTS)
    assert (found == predictor.probabilities(TEXTS)).all()


@pytest.mark.parametrize(
    "text",
    ["models:/nope@champion", "models:/nope/1", f"runs:/{'0' * 32}", f"models:/m-{'0' * 32}"],
)
def test_a_model_that_is_not_there_is_named(surroundings, tmp_path, text):
    with pytest.raises(RequestError, match=text):
        model_folder(text, surroundings, base_dir=tmp_path)


def test_the_gate_gives_the_alias_and_the_loser_is_challenger(surroundings, uri, stored):
    aliases = [
        add_version(surroundings, uri, stored, "gate", accuracy, f"j-{i}", minimum=0.5).alias
        for i, accuracy in enumerate([0.8, 0.7, 0.9, 0.4])
    ]
    assert aliases == ["champion", "challenger", "champion", None]
    assert champion(surroundings, "gate") == [3]
    difference = compare(surroundings, "models:/gate/1", "models:/gate/3")
    assert difference["metrics"]["accuracy"]["difference"] == pytest.approx(0.1)
    assert difference["same_data"]


def test_promoting_and_rolling_back_is_written_down(surroundings, uri, stored):
    for accuracy in (0.9, 0.8, 0.7):
        add_version(surroundings, uri, stored, "back", accuracy, f"j-{accuracy}")
    promote(surroundings, "back", 2)
    promote(surroundings, "back", 3)
    assert champion(surroundings, "back") == [3]
    assert rollback(surroundings, "back").version == 2
    assert rollback(surroundings, "back").version == 1
    assert champion(surroundings, "back") == [1]
    with pytest.raises(RequestError, match="no champion before"):
        rollback(surroundings, "back")
    moves = Store(surroundings.home).promotions(registry="embedded", model="back")
    assert [(m.action, m.old_version, m.new_version) for m in reversed(moves)] == [
        ("gate", None, 1),
        ("promote", 1, 2),
        ("promote", 2, 3),
        ("rollback", 3, 2),
        ("rollback", 2, 1),
    ]


@pytest.mark.parametrize(("version", "words"), [(9, "not in the registry"), (1, "already")])
def test_a_senseless_promotion_is_refused(surroundings, uri, stored, version, words):
    name = f"senseless-{version}"
    add_version(surroundings, uri, stored, name, 0.9, "j-1")
    with pytest.raises(RequestError, match=words):
        promote(surroundings, name, version)
    assert champion(surroundings, name) == [1]


def test_of_two_promotions_at_once_one_wins_and_the_other_is_told(surroundings, uri, stored):
    for accuracy in (0.9, 0.8, 0.7):
        add_version(surroundings, uri, stored, "race", accuracy, f"j-{accuracy}")
    code = """
import json, sys
from pathlib import Path
from cluster.home import Home, Surroundings
from gpt2cls.errors import RequestError
from jobs.registry import promote
try:
    promote(Surroundings(Home(Path(sys.argv[1])), None, None, None), "race", int(sys.argv[2]))
    print(json.dumps({"won": int(sys.argv[2])}))
except RequestError as error:
    print(json.dumps({"told": str(error), "kind": type(error).__name__}))
"""
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(surroundings.home.root), version],
            stdout=subprocess.PIPE,
            text=True,
            env=dict(os.environ) | {"OMP_NUM_THREADS": "1"},
        )
        for version in ("2", "3")
    ]
    answers = [json.loads(racer.communicate(timeout=120)[0]) for racer in racers]
    (winner,) = [answer["won"] for answer in answers if "won" in answer]
    (loser,) = [answer for answer in answers if "told" in answer]
    assert champion(surroundings, "race") == [winner]
    assert loser["kind"] == PromotionConflict.__name__
    assert f"made version {winner} the champion (was 1)" in loser["told"]
