"""Ray sessions that a job left are found by their folder and ended; others are left alone."""

import os
import subprocess
import sys

import pytest

from cluster.home import Home
from cluster.leftovers import stop_sessions


@pytest.fixture
def started():
    """Starts processes that look like those of a session, and ends what is left of them."""
    processes = []

    def start(folder, home):
        code = "import time; time.sleep(60)"
        environment = os.environ | {"GPT2CLS_HOME": str(home)}
        command = [sys.executable, "-c", code, f"--temp-dir={folder}/sockets"]
        processes.append(subprocess.Popen(command, env=environment))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_the_sessions_of_a_state_folder_are_ended_and_counted(tmp_path, started):
    home = tmp_path / "home"
    mine = [started(home / "ray-1", home), started(home / "ray-1", home)]
    mine.append(started("/tmp/gpt2cls-ray-x", home))
    others = [started(tmp_path / "ray-1", home), started("/tmp/gpt2cls-ray-y", tmp_path / "other")]
    assert stop_sessions(Home(home)) == 2
    assert all(process.poll() is not None for process in mine)
    assert all(process.poll() is None for process in others)


def test_where_nothing_runs_nothing_is_ended(tmp_path):
    assert stop_sessions(Home(tmp_path)) == 0
