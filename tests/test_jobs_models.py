import pytest

from cluster.home import Home, Surroundings
from gpt2cls.errors import RequestError
from jobs.models import model_folder, parse_model

RUN_ID = "0a" * 16


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("models:/bbc-news@champion", {"name": "bbc-news", "alias": "champion"}),
        ("models:/bbc.news/3", {"name": "bbc.news", "version": 3}),
        (f"models:/m-{RUN_ID}", {"model_id": f"m-{RUN_ID}"}),
        (f"runs:/{RUN_ID}", {"run_id": RUN_ID}),
        (f"runs:/{RUN_ID}/model", {"run_id": RUN_ID}),
    ],
)
def test_the_addresses_of_a_model_are_read(tmp_path, text, expected):
    reference = parse_model(text, base_dir=tmp_path)
    found = {key: value for key, value in vars(reference).items() if value is not None}
    assert found == {"text": text, **expected}


def test_a_folder_is_taken_from_where_the_request_stands(tmp_path):
    (tmp_path / "model").mkdir()
    assert parse_model("model", base_dir=tmp_path).folder == tmp_path / "model"


@pytest.mark.parametrize(
    "text",
    [
        "file:///etc/passwd",
        "http://169.254.169.254/latest",
        "s3://bucket/model",
        "models:/x/Production",
        "models:/../x/1",
        "models:/x@a/../b",
        f"runs:/{RUN_ID}/../../x",
        "models:/x/1\n",
        "nowhere",
        "",
    ],
)
def test_any_other_address_is_refused_and_nothing_is_made(tmp_path, text):
    surroundings = Surroundings(Home(tmp_path / "home"), None, None, None)
    with pytest.raises(RequestError, match="models:/NAME@ALIAS"):
        model_folder(text, surroundings, base_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_was_ever_recorded_no_server_is_started_to_look(tmp_path):
    surroundings = Surroundings(Home(tmp_path / "home"), None, None, None)
    with pytest.raises(RequestError, match="no model is registered"):
        model_folder("models:/x@champion", surroundings, base_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
