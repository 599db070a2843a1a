"""What a job has imported by its first step, and what is left of Ray when there is no job."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cluster.local import ray_ahead
from jobs.record import _has_step

NEEDLESS = {"mlflow", "sklearn", "scipy", "transformers", "datasets", "matplotlib", "torch._dynamo"}


def run_python(code: str) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_driver_of_other_processes_imports_neither_torch_nor_what_comes_after_training():
    code = "import sys, json, jobs.finetune; print(json.dumps(sorted(sys.modules)))"
    assert not {*NEEDLESS, "torch", "ray"} & set(json.loads(run_python(code)))


def test_a_step_of_a_built_in_shape_imports_nothing_needless():
    code = (
        "import sys, json, gpt2cls.training.session\n"
        "from gpt2cls.training.loop import fit\n"
        "from gpt2cls.training.ranks import Ranks\n"
        "from tiny_training import *\n"
        "config = tiny_config(max_steps=2)\n"
        "state = tiny_state(config)\n"
        "fit(state, tiny_work(config, Log()), config, Ranks())\n"
        "state.optimizer.load_state_dict(state.optimizer.state_dict())\n"
        "assert state.step == 2\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    assert not NEEDLESS & set(json.loads(run_python(code)))


def test_a_rank_under_ray_imports_torch_itself_and_not_by_way_of_ray():
    code = "import sys, json, jobs.rank; print(json.dumps(sorted(sys.modules)))"
    assert not {*NEEDLESS, "torch"} & set(json.loads(run_python(code)))


@pytest.mark.parametrize("moment_s", [0.0, 0.4, 4.0], ids=["at once", "importing", "starting"])
def test_nothing_is_left_of_ray_when_the_data_is_refused_while_it_starts(tmp_path, moment_s):
    with (
        pytest.raises(ValueError, match="refused"),
        ray_ahead(address=None, num_cpus=1, num_gpus=0, state_dir=tmp_path) as place,
    ):
        time.sleep(moment_s)
        began_s = time.monotonic()
        raise ValueError("refused")
    assert time.monotonic() - began_s < 1.0
    assert place.temp_dir is not None
    assert not gone_after(10.0, str(place.temp_dir))
    assert not place.temp_dir.exists()


def test_ray_ends_with_the_process_that_started_it_however_it_ends(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom cluster.local import ray_ahead\n"
        f"with ray_ahead(address=None, num_cpus=1, num_gpus=0, state_dir=Path({str(tmp_path)!r}))"
        " as place:\n    place.wait_address()\n    print(place.temp_dir, flush=True)\n"
        "    time.sleep(100)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        folder = owner.stdout.readline().strip()
        owner.kill()
    assert not gone_after(15.0, folder)
    assert not Path(folder).exists()


def test_a_running_cluster_is_not_started_again(tmp_path):
    address = "10.0.0.1:6379"
    with ray_ahead(address=address, num_cpus=1, num_gpus=0, state_dir=tmp_path) as place:
        assert place.wait_address() == "10.0.0.1:6379"
    assert not list(tmp_path.iterdir())


def test_the_first_step_is_seen_in_the_events(tmp_path):
    events = tmp_path / "events.jsonl"
    assert not _has_step(events)
    events.write_text(json.dumps({"kind": "start", "step": 0}) + "\n")
    assert not _has_step(events)
    with events.open("a") as file:
        file.write(json.dumps({"kind": "step", "step": 1}) + "\n")
    assert _has_step(events)


def gone_after(patience_s: float, word: str) -> list[str]:
    """Commands with the word that still run after so long."""
    deadline = time.monotonic() + patience_s
    while (found := commands_with(word)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def commands_with(word: str) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            command = " ".join(process.cmdline())
            is_ours = process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid()
        except psutil.Error:
            continue
        if word in command and is_ours:
            found.append(command)
    return found
