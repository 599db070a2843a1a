"""The process of a controller, killed at every step on the way of a job to the cluster."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from queue_world import Served, World, free_port, wish
from ray_fake import RayFake
from stores import fresh_postgres_url

from cluster.errors import ClusterError
from cluster.home import Home
from jobs import access
from jobs.client import ControllerClient
from jobs.controller_main import Process
from jobs.states import State

_PROGRAM = """
import json, os, signal, sys
from pathlib import Path
import jobs.controller, jobs.controller_main, jobs.queue_store
from cluster.ray_api import RayApi

def die(*_args, **_values):
    os.kill(os.getpid(), signal.SIGKILL)

{patch}
jobs.controller_main.LEASE_S = 1.0
folder = Path(sys.argv[1])
(folder / "server.json").write_text(json.dumps({{"pid": os.getpid()}}))
jobs.controller_main.main(folder, int(sys.argv[2]))
"""
_LATE = """
whole = {name}
def late(*args, **values):
    whole(*args, **values)
    die()
{name} = late
"""
STEPS = {
    "before the request is written": "jobs.queue_store._add_job = die",
    "before its client hears of it": "jobs.api.access.note = die",
    "before the attempt is written": "jobs.controller.add_attempt = die",
    "before the attempt reaches Ray": "RayApi.submit = die",
    "after the attempt has reached Ray": _LATE.format(name="RayApi.submit"),
    "before the session is written": "jobs.controller.change_attempt = die",
}


@pytest.fixture
def ray():
    with RayFake(token="secret") as made:
        yield made


class Place:
    """Where controllers are started and killed."""

    def __init__(self, home, ray):
        self.home, self.ray, self.port = home, ray, free_port()
        home.controller.mkdir(parents=True)
        self.world = World(home, ray)
        engine = self.world.queue.store.engine()
        token = access.new_token(engine, user="ada", role="submitter")
        self.client = ControllerClient(f"http://127.0.0.1:{self.port}", token)

    @contextmanager
    def controller(self, patch=""):
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY", "MLFLOW"))}
        own = {"GPT2CLS_HOME": str(self.home.root), "RAY_ADDRESS": self.ray.uri}
        own |= {"RAY_AUTH_TOKEN": "secret", "GPT2CLS_DATABASE": self.home.database_url or ""}
        folder = self.home.controller
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM.format(patch=patch), str(folder), str(self.port)],
                env=kept | own,
                stdout=log,
                stderr=log,
            )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(20)

    def submit(self, *, within_s=30.0):
        """Ask for one job until the controller answers, as a stubborn user does."""
        deadline = time.monotonic() + within_s
        while True:
            try:
                return self.client.post("/api/jobs", wish("the-one-key"))["job_id"]
            except ClusterError:
                if time.monotonic() > deadline:
                    raise


def wait_until(is_true, *, within_s=30.0):
    deadline = time.monotonic() + within_s
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def killed_and_started_again(place, patch):
    """The id of the one job."""
    with place.controller(patch) as first:
        threading.Thread(target=place.submit, daemon=True).start()
        assert first.wait(30) == -9
    with place.controller():
        job_id = place.submit()
        queue = place.world.queue
        wait_until(lambda: queue.store.get(job_id).state is State.STARTING)
        wait_until(lambda: [one for one in queue.attempts(job_id) if one.session])
    return job_id


def exactly_one(place, job_id):
    jobs = place.world.queue.store.jobs()
    assert [job.id for job in jobs] == [job_id]
    assert place.ray.accepted == [f"{job_id}-a1"]
    assert [one.number for one in place.world.queue.attempts(job_id)] == [1]


@pytest.mark.faults
@pytest.mark.parametrize("patch", STEPS.values(), ids=STEPS)
def test_a_controller_that_was_killed_makes_one_job_and_one_submission(tmp_path, ray, patch):
    place = Place(Home(tmp_path / "home"), ray)
    exactly_one(place, killed_and_started_again(place, patch))
    place.world.close()


@pytest.mark.faults
def test_so_it_does_on_a_server(tmp_path, ray):
    with fresh_postgres_url() as url:
        place = Place(Home(tmp_path / "home", url.render_as_string(hide_password=False)), ray)
        patch = STEPS["after the attempt has reached Ray"]
        exactly_one(place, killed_and_started_again(place, patch))
        place.world.close()


@pytest.mark.faults
def test_of_two_controllers_one_acts_and_the_other_takes_over(tmp_path, ray):
    place = Place(Home(tmp_path / "home"), ray)
    with place.controller() as first:
        job_id = place.submit()
        wait_until(lambda: ray.accepted)
        place.port = free_port()
        with place.controller() as second:
            time.sleep(3.0)
            holder = place.world.queue.lease()["holder"]
            assert f"/{first.pid}/" in holder
            first.kill()
            wait_until(lambda: f"/{second.pid}/" in place.world.queue.lease()["holder"])
            ray.begin(f"{job_id}-a1")
    exactly_one(place, job_id)
    place.world.close()


# A reply that is lost.


class LosingProxy:
    """Passes requests on, and loses the first replies."""

    def __init__(self, port, *, num_lost):
        self.target, self.num_lost, self.num_passed = port, num_lost, 0
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:
                return
            threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client):
        with client, socket.create_connection(("127.0.0.1", self.target)) as target:
            while sent := _message_of(client):
                mine, its = f":{self.port}".encode(), f":{self.target}".encode()
                target.sendall(sent.replace(mine, its))
                reply = _message_of(target)
                self.num_passed += 1
                if self.num_lost > 0:
                    self.num_lost -= 1
                    return
                client.sendall(reply)

    def close(self):
        self.server.close()


def _message_of(client):
    """One request or reply, with its body: it may come in several pieces."""
    text = b""
    while b"\r\n\r\n" not in text:
        if not (more := client.recv(65536)):
            return b""
        text += more
    head, _, body = text.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
    missing = (int(lengths[0].split(b":")[1]) if lengths else 0) - len(body)
    while missing > 0:
        more = client.recv(65536)
        text, missing = text + more, missing - len(more)
    return text


@pytest.fixture
def world(tmp_path, ray):
    made = World(Home(tmp_path / "home"), ray)
    yield made
    made.close()


@pytest.mark.parametrize("num_lost", [1, 3])
def test_a_client_whose_reply_was_lost_gets_the_same_job(world, num_lost):
    with Served(world) as served:
        proxy = LosingProxy(served.port, num_lost=num_lost)
        client = ControllerClient(f"http://127.0.0.1:{proxy.port}", served.token())
        document = client.post("/api/jobs", wish("once"))
        proxy.close()
    assert proxy.num_passed == num_lost + 1
    assert [job.id for job in world.queue.store.jobs()] == [document["job_id"]]
    assert document["is_new"] is False


@pytest.mark.parametrize("what", ["stop", "resume"])
def test_a_wish_whose_reply_was_lost_is_made_once(world, what):
    job_id = world.submit()
    if what == "resume":
        world.queue.wish_to_stop(job_id, by_whom="ada", now_unix_s=1.0)
    with Served(world) as served:
        proxy = LosingProxy(served.port, num_lost=1)
        client = ControllerClient(f"http://127.0.0.1:{proxy.port}", served.token())
        document = client.post(f"/api/jobs/{job_id}/{what}")
        proxy.close()
    assert document["state"] == {"stop": "STOPPED", "resume": "QUEUED"}[what]
    assert proxy.num_passed == 2
    words = {"stop": "stopped by ada", "resume": "resumed by ada"}[what]
    assert [event["reason"] for event in world.queue.events(job_id)].count(words) == 1


def test_a_client_says_that_nobody_answers(tmp_path):
    client = ControllerClient(f"http://127.0.0.1:{free_port()}", "g2c_x")
    with pytest.raises(ClusterError, match=r"does not answer .*gpt2cls cluster status"):
        client.get("/api/status")


# The process.


def test_a_controller_leaves_when_it_is_struck_from_the_record(world):
    folder = world.home.controller
    folder.mkdir()
    process = Process(world.surroundings, folder)
    record = folder / "server.json"
    assert not process._is_on_record()
    record.write_text(json.dumps({"pid": os.getpid(), "uri": "x"}))
    assert process._is_on_record()
    record.write_text(json.dumps({"pid": int(f"{os.getpid()}0")}))
    assert not process._is_on_record()


def test_a_lease_is_taken_over_when_its_beat_has_stopped(world, monkeypatch):
    monkeypatch.setattr("jobs.controller_main.LEASE_S", 0.3)
    monkeypatch.setattr("jobs.controller_main.ROUND_S", 0.02)
    world.queue.take_lease("somebody who died", None)
    started_s = time.monotonic()
    assert world.process._wait_for_lease() == 2
    assert time.monotonic() - started_s > 0.3


def test_a_lease_that_beats_is_waited_for(world, monkeypatch):
    monkeypatch.setattr("jobs.controller_main.LEASE_S", 0.4)
    monkeypatch.setattr("jobs.controller_main.ROUND_S", 0.02)
    number = world.queue.take_lease("somebody", None)
    waiting = threading.Thread(target=world.process._wait_for_lease)
    waiting.start()
    for _ in range(10):
        time.sleep(0.1)
        with world.queue.acting(number):
            pass
    assert waiting.is_alive()
    world.process.leaves.set()
    waiting.join(5)


def test_an_address_that_is_no_dashboards_is_refused_at_the_start(world):
    from dataclasses import replace

    wrong = replace(world.surroundings, ray_address="ray://127.0.0.1:10001")
    with pytest.raises(ClusterError, match="dashboard; write http"):
        Process(wrong, world.home.controller)
