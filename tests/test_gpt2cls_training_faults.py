"""A training process that is really killed, and one that goes on with other ranks."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_gpt2cls_training_ranks import on_ranks
from test_gpt2cls_training_session import (
    best_bytes,
    data,  # noqa: F401 (a fixture)
    events_of,
    payload_of,
    steps_of,
)

from gpt2cls.training.payload import RankPayload
from gpt2cls.training.ranks import Ranks
from gpt2cls.training.session import run_rank

PROGRAM = """
import sys
from pathlib import Path
from gpt2cls.training.payload import RankPayload
from gpt2cls.training.session import run_rank
run_rank(RankPayload.model_validate_json(Path(sys.argv[1]).read_text()))
"""


def start(payload: RankPayload) -> subprocess.Popen:
    payload.job_dir.mkdir(parents=True, exist_ok=True)
    file = payload.job_dir / "payload.json"
    file.write_text(payload.model_dump_json())
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(file)], env=environment)


def kill_at(process: subprocess.Popen, events: Path, step: int) -> None:
    """SIGKILL once the file tells of this step."""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s and process.poll() is None:
        lines = events.read_bytes().split(b"\n")[:-1] if events.exists() else []
        if lines and json.loads(lines[-1])["step"] >= step:
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL


@pytest.mark.faults
def test_a_killed_run_goes_on_and_ends_bit_identical_with_no_step_told_twice(data, tmp_path):  # noqa: F811
    settings = {"epochs": 20, "model": {"dropout": 0.2}, "checkpoint_every": "2 epochs"}
    unbroken = payload_of(data, tmp_path / "unbroken", **settings)
    assert start(unbroken).wait(100) == 0
    killed = payload_of(data, tmp_path / "killed", **settings)
    for step in (10, 40, 75):
        kill_at(start(killed), tmp_path / "killed" / "events.jsonl", step)
    assert start(killed).wait(100) == 0
    assert steps_of(tmp_path / "killed", "step") == list(range(1, 141))
    assert steps_of(tmp_path / "killed", "eval") == list(range(7, 141, 7))
    checkpoints = steps_of(tmp_path / "killed", "checkpoint")
    assert checkpoints == sorted(set(checkpoints))
    times = [event["time_ms"] for event in events_of(tmp_path / "killed")]
    assert times == sorted(times)
    assert best_bytes(tmp_path / "killed") == best_bytes(tmp_path / "unbroken")


def run_until(ranks, document, stop_after):
    polls = iter([False] * stop_after + [True] * 1000)
    payload = RankPayload.model_validate_json(document)
    return run_rank(payload, ranks.rank, ranks.world, should_stop=lambda: next(polls))


def losses(job_dir):
    return [event["metrics"]["train/loss"] for event in events_of(job_dir, "step")]


@pytest.mark.faults
def test_a_run_goes_on_with_another_number_of_ranks(data, tmp_path):  # noqa: F811
    settings = {"freeze": "top:1", "epochs": 4, "model": {"dropout": 0.0}}
    document = payload_of(data, tmp_path / "job", **settings).model_dump_json()
    assert on_ranks(2, tmp_path, run_until, document, 9) == ["stopped"] * 2
    assert run_until(Ranks(), document, 4) == "stopped"
    (tmp_path / "rendezvous").unlink(missing_ok=True)
    assert on_ranks(3, tmp_path, run_until, document, 99) == ["finished"] * 3
    run_rank(payload_of(data, tmp_path / "alone", **settings))
    assert steps_of(tmp_path / "job", "step") == list(range(1, 29))
    starts = [(e["resumed_from"], e["world"]) for e in events_of(tmp_path / "job", "start")]
    assert starts == [(None, 2), (10, 1), (15, 3)]
    # Ranks add up in another order; without dropout there is no other difference.
    assert losses(tmp_path / "job") == pytest.approx(losses(tmp_path / "alone"), abs=1e-3)


@pytest.mark.faults
def test_two_ranks_compute_kept_features_together(data, tmp_path):  # noqa: F811
    settings = {
        "freeze": "head_only",
        "model": {"pooling": "mean", "dropout": 0.0},
        "lr": 0.05,
    }
    assert_two_ranks_learn_what_one_learns(data, tmp_path, settings)


@pytest.mark.faults
def test_two_ranks_thaw_layer_by_layer_what_they_kept_together(data, tmp_path):  # noqa: F811
    settings = {"freeze": "gradual", "model": {"dropout": 0.0}}
    assert_two_ranks_learn_what_one_learns(data, tmp_path, settings)
    kept = [len(list((tmp_path / job / "features").iterdir())) for job in ("one", "two")]
    assert kept == [4, 4]


def assert_two_ranks_learn_what_one_learns(data, tmp_path, settings):  # noqa: F811
    document = payload_of(data, tmp_path / "two", **settings).model_dump_json()
    assert on_ranks(2, tmp_path, run_until, document, 99) == ["finished"] * 2
    run_rank(payload_of(data, tmp_path / "one", **settings))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
