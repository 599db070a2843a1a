"""An HTTP receiver of webhooks that misbehaves when told to, and what it is told of.

A test file takes a fixture with `receiver = receivers.receiver`.
"""

import json
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from jobs.notifier import Notifier
from jobs.schema import EVENTS
from jobs.webhooks import add_webhook

SECRET = b"a secret of the tests"
LONGEST_S = 30.0
"""That a receiver misbehaves, if nobody leaves it before."""
PATIENT_S = 60.0
"""A busy machine may be slow."""


@pytest.fixture
def receiver():
    with Receiver() as made:
        yield made


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def notifier(engine, clock):
    return Notifier(engine, now=clock, limit_s=PATIENT_S)


def try_again(notifier, clock):
    """A round after the longest wait."""
    clock.unix_s += 600
    return notifier.round()


@dataclass(frozen=True)
class Request:
    """One that arrived."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def event_id(self):
        return json.loads(self.body)["event_id"]


class Receiver:
    """Listens on a port of its own while used as a context; keeps what arrived."""

    def __init__(self):
        self.requests = []
        self.answer = status(204)
        """What is done with a request: a function of the handler and the request."""
        self._closing = threading.Event()
        self._server = self._listen(0)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}/hook"

    def go_down(self):
        """Nobody listens on the port any more."""
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def come_up(self):
        """On the same port."""
        self._closing.clear()
        self._server = self._listen(self.port)

    @property
    def event_ids(self):
        return [request.event_id for request in self.requests]

    def nap(self, seconds):
        """Wait as a handler; a test that ends does not wait for it."""
        self._closing.wait(seconds)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.go_down()

    def _listen(self, port):
        server = _Server(("127.0.0.1", port), _Handler)
        server.receiver = self
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server


class _Server(ThreadingHTTPServer):
    block_on_close = False

    def handle_error(self, *_):
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = Request(self.path, dict(self.headers.items()), body)
        self.server.receiver.requests.append(request)
        self.server.receiver.answer(self, request)

    do_GET = do_POST

    def log_message(self, *_):
        """Standard error is the test's."""


def status(code, text=b"", **headers):
    """Answers so."""

    def answer(handler, _request):
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text)

    return answer


def in_turn(*answers):
    """Answers first so, then so; the last one from then on."""
    left = list(answers)

    def answer(handler, request):
        (left.pop(0) if len(left) > 1 else left[0])(handler, request)

    return answer


def no_answer(handler, _request):
    """Closes the connection: the reply is lost."""
    handler.close_connection = True


def hang(handler, _request):
    """Says nothing for longer than anybody waits."""
    handler.server.receiver.nap(LONGEST_S)
    handler.close_connection = True


def drip(handler, _request):
    """Sends a header that never ends, always before a limit for one read is over."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    until = time.monotonic() + LONGEST_S
    while time.monotonic() < until:
        handler.wfile.write(b"x")
        handler.server.receiver.nap(0.05)
    handler.close_connection = True


def flood(handler, _request):
    """Refuses at a length that nobody should read."""
    handler.send_response(500)
    handler.end_headers()
    until = time.monotonic() + LONGEST_S
    while time.monotonic() < until:
        handler.wfile.write(b"no " * 20_000)


class Clock:
    """A wall clock that anybody may set."""

    def __init__(self, unix_s=1_700_000_000.0):
        self.unix_s = unix_s

    def __call__(self):
        return self.unix_s


def secret_at(path, secret=SECRET):
    """A secret's file as it should be."""
    path.write_bytes(secret)
    path.chmod(0o600)
    return str(path)


def hook_to(engine, url, tmp_path, *, states=()):
    """Add a webhook with the secret of the tests."""
    secret = secret_at(tmp_path / "secret")
    return add_webhook(engine, url=url, secret_file=secret, states=states, by_whom="ada")


def happen(engine, new="SUCCEEDED", *, old="RUNNING", **columns):
    """Write down an event of a job; gives its id."""
    row = {"job_id": "tw-1", "attempt": 1, "at_unix_s": 1_700_000_000.25, "old": old, "new": new}
    row |= {"reason": "", "by_whom": "controller", **columns}
    with engine.begin() as db:
        return db.execute(EVENTS.insert().values(**row)).inserted_primary_key[0]
