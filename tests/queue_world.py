"""A queue of a test: a store, a cluster that is a fake, and controllers whose rounds it calls."""

import concurrent.futures
import itertools
import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from random import Random

import httpx
from ray_fake import RayFake

from cluster.home import Home, Surroundings
from cluster.ray_api import RayApi
from jobs import access
from jobs.api import Context, make_app
from jobs.attempt_files import attempt_dir, say_end
from jobs.clock import SteadyClock
from jobs.controller import Controller
from jobs.controller_main import Process
from jobs.lifecycle import End
from jobs.listen import make_server
from jobs.queue_config import CONFIG_FILE
from jobs.queue_store import Request
from jobs.schedule import Node
from jobs.states import State

SPEC = {"kind": "finetune", "name": "bbc", "data": {"train": "train.csv"}}
SUCCEEDED = End(State.SUCCEEDED, "succeeded", "", seconds=7.0)
STOPPED = End(State.STOPPED, "stopped", "stopped at step 7")
USER = End(State.FAILED, "user", "train.csv: no such file")


class FastClock(SteadyClock):
    """A clock that the test can let run on."""

    passed_s = 0.0

    def unix_s(self):
        return super().unix_s() + self.passed_s


class LongestPauses(Random):
    """What is drawn is as much as can be, so that a slow machine makes no test fail."""

    def uniform(self, a, b):
        return max(a, b)


class World:
    """One state folder and one cluster."""

    gcs_address = None
    """What an attempt says of the control service of its cluster."""

    def __init__(self, home, ray, **config):
        self.home, self.ray = home, ray
        home.root.mkdir(parents=True, exist_ok=True)
        if config:
            (home.root / CONFIG_FILE).write_text(json.dumps(config))
        self.surroundings = Surroundings(home, None, ray.uri, None, ray.token)
        self.process = Process(self.surroundings, home.controller)
        self.queue, self.clock = self.process.queue, FastClock()
        self.said = []
        self.controllers = []
        self._keys = itertools.count()

    def close(self):
        for controller in self.controllers:
            controller.close()
            controller.ray.close()
        self.queue.store.engine().dispose()

    def controller(self):
        """One that holds the lease, as after a start."""
        number = self.queue.take_lease("test", self.queue.lease())
        made = Controller(
            self.home,
            self.queue,
            RayApi(self.ray.uri, self.ray.token),
            self.process.config,
            lease=number,
            launch=self.process._launch,
            clock=self.clock,
            say=self.said.append,
        )
        made._rng = LongestPauses()
        self.controllers.append(made)
        return made

    def submit(self, *, cpus=1.0, retries=3, key=None, **values):
        """The id of a new job that asks for one worker."""
        limits = {"retries": retries} | values.pop("limits", {})
        ask = {"workers": 1, "cpus_per_worker": cpus, "gpus_per_worker": 0.0, "driver_cpus": 0.0}
        request = Request(
            key=key or f"key{next(self._keys)}",
            user=values.pop("user", "ada"),
            name="bbc",
            kind="finetune",
            spec=SPEC,
            ask=ask | {"cpus": cpus, "gpus": 0.0},
            text="the job file",
            base_dir="/data",
            limits=limits,
            **values,
        )
        return self.queue.accept(request, now_unix_s=self.clock.unix_s())[0].id

    def round(self, controller, *, times=1, passed_s=1.1):
        """Rounds, each after some time, and with its requests to the cluster answered."""
        for _ in range(times):
            self.clock.passed_s += passed_s
            controller.round()
            launcher = controller.launcher
            asked = [*launcher._starts.values(), *(ask for _, ask in launcher._stops.values())]
            concurrent.futures.wait(asked, timeout=10)

    def running(self, controller, **values):
        """The id of a job that was just begun."""
        job_id = self.submit(**values)
        self.round(controller)
        self.begin(job_id)
        self.round(controller)
        assert self.state(job_id) == "RUNNING"
        return job_id

    # What its process does.

    def begin(self, job_id):
        """Its process says that it is there: on another machine, so that only Ray tells its end."""
        folder = self.attempt_dir(job_id)
        folder.mkdir(parents=True, exist_ok=True)
        started = {"pid": 1, "born": "x", "host": "elsewhere", "ray": self.gcs_address}
        (folder / "started.json").write_text(json.dumps(started))
        self.ray.begin(self.submission(job_id))

    def begin_here(self, job_id):
        """Its process is one on this machine, which the caller has to end."""
        code = "import sys, time; from pathlib import Path; from jobs.attempt_files import *; "
        code += "say_started(Path(sys.argv[1])); print(flush=True); time.sleep(60)"
        command = [sys.executable, "-c", code, str(self.attempt_dir(job_id))]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        process.stdout.readline()
        self.ray.begin(self.submission(job_id))
        return process

    def end(self, job_id, end, status=None, **values):
        """Its process writes down how it ended, if `end` is not None; then Ray notices."""
        if end is not None:
            say_end(self.attempt_dir(job_id), end)
        states = {None: "FAILED", SUCCEEDED: "SUCCEEDED", STOPPED: "STOPPED"}
        self.ray.end(self.submission(job_id), status or states.get(end, "FAILED"), **values)

    # What is to be seen.

    def job(self, job_id):
        return self.queue.store.get(job_id)

    def state(self, job_id):
        return str(self.job(job_id).state)

    def states(self, *job_ids):
        return [self.state(job_id) for job_id in job_ids]

    def history(self, job_id):
        """The states that it went through."""
        states = [event["new"] for event in self.queue.events(job_id)]
        return [state for state, _ in itertools.groupby(states)]

    def attempts(self, job_id):
        return [(one.number, one.cause) for one in self.queue.attempts(job_id)]

    def submission(self, job_id):
        return f"{job_id}-a{self.job(job_id).num_attempts}"

    def attempt_dir(self, job_id):
        return attempt_dir(self.home.job_dir(job_id), self.job(job_id).num_attempts)


@contextmanager
def world_at(folder, *, database_url=None, ray=None, **config):
    """A world in a folder, with a cluster of two CPUs."""
    with RayFake(**(ray or {"token": "secret"})) as fake:
        world = World(Home(folder, database_url), fake, **config)
        try:
            yield world
        finally:
            fake.thaw()
            world.close()


class Served:
    """The HTTP face of a world, on a port of its own."""

    def __init__(self, world):
        self.world = world
        self.nodes, self.why = [Node("node1", 2.0, 0.0)], {}
        self.drained = threading.Event()
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        engine = world.queue.store.engine()
        context = Context(
            surroundings=world.surroundings,
            queue=world.queue,
            config=world.process.config,
            clock=world.clock,
            nodes=lambda: self.nodes,
            why=lambda: self.why,
            status=world.process.status,
            drain=self.drained.set,
            cores=2.0,
        )
        find_user = partial(access.find_user, engine)
        self.server = make_server(make_app(context), port=self.port, find_user=find_user)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self):
        self.thread.start()
        while not self.server.started:
            time.sleep(0.005)
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join()

    def token(self, user="ada", role="submitter"):
        return access.new_token(self.world.queue.store.engine(), user=user, role=role)

    def client(self, user="ada", role="submitter", **options):
        """A client with a token of its own, without our repeats."""
        headers = {"Authorization": f"Bearer {self.token(user, role)}"}
        return httpx.Client(base_url=self.uri, headers=headers, trust_env=False, **options)


def wish(key="k1", **values):
    """What a client posts to make a job."""
    return {"key": key, "text": "the job file", "spec": SPEC, "base_dir": "/data"} | values


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
