"""The process of a controller: the HTTP face in front, the loop behind, while it holds the lease.

Run as `python -m jobs.controller_main FOLDER PORT`. It leaves on SIGTERM, or when it is struck from
`server.json`; jobs go on without it.
"""

import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from cluster.home import Surroundings, from_environment
from cluster.ray_api import RayApi
from cluster.ray_place import find_ray, launch_command
from jobs import access
from jobs.api import Context, make_app
from jobs.asks import entrypoint_cpus, load_ask
from jobs.clock import SteadyClock
from jobs.controller import Controller, holder_name
from jobs.job_folder import write_job_folder
from jobs.listen import make_server
from jobs.masking import mask
from jobs.notifier import Notifier
from jobs.plan import num_cores
from jobs.queue_config import read_config
from jobs.queue_store import Attempt, LeaseLostError, QueueStore
from jobs.states import AT_WORK
from jobs.store import Job, Store
from jobs.verb import write_crash_log

ROUND_S = 0.5
LEASE_S = 6.0
"""A lease whose beat has not moved for so long is taken over."""
_DELIVER_EVERY_S = 15.0


class Process:
    """The threads of one controller."""

    def __init__(self, surroundings: Surroundings, folder: Path) -> None:
        self.surroundings, self.folder = surroundings, folder
        self.clock = SteadyClock()
        self.config = read_config(surroundings.home.root)
        self.queue = QueueStore(Store(surroundings.home))
        self.queue.store.engine()  # whoever cannot reach it should not begin
        find_ray(surroundings)  # nor who was given an address that is none
        self.leaves = threading.Event()
        self.controller: Controller | None = None
        self._ray: RayApi | None = None

    def act(self) -> None:
        """Wait for the lease, act while it is held, and begin again when it was lost."""
        while not self.leaves.is_set():
            number = self._wait_for_lease()
            if number is None:
                return
            try:
                self._hold(number)
            except LeaseLostError as error:
                _say(f"{error}; standing by")
            finally:
                self.controller = None

    def _wait_for_lease(self) -> int | None:
        """The number of the lease, once nobody else acts."""
        seen, since_s = self.queue.lease(), time.monotonic()
        while not self.leaves.is_set():
            now = self.queue.lease()
            if now != seen:
                seen, since_s = now, time.monotonic()
            is_free = now is None or not now["holder"]
            if is_free or time.monotonic() - since_s > LEASE_S:
                number = self.queue.take_lease(holder_name(), now)
                if number is not None:
                    _say(f"acting with lease {number}")
                    return number
            self.leaves.wait(ROUND_S)
        return None

    def _hold(self, number: int) -> None:
        controller = self.controller = Controller(
            self.surroundings.home,
            self.queue,
            None,
            self.config,
            lease=number,
            launch=self._launch,
            clock=self.clock,
            say=_say,
        )
        try:
            while not self.leaves.is_set():
                controller.ray = self._find_ray()
                with self.queue.acting(number):
                    pass  # a beat, also where nothing is to be written
                controller.round()
                self.leaves.wait(ROUND_S)
            self.queue.give_lease_back(number)
        finally:
            controller.close()

    def _find_ray(self) -> RayApi | None:
        """The cluster as it is to be found now; an embedded one may come and go."""
        place = find_ray(self.surroundings)
        if place is None:
            self._ray = None
        elif self._ray is None or self._ray.uri != place.uri:
            self._ray = RayApi(place.uri, place.token)
        return self._ray

    def _launch(self, job: Job, attempt: Attempt, ray: RayApi) -> None:
        folder = self.surroundings.home.job_dir(job.id)
        write_job_folder(folder, text=job.text, spec=job.spec, base_dir=job.base_dir)
        cpus, gpus = entrypoint_cpus(load_ask(job.ask), job.spec)
        command, environment = launch_command(self.surroundings)
        arguments = ["-m", "jobs.work", job.id, str(attempt.number), str(job.num_lost)]
        ray.submit(
            attempt.submission_id,
            [command, *arguments],
            cpus=cpus,
            gpus=gpus,
            environment=environment,
        )

    def keep_up(self) -> None:
        """Tell MLflow and the webhooks what happened, and leave when the record says so."""
        notifier, last_s = Notifier(self.queue.store.engine()), 0.0
        while not self.leaves.wait(1.0):
            if not self._is_on_record():
                os.kill(os.getpid(), signal.SIGTERM)
                return
            try:
                notifier.round()
                if time.monotonic() - last_s > _DELIVER_EVERY_S:
                    last_s = time.monotonic()
                    self._deliver()
            except Exception as error:  # neither may end the controller
                _say(mask(f"not told: {error}; see {write_crash_log(error)}"))

    def _deliver(self) -> None:
        from jobs.settle import settle

        settle(self.queue.store, self.surroundings)

    def _is_on_record(self) -> bool:
        try:
            record = json.loads((self.folder / "server.json").read_text())
        except (OSError, ValueError):
            return False
        return bool(record["pid"] == os.getpid())

    def status(self) -> dict[str, Any]:
        """What the controller sees now."""
        controller = self.controller
        seen = controller.seen_unix_s if controller else None
        return {
            "is_acting": controller is not None,
            "lease": self.queue.lease(),
            "ray": self._ray.uri if self._ray else None,
            "nodes": [asdict(node) for node in (controller.nodes if controller else [])],
            "cluster_seen_unix_s": seen,
            "num_at_work": len(self.queue.of_queue(states=AT_WORK)),
        }

    def drain(self) -> None:
        if self.controller is not None:
            self.controller.drain()


def main(folder: Path, port: int) -> None:
    """Serve and act until told to leave."""
    os.umask(0o077)
    surroundings = from_environment()
    process = Process(surroundings, folder)
    context = Context(
        surroundings=surroundings,
        queue=process.queue,
        config=process.config,
        clock=process.clock,
        nodes=lambda: process.controller.nodes if process.controller else [],
        why=lambda: process.controller.why if process.controller else {},
        status=process.status,
        drain=process.drain,
        cores=num_cores(),
    )
    engine = process.queue.store.engine()
    server = make_server(make_app(context), port=port, find_user=partial(access.find_user, engine))
    threads = [
        threading.Thread(target=_guarded, args=(work, process), daemon=True)
        for work in (process.act, process.keep_up)
    ]
    for thread in threads:
        thread.start()
    server.run()
    process.leaves.set()
    for thread in threads:
        thread.join(5.0)


def _guarded(work: Any, process: Process) -> None:
    """Keep a thread at its work: what goes wrong in one round may go right in the next."""
    while not process.leaves.is_set():
        try:
            work()
            return
        except Exception as error:
            _say(mask(f"{type(error).__name__}: {error}; see {write_crash_log(error)}"))
            process.leaves.wait(2.0)


def _say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
