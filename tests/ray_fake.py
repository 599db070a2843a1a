"""A small HTTP server that speaks Ray's job service as `cluster/ray_api.py` uses it.

It keeps Ray's habits: it loses replies, freezes, is slow, answers 500 to an id that it has already,
and forgets everything with its session. What it is told to run it can really start.
"""

import json
import os
import signal
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LONGEST_S = 20.0
"""That a request is held, if nobody leaves it before."""


class RayFake:
    """One cluster of one node, while used as a context."""

    def __init__(self, *, cpus=2.0, gpus=0.0, token=None, runs=False, stop_wait_s=0.5):
        self.token, self.runs, self.stop_wait_s = token, runs, stop_wait_s
        self.cpus, self.gpus = cpus, gpus
        self.session, self.node = "session_1", "node1"
        self.jobs = {}
        """What it knows of each submission: a row as Ray gives it."""
        self.accepted = []
        """The id of every submission that it took, in order, over all sessions."""
        self.bodies = {}
        self.num_posts = 0
        self.stops = []
        self._faults = []
        self._closing, self._thawed = threading.Event(), threading.Event()
        self._thawed.set()
        self._lock = threading.Lock()
        self._processes = {}
        self._server = self._listen(0)
        self.uri = f"http://127.0.0.1:{self._server.server_port}"

    # What a test makes it do.

    def begin(self, submission_id):
        """The process of a submission is on its way."""
        self.jobs[submission_id] |= {"status": "RUNNING", "driver_node_id": self.node}

    def end(self, submission_id, status, **values):
        """The process of a submission has ended."""
        self.jobs[submission_id] |= {"status": status} | values

    def lose_reply(self, method, path):
        """The next such request is carried out, and its reply lost."""
        self._faults.append((method, path, "lose"))

    def answer(self, method, path, status, text):
        """The next such request is not carried out."""
        self._faults.append((method, path, (status, text)))

    def freeze(self):
        """It takes requests, and answers none before it thaws."""
        self._thawed.clear()

    def thaw(self):
        self._thawed.set()

    def go_down(self):
        """Nobody listens on its port any more."""
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def come_up(self):
        self._closing.clear()
        self._server = self._listen(int(self.uri.rpartition(":")[2]))

    def forget(self):
        """As a head that was started anew, without its storage."""
        for process in self._processes.values():
            _kill(process, signal.SIGKILL)
        self.jobs, self.session = {}, f"session_{int(self.session[8:]) + 1}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._thawed.set()
        self.go_down()
        for process in self._processes.values():
            _kill(process, signal.SIGKILL)
            process.wait()

    # What it does.

    def handle(self, method, path, body):
        """Status and document."""
        if path == "/api/version":
            return 200, {"ray_version": "2.60.0", "session_name": self.session}
        if path == "/api/v0/nodes":
            resources = {"CPU": self.cpus, "GPU": self.gpus}
            node = {"node_id": self.node, "node_ip": "127.0.0.1", "state": "ALIVE"}
            rows = [node | {"resources_total": resources}]
            return 200, {"result": True, "data": {"result": {"result": rows}}}
        if path == "/api/jobs/":
            return (200, [*self.jobs.values()]) if method == "GET" else self._submit(body)
        submission_id, _, what = path.removeprefix("/api/jobs/").partition("/")
        if submission_id not in self.jobs:
            return 404, f"Job {submission_id} does not exist"
        return self._stop(submission_id) if what else (200, self.jobs[submission_id])

    def _submit(self, body):
        submission_id = body["submission_id"]
        self.num_posts += 1
        with self._lock:
            if submission_id in self.jobs:
                return 500, f"ValueError: Job with submission_id {submission_id} already exists."
            empty = ("message", "driver_node_id", "driver_exit_code", "error_type")
            row = {"submission_id": submission_id, "status": "PENDING"} | dict.fromkeys(empty)
            self.jobs[submission_id] = row
            self.accepted.append(submission_id)
            self.bodies[submission_id] = body
        if self.runs:
            self._start(submission_id, body)
        return 200, {"submission_id": submission_id}

    def _stop(self, submission_id):
        self.stops.append(submission_id)
        if (process := self._processes.get(submission_id)) is not None:
            _kill(process, signal.SIGTERM)
            threading.Timer(self.stop_wait_s, _kill, [process, signal.SIGKILL]).start()
        return 200, {"stopped": True}

    def _start(self, submission_id, body):
        variables = (body.get("runtime_env") or {}).get("env_vars", {})
        process = subprocess.Popen(
            body["entrypoint"], shell=True, env=os.environ | variables, start_new_session=True
        )
        self._processes[submission_id] = process
        self.begin(submission_id)
        threading.Thread(target=self._wait, args=(submission_id, process), daemon=True).start()

    def _wait(self, submission_id, process):
        code = process.wait()
        if submission_id in self.jobs:
            is_stopped = submission_id in self.stops
            status = "STOPPED" if is_stopped else "FAILED" if code else "SUCCEEDED"
            self.end(submission_id, status, driver_exit_code=code)

    def fault_for(self, method, path):
        """The fault that is due for this request, which it uses up."""
        with self._lock:
            for fault in self._faults:
                if fault[0] == method and path.endswith(fault[1]):
                    self._faults.remove(fault)
                    return fault[2]
        return None

    def hold(self):
        """Wait while frozen."""
        deadline = time.monotonic() + LONGEST_S
        while not self._thawed.wait(0.02) and time.monotonic() < deadline:
            if self._closing.is_set():
                return

    def _listen(self, port):
        server = _Server(("127.0.0.1", port), _Handler)
        server.fake = self
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server


class _Server(ThreadingHTTPServer):
    block_on_close = False
    daemon_threads = True

    def handle_error(self, *_):
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self._answer()

    def do_POST(self):
        self._answer()

    def _answer(self):
        fake, path = self.server.fake, self.path.partition("?")[0]
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"null")
        fake.hold()
        if fake.token and self.headers.get("Authorization") != f"Bearer {fake.token}":
            self._reply(401, "Unauthorized")
            return
        fault = fake.fault_for(self.command, path)
        status, document = (
            fault if isinstance(fault, tuple) else fake.handle(self.command, path, body)
        )
        if fault == "lose":
            self.close_connection = True
            self.connection.close()
            return
        self._reply(status, document)

    def _reply(self, status, document):
        text = document if isinstance(document, str) else json.dumps(document)
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        """Quiet."""


def _kill(process, number):
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return
