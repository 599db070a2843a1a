"""Whole runs whose frozen layers are computed once, epoch by epoch."""

import shutil

import pytest
from test_gpt2cls_training_session import (
    best_bytes,
    data,  # noqa: F401 (a fixture)
    events_of,
    payload_of,
)

from gpt2cls.training import shelf
from gpt2cls.training.session import run_rank

MODEL = {"dropout": 0.3}
GRADUAL = {"freeze": "gradual", "epochs": 3, "model": MODEL}
"""Three phases of 7 steps: the head; the upper one of two blocks too; all."""


def told(job_dir):
    return [event["text"] for event in events_of(job_dir, "note")]


def metrics(job_dir, kind):
    found = [event["metrics"] for event in events_of(job_dir, kind)]
    return [value for one in found for name, value in one.items() if "tokens" not in name]


def stopped_after(payload, *num_steps):
    """Run it, stopped each time after so many more steps, to the end."""
    for number in num_steps:
        polls = iter([False] * (number - 1) + [True])
        assert run_rank(payload, should_stop=lambda polls=polls: next(polls)) == "stopped"
    assert run_rank(payload) == "finished"


@pytest.mark.parametrize("pooling", ["last", "attention"])
def test_a_gradual_run_learns_from_what_is_kept_what_it_learns_from_tokens(
    data,  # noqa: F811
    tmp_path,
    monkeypatch,
    pooling,
):
    settings = {**GRADUAL, "model": {**MODEL, "pooling": pooling, "heads": 2}}
    run_rank(payload_of(data, tmp_path / "kept", **settings))
    assert len(list((tmp_path / "kept" / "features").iterdir())) == 4
    assert len(told(tmp_path / "kept")) == 4
    monkeypatch.setattr(shelf, "LIMIT_BYTES", 0)
    run_rank(payload_of(data, tmp_path / "anew", **settings))
    assert not list((tmp_path / "anew" / "features").iterdir())
    for kind in ("step", "eval"):
        expected = metrics(tmp_path / "anew", kind)
        # What other shapes of a batch round, grown over 21 steps of learning.
        assert metrics(tmp_path / "kept", kind) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("freeze", ["gradual", "top:1"])
def test_a_run_stopped_within_and_between_phases_equals_an_unbroken_one(
    data,  # noqa: F811
    tmp_path,
    freeze,
    precision,
):
    settings = {**GRADUAL, "freeze": freeze, "precision": precision}
    run_rank(payload_of(data, tmp_path / "unbroken", **settings))
    broken = payload_of(data, tmp_path / "broken", **settings)
    stopped_after(broken, 9, 5)  # within the second phase, and at its very end
    assert best_bytes(tmp_path / "broken") == best_bytes(tmp_path / "unbroken")
    for kind in ("step", "eval"):
        assert metrics(tmp_path / "broken", kind) == metrics(tmp_path / "unbroken", kind)


def test_a_resumed_run_makes_anew_what_was_removed_meanwhile(data, tmp_path):  # noqa: F811
    run_rank(payload_of(data, tmp_path / "unbroken", **GRADUAL))
    broken = payload_of(data, tmp_path / "broken", **GRADUAL)
    polls = iter([False] * 9 + [True])
    assert run_rank(broken, should_stop=lambda: next(polls)) == "stopped"
    shutil.rmtree(tmp_path / "broken" / "features")
    assert run_rank(broken) == "finished"
    assert len(list((tmp_path / "broken" / "features").iterdir())) == 2
    assert best_bytes(tmp_path / "broken") == best_bytes(tmp_path / "unbroken")


def test_jobs_with_the_same_lower_layers_share_what_was_kept(data, tmp_path):  # noqa: F811
    more = {"cache_dir": tmp_path / "cache"}
    run_rank(payload_of(data, tmp_path / "one", more=more, **GRADUAL))
    run_rank(payload_of(data, tmp_path / "two", more=more, **{**GRADUAL, "lr": 2e-3}))
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 4
    assert told(tmp_path / "two") == []


def test_a_run_that_learns_everywhere_keeps_nothing(data, tmp_path):  # noqa: F811
    run_rank(payload_of(data, tmp_path, epochs=1))
    assert not (tmp_path / "features").exists()
