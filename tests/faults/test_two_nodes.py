"""Two Ray nodes on one machine, of which one is lost."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Commands
from queues import (
    assert_all_is_well,
    queue_up,
    show,
    submit,
    wait_for_state,
    wait_for_step,
    wait_until,
)

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

LONG = {"train__epochs": 20, "train__checkpoint_every": "20 steps"}


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    folder = tmp_path_factory.mktemp("nodes")
    with queue_up(folder, "--cpus", "1", no_progress_s=60) as commands:
        yield commands


class Node:
    """A second node of the cluster, on an address of its own."""

    def __init__(self, commands: Commands) -> None:
        self.commands = commands
        address = commands.json("cluster", "status")["ray"]["address"]
        head = commands.processes("cluster.head_main")[0].environ()
        names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_worker_niceness")
        ray = Path(sys.executable).parent / "ray"
        subprocess.run(
            [ray, "start", f"--address={address}", "--node-ip-address=127.0.0.3", "--num-cpus=1"],
            env=commands.environment | {name: head[name] for name in names},
            check=True,
            capture_output=True,
            timeout=120,
        )
        wait_until(lambda: num_nodes(commands) == 2, 60, "the second node never came")

    def kill(self) -> None:
        """As if the machine were gone."""
        for process in self.commands.processes("127.0.0.3"):
            for child in process.children(recursive=True):
                os.kill(child.pid, signal.SIGKILL)
            process.kill()


def num_nodes(commands: Commands) -> int:
    return len(commands.json("cluster", "status")["controller"]["nodes"])


def test_a_job_on_two_nodes_waits_for_the_one_that_is_lost(commands: Commands) -> None:
    node = Node(commands)
    both = {"workers": 2, "cpus_per_worker": 1}
    job_id = submit(commands, "both", cluster=both, **LONG)
    wait_for_step(commands, job_id, 50)
    node.kill()
    wait_until(lambda: num_nodes(commands) == 1, 60, "the node is not missed")
    wait_until(lambda: show(commands, job_id)["state"] == "RETRYING", 300, "it never gave up")
    wait_until(
        lambda: "CPU" in show(commands, job_id)["reason"], 30, "it does not say why it waits"
    )
    node = Node(commands)
    document = wait_for_state(commands, job_id, "SUCCEEDED", timeout_s=400)
    assert len(document["attempts"]) == 2
    assert_all_is_well(commands)
    node.kill()


def test_an_elastic_job_goes_on_with_the_node_that_is_left(commands: Commands) -> None:
    wait_until(lambda: num_nodes(commands) == 1, 60, "the node is not missed")
    node = Node(commands)
    elastic = {"workers": [1, 2], "cpus_per_worker": 1}
    job_id = submit(commands, "elastic", cluster=elastic, **LONG)
    wait_for_step(commands, job_id, 50)
    node.kill()
    document = wait_for_state(commands, job_id, "SUCCEEDED", timeout_s=400)
    assert len(document["attempts"]) == 1
    assert document["attempts"][0]["lost"]
    assert_all_is_well(commands)
