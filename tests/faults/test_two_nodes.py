"""Two Ray nodes on one machine, of which one is lost."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
        before = ids_of_nodes(commands)
        self._ray("start", "--node-ip-address=127.0.0.3", "--num-cpus=1")
        wait_until(lambda: len(ids_of_nodes(commands)) == 2, 60, "the second node never came")
        [self.id] = ids_of_nodes(commands) - before

    def _ray(self, *words: str) -> None:
        address = self.commands.json("cluster", "status")["ray"]["address"]
        head = self.commands.processes("cluster.head_main")[0].environ()
        names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_worker_niceness")
        subprocess.run(
            [Path(sys.executable).parent / "ray", *words, f"--address={address}"],
            env=self.commands.environment | {name: head[name] for name in names},
            check=True,
            capture_output=True,
            timeout=120,
        )

    def announce_end(self, *, within_s: int) -> None:
        """As the watcher of a spot machine does when it gets notice."""
        reason = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot"]
        deadline = f"--deadline-remaining-seconds={within_s}"
        self._ray("drain-node", f"--node-id={self.id}", *reason, deadline)

    def kill(self) -> None:
        """As if the machine were gone."""
        for process in self.commands.processes("127.0.0.3"):
            for child in process.children(recursive=True):
                os.kill(child.pid, signal.SIGKILL)
            process.kill()


def ids_of_nodes(commands: Commands) -> set[str]:
    return {node["id"] for node in commands.json("cluster", "status")["controller"]["nodes"]}


def num_nodes(commands: Commands) -> int:
    return len(ids_of_nodes(commands))


def events_of(commands: Commands, job_id: str, kind: str) -> list[dict[str, Any]]:
    lines = (commands.home / "jobs" / job_id / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


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


def test_an_elastic_job_shrinks_to_the_node_that_is_left_and_grows_again(
    commands: Commands,
) -> None:
    wait_until(lambda: num_nodes(commands) == 1, 60, "the node is not missed")
    node = Node(commands)
    elastic = {"workers": [1, 2], "cpus_per_worker": 1}
    endless = LONG | {"train__epochs": 2000}
    job_id = submit(commands, "elastic", cluster=elastic, **endless)
    wait_for_step(commands, job_id, 50)
    node.kill()
    wait_until(lambda: worlds(commands, job_id)[-1] == 1, 200, "it never went on with one")
    node = Node(commands)
    wait_until(lambda: worlds(commands, job_id)[-1] == 2, 200, "it never grew again")
    assert worlds(commands, job_id) == [2, 1, 2]
    commands.json("stop", job_id)
    document = wait_for_state(commands, job_id, "STOPPED", timeout_s=60)
    assert len(document["attempts"]) == 1
    assert document["attempts"][0]["lost"]
    assert_all_is_well(commands)
    node.kill()


def worlds(commands: Commands, job_id: str) -> list[int]:
    """With how many workers it has trained, each time it began."""
    return [event["world"] for event in events_of(commands, job_id, "start")]


def test_a_node_with_notice_is_left_in_time_and_no_step_is_lost(commands: Commands) -> None:
    wait_until(lambda: num_nodes(commands) == 1, 60, "the node is not missed")
    node = Node(commands)
    both = {"workers": 2, "cpus_per_worker": 1, "retries": 0}
    rare = {"train__epochs": 20, "train__checkpoint_every": "100000 steps"}
    job_id = submit(commands, "noticed", cluster=both, **rare)
    wait_for_step(commands, job_id, 50)
    node.announce_end(within_s=15)
    wait_until(lambda: show(commands, job_id)["state"] == "QUEUED", 15, "it did not leave in time")
    assert f"node {node.id[:12]} is being drained" in show(commands, job_id)["reason"]
    node.kill()
    node = Node(commands)
    document = wait_for_state(commands, job_id, "SUCCEEDED", timeout_s=400)
    assert [attempt["cause"] for attempt in document["attempts"]] == ["preempted", "succeeded"]
    steps = [event["step"] for event in events_of(commands, job_id, "step")]
    assert steps == [*range(1, len(steps) + 1)]  # none was made twice
    assert_all_is_well(commands)
    node.kill()
