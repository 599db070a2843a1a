"""A model over HTTP, started and asked as a user would."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import psutil
import pytest
from test_gpt2cls_predict import saved_model

pytestmark = pytest.mark.system


def start(model, tmp_path):
    environment = os.environ | {"GPT2CLS_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", "serve", str(model), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tmp_path,
    )


def read_document(process):
    """The document that is printed when the server answers; the command goes on."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.rstrip() == "}":
            break
    return json.loads("".join(lines))


def ask(url, body, content_type="application/json"):
    request = urllib.request.Request(
        f"{url}/invocations", body.encode(), {"Content-Type": content_type}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_served_model_answers_good_requests_and_refuses_others(tmp_path):
    process = start(saved_model(tmp_path / "model"), tmp_path)
    try:
        document = read_document(process)
        assert document["url"].startswith("http://127.0.0.1:")
        server = psutil.Process(document["pid"])
        workers = [server, *server.children(recursive=True)]

        records = {"dataframe_records": [{"text": "the market"}, {"text": "a game"}]}
        status, answer = ask(document["url"], json.dumps(records))
        assert status == 200
        assert [set(row) for row in answer["predictions"]] == [
            {"label", "score", "p_business", "p_sport", "p_world"}
        ] * 2

        wrong = {"dataframe_records": [{"body": "the market"}]}
        status, words = ask(document["url"], json.dumps(wrong))
        assert status == 400
        assert "text" in words
        assert ask(document["url"], "{not json")[0] == 400
        assert ask(document["url"], json.dumps({"dataframe_records": [{"text": 3}]}))[0] == 400
        assert ask(document["url"], "text\nx\n", "text/html")[0] in (400, 415)
        assert ask(document["url"], json.dumps(records))[0] == 200
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 130
    _, left = psutil.wait_procs(workers, timeout=10)
    # Where nobody reaps what lost its parent, a dead process keeps its number.
    assert all(worker.status() == psutil.STATUS_ZOMBIE for worker in left)


def test_a_model_that_cannot_load_ends_with_its_cause(tmp_path):
    model = saved_model(tmp_path / "model")
    weights = model / "head.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    process = start(model, tmp_path)
    out, _ = process.communicate(timeout=120)
    assert process.returncode in (1, 2)
    assert "head.safetensors" in json.loads(out)["error"]["message"]
