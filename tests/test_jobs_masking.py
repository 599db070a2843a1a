"""What is hidden in messages, and what is left alone."""

import pytest

from jobs.masking import mask, mask_value


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:hunter2@host/x", "https://***@host/x"),
        ("https://ghToken123@host/x", "https://***@host/x"),
        ("Authorization: Bearer abcdefghijkl", "Authorization: Bearer ***"),
        ("password=hunter2, user=me", "password=***, user=me"),
        (f"token g2c_{'a' * 43} of ann", "token *** of ann"),
        ("models:/name@champion", "models:/name@champion"),
        ("http://127.0.0.1:5000/#/experiments/1", "http://127.0.0.1:5000/#/experiments/1"),
    ],
    ids=[
        "user and password",
        "token alone",
        "bearer",
        "setting",
        "our own",
        "a model",
        "an address",
    ],
)
def test_secrets_are_hidden_and_nothing_else(text: str, shown: str) -> None:
    assert mask(text) == shown


def test_a_value_under_a_secret_name_is_hidden_whatever_it_is() -> None:
    assert mask_value("train", {"hf_token": "x", "lr": 0.1}) == {"hf_token": "***", "lr": 0.1}
