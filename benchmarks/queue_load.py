"""Ten thousand jobs in the queue: submitting, listing, showing, one scheduling pass, memory.

    python benchmarks/queue_load.py [--jobs 10000] [--clients 50] [--rounds 1] [--later 180]

For SQLite and for PostgreSQL (GPT2CLS_TEST_POSTGRES, where it makes a database and drops it). The
controller is a process as users start it; its cluster is one that takes two jobs and never ends
them (tests/ray_fake.py), so that every round of the controller weighs all jobs that wait. The
clients are threads of another process: they take their share of this machine's cores.

Writes benchmarks/results/DATE-queue.md and .json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from measuring import Outcome, Report, run_arm, spread, take_turns

sys.path.append(str(Path(__file__).parent.parent / "tests"))

_SPEC = {"kind": "finetune", "name": "load", "data": {"train": "train.csv"}}
_SERVERS = ("sqlite", "postgresql")
_ROWS = (
    ("first_per_s", "submissions a second, the first tenth"),
    ("last_per_s", "submissions a second, the last tenth"),
    ("latency_p50_ms", "ms for a submission, median"),
    ("latency_p99_ms", "ms for a submission, 99th of 100"),
    ("cpu_ms", "CPU ms of the controller for a submission, with its own rounds"),
    ("errors", "errors"),
    ("duplicates", "second jobs for a key"),
    ("list_ms", "ms to list 1,000 jobs"),
    ("list_all_ms", "ms to list all jobs"),
    ("show_ms", "ms to show a job"),
    ("pass_ms", "ms for a scheduling pass, nothing to start"),
    ("pass_cpu_ms", "CPU ms for such a pass"),
    ("pass_after_ms", "ms for a pass, each job after another"),
    ("memory_start_mb", "MB of the controller, empty queue"),
    ("memory_full_mb", "MB of the controller, full queue"),
    ("memory_later_mb", "MB of the controller, some minutes later"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--later", type=float, default=180.0, help="seconds of rounds and requests")
    parser.add_argument("--arm", help="one measurement; its JSON is printed last")
    options = parser.parse_args()
    if options.arm:
        print(json.dumps(measure(**json.loads(options.arm))))
        return
    arms: dict[str, Callable[[], Outcome]] = {}
    for server in _SERVERS:
        spec = {"server": server, "jobs": options.jobs, "clients": options.clients}
        spec["later_s"] = options.later
        arms[server] = lambda spec=spec: run_arm(__file__, spec)  # type: ignore[misc]
    report = Report("queue", " ".join(["python benchmarks/queue_load.py", *sys.argv[1:]]))
    report.machine()
    load_before = os.getloadavg()[1]
    outcomes = take_turns(arms, options.rounds)
    report.document["outcomes"] = outcomes
    load = " to ".join(f"{value:.1f}" for value in sorted([load_before, os.getloadavg()[1]]))
    report.add("", f"{options.jobs:,} jobs, {options.clients} clients at once.")
    report.add(f"What else the machine did counts: its load was {load}.")
    rows = [
        [words, *(spread(outcomes[server], name) for server in _SERVERS)] for name, words in _ROWS
    ]
    report.table(["", *_SERVERS], rows)
    report.write()


def measure(server: str, jobs: int, clients: int, later_s: float) -> Outcome:
    """Fill a queue and ask about it."""
    with tempfile.TemporaryDirectory(prefix="ql") as folder, _database(server) as url:
        from ray_fake import RayFake

        with RayFake() as ray:
            place = _Place(Path(folder), url, ray.uri)
            with place.controller():
                outcome = place.fill(jobs, clients) | place.ask(later_s)
            return outcome | place.passes()


class _Place:
    """One state folder."""

    def __init__(self, root: Path, url: str | None, ray_uri: str) -> None:
        from queue_world import free_port

        from cluster.home import Home
        from jobs import access
        from jobs.store import Store

        self.home, self.port = Home(root, url), free_port()
        self.environment = os.environ | {"GPT2CLS_HOME": str(root), "RAY_ADDRESS": ray_uri}
        self.environment["GPT2CLS_DATABASE"] = url or ""
        self.store = Store(self.home)
        self.home.controller.mkdir(parents=True)
        token = access.new_token(self.store.engine(), user="ada", role=access.Role.ADMIN)
        self.headers = {"Authorization": f"Bearer {token}"}
        self.process: subprocess.Popen[bytes]

    @contextmanager
    def controller(self) -> Iterator[None]:
        folder = self.home.controller
        command = [sys.executable, "-m", "jobs.controller_main", str(folder), str(self.port)]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        (folder / "server.json").write_text(json.dumps({"pid": self.process.pid}))
        try:
            with self.client() as client:
                while not _answers(client):
                    time.sleep(0.1)
            yield
        finally:
            self.process.terminate()
            self.process.wait(30)

    def client(self) -> httpx.Client:
        uri = f"http://127.0.0.1:{self.port}"
        return httpx.Client(base_url=uri, headers=self.headers, timeout=60, trust_env=False)

    def memory_mb(self) -> float:
        return float(psutil.Process(self.process.pid).memory_info().rss / 2**20)

    def cpu_s(self) -> float:
        used = psutil.Process(self.process.pid).cpu_times()
        return float(used.user + used.system)

    def fill(self, jobs: int, clients: int) -> Outcome:
        """Submit all, each tenth one twice at once."""
        at_start_mb, at_start_s, done = self.memory_mb(), self.cpu_s(), []

        def work(number: int) -> None:
            with self.client() as client:
                for i in range(number, jobs + jobs // 10, clients):
                    body = {"key": f"k{i % jobs}", "text": "x" * 500, "spec": _SPEC}
                    body |= {"base_dir": "/data", "priority": i % 3}
                    started_s = time.perf_counter()
                    reply = client.post("/api/jobs", json=body)
                    ended_s = time.perf_counter()
                    job_id = reply.json().get("job_id")
                    done.append((ended_s, ended_s - started_s, reply.status_code, job_id))

        with ThreadPoolExecutor(clients) as pool:
            started_s = time.perf_counter()
            list(pool.map(work, range(clients)))
        done.sort()
        tenth, latencies = jobs // 10, sorted(one[1] for one in done)
        ids = {one[3] for one in done}
        return {
            "first_per_s": round(tenth / (done[tenth - 1][0] - started_s), 1),
            "last_per_s": round(tenth / (done[-tenth - 1][0] - done[-2 * tenth - 1][0]), 1),
            "latency_p50_ms": round(latencies[len(latencies) // 2] * 1000, 1),
            "latency_p99_ms": round(latencies[len(latencies) * 99 // 100] * 1000, 1),
            "cpu_ms": round((self.cpu_s() - at_start_s) / len(done) * 1000, 2),
            "errors": sum(one[2] != 201 for one in done),
            "duplicates": len(ids) - jobs,
            "memory_start_mb": round(at_start_mb, 1),
        }

    def ask(self, later_s: float) -> Outcome:
        with self.client() as client:
            last_id = client.get("/api/jobs", params={"limit": 1}).json()["jobs"][0]["job_id"]
            return {
                "list_ms": _median_ms(lambda: client.get("/api/jobs")),
                "list_all_ms": _median_ms(
                    lambda: client.get("/api/jobs", params={"limit": 100_000})
                ),
                "show_ms": _median_ms(lambda: client.get(f"/api/jobs/{last_id}")),
                "memory_full_mb": round(self.memory_mb(), 1),
                "memory_later_mb": self._memory_later_mb(client, later_s),
            }

    def _memory_later_mb(self, client: httpx.Client, later_s: float) -> float:
        """After some hundred requests, and rounds all the time."""
        deadline = time.monotonic() + later_s
        while time.monotonic() < deadline:
            client.get("/api/jobs")
            time.sleep(0.5)
        return round(self.memory_mb(), 1)

    def passes(self) -> Outcome:
        """Time the scheduling passes of a controller of our own, now that the other has left."""
        import sqlalchemy as sa

        from jobs.clock import SteadyClock
        from jobs.controller import Controller
        from jobs.lookout import ClusterView
        from jobs.queue_config import QueueConfig
        from jobs.queue_store import QueueStore
        from jobs.schedule import Node
        from jobs.schema import JOBS

        queue = QueueStore(self.store)
        number = queue.take_lease("benchmark", queue.lease())
        assert number is not None
        controller = Controller(
            self.home,
            queue,
            None,
            QueueConfig(),
            lease=number,
            launch=lambda *_: None,
            clock=SteadyClock(),
            say=lambda _: None,
        )
        view = ClusterView("session", [Node("node1", 2.0, 0.0)], {}, 0.0)
        outcome = {"pass_ms": _median_ms(lambda: controller._take_turn(view))}
        outcome["pass_cpu_ms"] = _median_ms(
            lambda: controller._take_turn(view), clock=time.process_time
        )
        first = queue.of_queue()[0].id
        after = json.dumps([{"job": first, "on": "end"}])
        with self.store.write() as db:
            db.execute(sa.update(JOBS).where(JOBS.c.state == "QUEUED").values(after=after))
        outcome["pass_after_ms"] = _median_ms(lambda: controller._take_turn(view))
        controller.close()
        return outcome


def _median_ms(
    work: Callable[[], Any], times: int = 7, clock: Callable[[], float] = time.perf_counter
) -> float:
    seconds = []
    for _ in range(times):
        started_s = clock()
        work()
        seconds.append(clock() - started_s)
    return round(statistics.median(seconds) * 1000, 1)


def _answers(client: httpx.Client) -> bool:
    try:
        return bool(client.get("/api/status").json()["is_acting"])
    except httpx.HTTPError:
        return False


@contextmanager
def _database(server: str) -> Iterator[str | None]:
    if server == "sqlite":
        yield None
        return
    import sqlalchemy as sa
    from stores import fresh_postgres_url

    with fresh_postgres_url() as url:
        engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as db:  # as a server is; that of the tests need not survive a crash
            db.exec_driver_sql(f"ALTER DATABASE {url.database} SET synchronous_commit = on")
        engine.dispose()
        yield url.render_as_string(hide_password=False)


if __name__ == "__main__":
    main()
