import re
from pathlib import Path

import pytest

from cluster.tracking_main import is_needed, settings

MODEL_ID = "m-" + "0a" * 16


@pytest.mark.parametrize(
    ("idle_s", "open_requests", "is_on_record", "expected"),
    [
        pytest.param(10, 0, True, True, id="asked a moment ago"),
        pytest.param(99, 0, True, False, id="nobody asked for long"),
        pytest.param(99, 1, True, True, id="a long request is being answered"),
        pytest.param(10, 1, False, False, id="no command could find it any more"),
    ],
)
def test_the_server_leaves_when_it_is_not_needed(idle_s, open_requests, is_on_record, expected):
    found = is_needed(
        idle_s=idle_s, limit_s=60, open_requests=open_requests, is_on_record=is_on_record
    )
    assert found is expected


@pytest.mark.parametrize(
    ("source", "is_taken"),
    [
        (f"models:/{MODEL_ID}", True),
        (f"mlflow-artifacts:/1/models/{MODEL_ID}/artifacts", True),
        (f"mlflow-artifacts:/1/{'0a' * 16}/artifacts/model", True),
        ("file:///etc/passwd", False),
        ("/etc/passwd", False),
        ("http://169.254.169.254/latest", False),
        (f"mlflow-artifacts:/1/models/{MODEL_ID}/artifacts/../../../x", False),
        (f"models:/{MODEL_ID}\n", False),
        (f"x models:/{MODEL_ID}", False),
    ],
)
def test_a_version_can_only_come_from_the_servers_own_store(source, is_taken):
    regex = settings(Path("/state"), 5000)["MLFLOW_CREATE_MODEL_VERSION_SOURCE_VALIDATION_REGEX"]
    assert bool(re.search(regex, source)) is is_taken


def test_the_server_answers_to_loopback_names_only():
    assert settings(Path("/state"), 5000)["MLFLOW_SERVER_ALLOWED_HOSTS"] == (
        "127.0.0.1:5000,localhost:5000"
    )
