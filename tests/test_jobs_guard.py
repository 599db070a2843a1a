"""The controller's HTTP face against what a network may send: a real server, and bytes by hand."""

import asyncio
import http.client
import json
import logging
import socket
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal

import httpx
import pytest
from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from stores import store_at

from gpt2cls.errors import RequestError
from jobs import guard
from jobs.access import Role, find_user, new_token, revoke, tokens
from jobs.faults import BadRequestError, Problem
from jobs.guard import Guard, Limits, install_error_handlers
from jobs.listen import make_server
from jobs.schema import TOKENS

GIGABYTE = 2**30
PATIENCE_S = 30.0
"""For a machine that has much else to do."""


class Order(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=8)
    epochs: int = Field(1, ge=1)
    device: Literal["cpu", "gpu"] = "cpu"


ROUTES = APIRouter()


@ROUTES.get("/health")
async def health() -> dict[str, bool]:
    return {"is_well": True}


@ROUTES.get("/me")
async def me(request: Request) -> dict[str, str]:
    user = request.state.user
    return {"name": user.name, "role": user.role}


@ROUTES.post("/jobs")
def submit(order: Order, request: Request) -> Order:
    request.app.state.seen.append(order)
    return order


@ROUTES.post("/stop")
def stop() -> dict[str, bool]:
    return {"is_stopped": True}


@ROUTES.post("/echo")
def echo(body: dict[str, Any], request: Request) -> dict[str, Any]:
    request.app.state.seen.append(body)
    return body


@ROUTES.get("/slow")
def slow(seconds: float = 0.5) -> dict[str, float]:
    time.sleep(seconds)
    return {"seconds": seconds}


@ROUTES.get("/gate")
def gate(request: Request) -> None:
    request.app.state.gate.wait(60)


@ROUTES.get("/flood")
def flood() -> StreamingResponse:
    return StreamingResponse(b"x" * 2**16 for _ in range(10**6))


@ROUTES.get("/page")
def page() -> HTMLResponse:
    return HTMLResponse("<p>", headers={"content-security-policy": "default-src 'self'"})


@ROUTES.get("/broken")
def broken() -> None:
    raise RuntimeError("password=hunter2 of /srv/secret/place")


@ROUTES.get("/half")
def half() -> StreamingResponse:
    def pieces():
        yield b"the first half"
        raise RuntimeError("in the middle")

    return StreamingResponse(pieces())


@ROUTES.get("/faults")
def faults() -> None:
    raise BadRequestError([Problem("train.lr = 0: must be above 0", "a.yaml", 3)])


@ROUTES.get("/fault")
def fault() -> None:
    raise RequestError("job 'x': no such job")


@ROUTES.get("/conflict")
def conflict() -> None:
    raise HTTPException(409, "key 'k' belongs to another request", {"retry-after": "7"})


def new_app():
    """A small application that keeps what reached it in `state.seen`."""
    app = FastAPI()
    app.state.seen = []
    app.include_router(ROUTES)
    install_error_handlers(app)
    return app


@contextmanager
def serving(*, find, app=None, limits=None, allowed_hosts=()):
    """The server in a thread; gives its address, its application and itself."""
    app = app or new_app()
    server = make_server(app, port=0, find_user=find, allowed_hosts=allowed_hosts, limits=limits)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield SimpleNamespace(port=port, app=app, server=server, url=f"http://127.0.0.1:{port}")
    server.should_exit = True
    thread.join(15)
    assert not thread.is_alive()


def wait_until(is_so, within_s=PATIENCE_S):
    end_s = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < end_s, "it did not come to be"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with store_at(f"sqlite:///{tmp_path_factory.mktemp('guard')}/store.db") as engine:
        yield engine


@pytest.fixture(scope="module")
def token(store):
    return new_token(store, user="anna", role=Role.SUBMITTER)


@pytest.fixture(scope="module")
def place(store):
    """A server with the limits that users get."""
    names = ("Controller.Lab:8265",)
    with serving(find=partial(find_user, store), allowed_hosts=names) as made:
        yield made


@pytest.fixture
def strict(store):
    """A server with limits for which a test can wait."""
    limits = Limits(body_within_s=0.4, headers_within_s=0.4, unread_within_s=0.5)
    with serving(find=partial(find_user, store), limits=limits) as made:
        yield made


def call(place, method="GET", path="/me", *, token=None, **more):
    headers = more.pop("headers", {})
    if token is not None:
        headers = {"authorization": f"Bearer {token}"} | headers
    # Without `verify=False` it reads all certificates of this machine, which takes its time.
    return httpx.request(
        method, place.url + path, headers=headers, timeout=PATIENCE_S, verify=False, **more
    )


def post(place, token, content, content_type="application/json", path="/echo"):
    headers = {"content-type": content_type} if content_type else {}
    return call(place, "POST", path, token=token, content=content, headers=headers)


def head(place, line="GET /health", **headers):
    """The beginning of a request as bytes; a header that is None is left out."""
    fields = {"Host": f"127.0.0.1:{place.port}"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    lines = [f"{line} HTTP/1.1"] + [f"{k}: {v}" for k, v in fields.items() if v is not None]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def connect(place):
    return closing(socket.create_connection(("127.0.0.1", place.port), timeout=PATIENCE_S))


def answer(connection):
    """Status, headers and document of the next reply."""
    reply = http.client.HTTPResponse(connection)
    reply.begin()
    return reply.status, dict(reply.getheaders()), json.loads(reply.read())


def is_closed_by_server(connection):
    """Whether nothing more comes; waits for it."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def exchange(place, data):
    with connect(place) as connection:
        connection.sendall(data)
        return answer(connection)


def is_error(document, kind):
    """Whether it has the shape of the command line's errors, and this kind."""
    error = document["error"]
    assert [*document] == ["error"] and [*error] == ["kind", "message", "problems"]
    assert error["message"] and isinstance(error["problems"], list)
    return error["kind"] == kind


# Who sends it.


def test_the_application_learns_who_sent_a_request(place, token):
    assert call(place, token=token).json() == {"name": "anna", "role": "submitter"}


@pytest.mark.parametrize("scheme", ["bearer ", "BEARER  "])
def test_the_scheme_of_a_token_may_be_written_in_any_case(place, token, scheme):
    assert call(place, headers={"authorization": scheme + token}).status_code == 200


def bad_tokens(store):
    """Header values of every way in which a token can be no good."""
    ended, revoked, good = (new_token(store, user="ben", role=Role.ADMIN) for _ in range(3))
    ids = [row["id"] for row in tokens(store)][-3:]
    with store.begin() as db:
        db.execute(TOKENS.update().where(TOKENS.c.id == ids[0]).values(expires_unix_s=1.0))
    assert revoke(store, ids[1])
    words = [ended, revoked, good[:-1], "", " ", "a b", "x" * 5000, "\xe4\xf6", "%00"]
    return [f"Bearer {word}" for word in words] + ["Bearer", f"Basic {good}", good, ""]


def test_whatever_is_wrong_with_a_token_the_answer_is_the_same(place, store):
    replies = [exchange(place, head(place, "GET /me"))]
    for value in bad_tokens(store):
        replies.append(exchange(place, head(place, "GET /me", Authorization=value)))
    status, headers, document = replies[0]
    assert status == 401 and is_error(document, "unauthorized")
    assert headers["www-authenticate"] == "Bearer"
    for _, others, _ in replies:
        others.pop("date")
    assert [reply for reply in replies if reply != replies[0]] == []


def test_no_token_and_every_bad_one_cost_one_look_up_each(store, monkeypatch):
    monkeypatch.setattr(guard, "USER_KEPT_S", 60.0)
    asked = []

    def find(token):
        asked.append(token)
        return find_user(store, token)

    values = [None, *bad_tokens(store)[:3]]
    with serving(find=find) as place:
        for value in values * 2:  # the second time they are remembered, good or bad
            assert exchange(place, head(place, "GET /me", Authorization=value))[0] == 401
    assert len(asked) == len(values)


@pytest.mark.parametrize("line", ["GET /nothing", "POST /me", "GET /health/", "POST /health"])
def test_who_is_not_known_does_not_learn_what_there_is(place, line):
    known = exchange(place, head(place, "GET /me"))
    assert exchange(place, head(place, line))[::2] == known[::2]
    assert known[0] == 401


def test_two_tokens_in_one_request_are_none(place, token):
    twice = head(place, "GET /me", Authorization=f"Bearer {token}\r\nAuthorization: Bearer {token}")
    assert exchange(place, twice)[0] == 401


def test_health_needs_no_token_and_takes_no_body(place):
    assert call(place, path="/health").json() == {"is_well": True}
    with_body = head(place, Content_Length=1, Content_Type="application/json") + b"1"
    assert exchange(place, with_body)[0] == 413


def test_a_hundred_requests_look_their_user_up_once(store, token, monkeypatch):
    monkeypatch.setattr(guard, "USER_KEPT_S", 60.0)
    asked = []

    def find(token):
        asked.append(token)
        return find_user(store, token)

    with serving(find=find) as place, httpx.Client(base_url=place.url) as client:
        headers = {"authorization": f"Bearer {token}"}
        codes = {client.get("/me", headers=headers).status_code for _ in range(100)}
    assert codes == {200}
    assert asked == [token]


def test_a_revoked_token_dies_when_it_is_forgotten(store, place, monkeypatch):
    assert guard.USER_KEPT_S == 5.0  # what users are promised
    monkeypatch.setattr(guard, "USER_KEPT_S", 60.0)
    token = new_token(store, user="carl", role=Role.VIEWER)
    assert call(place, token=token).status_code == 200
    assert revoke(store, tokens(store)[-1]["id"])
    assert call(place, token=token).status_code == 200
    monkeypatch.setattr(guard, "USER_KEPT_S", 0.001)
    assert call(place, token=token).status_code == 401


def test_only_so_many_tokens_are_remembered(monkeypatch):
    monkeypatch.setattr(guard, "_USERS_KEPT", 2)
    monkeypatch.setattr(guard, "USER_KEPT_S", 60.0)
    asked = []
    with serving(find=asked.append) as place:
        for token in ("a", "b", "b", "c", "a"):
            assert call(place, token=token).status_code == 401
        assert asked == ["a", "b", "c", "a"]
        monkeypatch.setattr(guard, "USER_KEPT_S", 0.0)
        call(place, token="c")  # asked for again, so now the newest
        monkeypatch.setattr(guard, "USER_KEPT_S", 60.0)
        for token in ("d", "c"):
            call(place, token=token)
    assert asked[4:] == ["c", "d"]


def test_a_store_that_is_away_is_told_apart_from_a_bad_token(store, token, caplog):
    away = threading.Event()
    away.set()

    def find(token):
        if away.is_set():
            raise ConnectionError("password=hunter2 at db.lab")
        return find_user(store, token)

    with serving(find=find) as place:
        lost = call(place, token=token)
        assert call(place, path="/health").status_code == 200
        away.clear()
        assert call(place, token=token).status_code == 200
    assert lost.status_code == 503 and is_error(lost.json(), "service")
    assert "db.lab" not in lost.text
    assert "db.lab" in caplog.text and "hunter2" not in caplog.text


def test_a_store_that_hangs_does_not_take_the_server_with_it(monkeypatch):
    monkeypatch.setattr(guard, "_LOOK_UP_WITHIN_S", 0.5)
    is_over = threading.Event()
    with serving(find=lambda _: is_over.wait(20) and None) as place, ExitStack() as stack:
        hanging = [stack.enter_context(connect(place)) for _ in range(50)]
        for number, connection in enumerate(hanging):
            connection.sendall(head(place, "GET /me", Authorization=f"Bearer {number}"))
        assert seconds_of_health(place) < 1
        assert {answer(connection)[0] for connection in hanging} == {503}
        is_over.set()


def test_users_are_looked_up_while_slow_requests_use_all_threads(place, store, token):
    place.app.state.gate = threading.Event()
    new = new_token(store, user="dora", role=Role.VIEWER)
    with ExitStack() as stack:
        stack.callback(place.app.state.gate.set)
        for _ in range(45):  # there are 40 threads
            waiting = head(place, "GET /gate", Authorization=f"Bearer {token}")
            stack.enter_context(connect(place)).sendall(waiting)
        wait_until(lambda: len(place.server.server_state.tasks) == 45)
        assert call(place, token=new).status_code == 200
        assert len(place.server.server_state.tasks) >= 45  # none of them has ended
    wait_until(lambda: not place.server.server_state.tasks)


# By what name, and from which page.


@pytest.mark.parametrize("name", ["127.0.0.1:{}", "localhost:{}", "LOCALHOST:{}", "[::1]:{}"])
def test_loopback_names_with_the_servers_port_are_answered(place, name):
    assert exchange(place, head(place, Host=name.format(place.port)))[0] == 200


def test_at_the_usual_port_the_name_comes_without_it():
    said = []

    async def app(scope, receive, send):
        said.append("let in")

    async def send(message):
        said.append(message.get("status"))

    scope = {"type": "http", "method": "GET", "path": "/health", "server": ("127.0.0.1", 80)}
    for host in (b"localhost", b"localhost:81"):
        asked = scope | {"headers": [(b"host", host)]}
        asyncio.run(Guard(app, find_user=lambda _: None)(asked, None, send))
    assert said == ["let in", 403, None, None]


def test_a_name_that_was_given_is_answered(place):
    assert exchange(place, head(place, Host="controller.lab:8265"))[0] == 200


@pytest.mark.parametrize(
    "name",
    [
        "evil.example",
        "evil.example:{}",
        "localhost.evil.example:{}",
        "127.0.0.1",
        "127.0.0.1:1",
        "127.0.0.2:{}",
        "controller.lab",
        "a@127.0.0.1:{}",
        "*",
        "",
    ],
)
def test_another_name_is_refused_with_a_good_token_too(place, token, name):
    host, good = name.format(place.port), f"Bearer {token}"
    status, _, document = exchange(place, head(place, "GET /me", Host=host, Authorization=good))
    assert status == 403 and is_error(document, "forbidden")
    assert exchange(place, head(place, Host=host))[0] == 403


def test_a_request_of_http_1_0_without_a_name_is_refused(place):
    assert exchange(place, b"GET /health HTTP/1.0\r\n\r\n")[0] == 403


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "http://127.0.0.1:1",
        "http://localhost:{}",
        "http://127.0.0.1:{}.evil.example",
        "127.0.0.1:{}",
        "",
    ],
)
def test_a_post_from_another_page_is_refused(place, token, origin):
    headers = {"origin": origin.format(place.port)}
    refused = call(place, "POST", "/stop", token=token, headers=headers)
    assert refused.status_code == 403 and is_error(refused.json(), "forbidden")


def test_a_post_from_the_servers_own_page_is_let_in(place, token):
    for origin in (place.url, place.url.replace("http", "https")):  # a proxy may speak TLS
        assert call(place, "POST", "/stop", token=token, headers={"origin": origin}).is_success


def test_one_strange_page_among_two_is_enough_to_refuse(place):
    two = f"{place.url}\r\nOrigin: http://evil.example"
    assert exchange(place, head(place, Origin=two))[0] == 403


def test_a_page_of_another_site_is_not_told_that_it_may_ask(place):
    asked = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    reply = call(place, "OPTIONS", "/stop", headers=asked)
    assert reply.status_code == 403
    assert not [name for name in reply.headers if name.startswith("access-control")]


def test_nobody_speaks_over_a_websocket():
    said = []

    async def app(scope, receive, send):
        said.append("the application was reached")

    async def send(message):
        said.append(message["type"])

    asyncio.run(Guard(app, find_user=lambda _: None)({"type": "websocket"}, None, send))
    assert said == ["websocket.close"]


# What the body is.


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain; application/json",
        "application/jsonp",
    ],
)
def test_a_body_that_is_not_called_json_is_refused(place, token, content_type):
    refused = post(place, token, b'{"a": 1}', content_type)
    assert refused.status_code == 415 and is_error(refused.json(), "unsupported_type")


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=utf-8"])
def test_a_body_that_is_called_json_is_let_in(place, token, content_type):
    assert post(place, token, b'{"a": 1}', content_type).json() == {"a": 1}


def test_a_post_without_a_body_needs_no_content_type(place, token):
    assert call(place, "POST", "/stop", token=token).json() == {"is_stopped": True}


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"a": "\xff"}', id="not UTF-8"),
        pytest.param(b'{"a": "\xc0\xaf"}', id="overlong UTF-8"),
        pytest.param(b'{"a": "\xed\xa0\x80"}', id="half a pair as bytes"),
        pytest.param(b'{"a": "\\ud800"}', id="half a pair as an escape"),
        pytest.param(b'{"\\udfff": 1}', id="half a pair in a key"),
        pytest.param(b'{"a": [{"b": "\\u0000"}]}', id="NUL deep inside"),
        pytest.param('{"a": 1}'.encode("utf-16"), id="UTF-16"),
        pytest.param(b'\xef\xbb\xbf{"a": 1}', id="byte order mark"),
        pytest.param(b'{"a": ', id="cut off"),
        pytest.param(b'{"a": 1} {"b": 2}', id="two documents"),
        pytest.param(b'{"a": NaN}', id="NaN"),
        pytest.param(b'{"a": -Infinity}', id="infinity"),
        pytest.param(b'{"a": ' + b"1" * 5000 + b"}", id="a number of 5,000 digits"),
        pytest.param(b"[" * 100_000, id="100,000 lists deep"),
        pytest.param(b'{"a":' * 50_000 + b"1" + b"}" * 50_000, id="50,000 mappings deep"),
    ],
)
def test_a_body_that_is_not_json_is_refused_before_the_application(place, token, body):
    before = len(place.app.state.seen)
    refused = post(place, token, body)
    assert refused.status_code == 400 and is_error(refused.json(), "bad_request")
    assert "Error" not in refused.text
    assert len(place.app.state.seen) == before


def test_text_in_every_script_comes_through_whole(place, token):
    document = {"greetings": ["Gruesse", "\u3053\u3093", "\U0001f600", "\\u0000", "\u202e"]}
    escaped, plain = json.dumps(document), json.dumps(document, ensure_ascii=False)
    assert post(place, token, escaped.encode()).json() == document
    assert post(place, token, plain.encode()).json() == document


def test_a_body_in_pieces_comes_through_whole(place, token):
    pieces = iter([b'{"a"', b": ", b"1}"])
    assert post(place, token, pieces).json() == {"a": 1}


# How large and how slow it is.


def test_a_body_of_the_largest_size_is_let_in_and_one_byte_more_is_not(place, token):
    largest = b'{"a": "' + b"x" * (Limits().body_bytes - 9) + b'"}'
    assert len(largest) == 4 * 2**20
    assert post(place, token, largest).status_code == 200
    assert post(place, token, largest + b" ").status_code == 413


def posting(place, token, **headers):
    """The beginning of a POST of JSON."""
    good = {"Authorization": f"Bearer {token}", "Content_Type": "application/json"}
    return head(place, "POST /echo", **good, **headers)


@pytest.mark.parametrize("length", [GIGABYTE, 10**19])
def test_a_gigabyte_that_is_announced_is_refused_before_it_comes(place, token, length):
    start = posting(place, token, Content_Length=length, Expect="100-continue")
    status, headers, document = exchange(place, start)
    assert status == 413 and is_error(document, "too_large")
    assert headers["connection"] == "close"


def test_a_gigabyte_in_chunks_is_refused_as_soon_as_it_is_too_much(place, token):
    chunk = b"10000\r\n" + b"x" * 2**16 + b"\r\n"
    with connect(place) as connection:
        connection.sendall(posting(place, token, Transfer_Encoding="chunked"))
        num_chunks = send_until_answered(connection, chunk, GIGABYTE // 2**16)
        status, headers, document = answer(connection)
        assert status == 413 and is_error(document, "too_large")
        assert headers["connection"] == "close" and is_closed_by_server(connection)
    assert num_chunks * 2**16 < 64 * 2**20
    assert place.app.state.seen[-1:] != [{}]


def send_until_answered(connection, chunk, most):
    for number in range(most):
        try:
            connection.settimeout(0.001 if number > 64 else PATIENCE_S)
            if number > 64 and connection.recv(1, socket.MSG_PEEK):
                break
        except TimeoutError:
            pass
        connection.settimeout(PATIENCE_S)
        connection.sendall(chunk)
    connection.settimeout(PATIENCE_S)
    return number


def test_a_client_that_sends_all_before_it_reads_gets_its_answer(place, token):
    refused = post(place, token, b"x" * (32 * 2**20))
    assert refused.status_code == 413


def test_a_client_that_goes_on_sending_is_given_time_to_see_its_answer(place, token):
    with connect(place) as connection:
        connection.sendall(posting(place, token, Content_Length=GIGABYTE))
        connection.recv(1, socket.MSG_PEEK)
        for _ in range(5):
            connection.sendall(b"x" * 1000)  # fails once the server has closed
            time.sleep(0.02)
        assert answer(connection)[0] == 413


def test_nothing_is_read_of_a_stranger_who_sends_much(place):
    refused = post(place, "nobodys", iter([b"x" * 2**20] * 32))
    assert refused.status_code == 401


def test_a_body_that_does_not_come_is_waited_for_so_long_and_no_longer(strict, token):
    with connect(strict) as connection:
        connection.sendall(posting(strict, token, Content_Length=10) + b'{"a"')
        started_s = time.monotonic()
        status, _, document = answer(connection)
        assert 0.3 < time.monotonic() - started_s < 9
        assert status == 408 and is_error(document, "timeout")
        assert is_closed_by_server(connection)


def test_a_body_that_comes_byte_by_byte_has_no_longer_than_any_other(strict, token):
    with connect(strict) as connection:
        connection.sendall(posting(strict, token, Content_Length=1000))
        assert status_while_dribbling(connection, b" ") == 408


def status_while_dribbling(connection, piece, within_s=9.0):
    """Send a little every 50 ms until there is an answer."""
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s:
        connection.settimeout(0.05)
        try:
            connection.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            connection.sendall(piece)
            continue
        connection.settimeout(PATIENCE_S)
        return answer(connection)[0]
    return None


def test_a_client_that_leaves_in_the_middle_is_no_fault_of_ours(place, token, caplog):
    before = len(place.app.state.seen)
    with caplog.at_level(logging.INFO), connect(place) as connection:
        connection.sendall(posting(place, token, Content_Length=10) + b'{"a"')
        wait_until(lambda: len(place.server.server_state.tasks) > 0)
    wait_until(lambda: len(place.server.server_state.tasks) == 0)
    assert len(place.app.state.seen) == before
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


# How slow the headers are, and how many hang.


@pytest.mark.parametrize(
    "start", [b"", b"GET", b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-"], ids=len
)
def test_headers_that_do_not_come_are_waited_for_so_long_and_no_longer(strict, start):
    with connect(strict) as connection:
        connection.sendall(start)
        started_s = time.monotonic()
        status, _, document = answer(connection)
        assert 0.3 < time.monotonic() - started_s < 9
        assert status == 408 and is_error(document, "timeout")
        assert is_closed_by_server(connection)


def test_headers_that_come_byte_by_byte_have_no_longer_than_others(strict):
    with connect(strict) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nX-Long: ")
        assert status_while_dribbling(connection, b"x") == 408


def test_the_second_request_of_a_connection_has_no_longer_than_the_first(strict):
    with connect(strict) as connection:
        connection.sendall(head(strict))
        assert answer(connection)[0] == 200
        connection.sendall(b"GET /health HTTP/1.1\r\nX-Long: ")
        assert status_while_dribbling(connection, b"x") == 408


def test_a_request_that_takes_longer_than_headers_may_is_answered(strict, token):
    good = {"Authorization": f"Bearer {token}"}
    with connect(strict) as connection:
        for _ in range(2):
            connection.sendall(head(strict, "GET /slow?seconds=0.6", **good))
            assert answer(connection)[0] == 200


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(b"SSH-2.0-client\r\n\r\n", id="another protocol"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", id="TLS"),
        pytest.param(b"GET /health HTTP/1.1\r\n\r\n", id="no Host"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", id="two Hosts"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 70_000, id="long headers"),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
            id="two lengths",
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\nhello", id="length below 0"
        ),
    ],
)
def test_what_is_not_http_is_refused_and_the_connection_closed(place, bad):
    with connect(place) as connection:
        connection.sendall(bad)
        status, _, document = answer(connection)
        assert status == 400 and is_error(document, "bad_request")
        assert is_closed_by_server(connection)


def test_a_body_with_two_ends_is_refused_and_what_follows_is_no_request(place, token):
    start = posting(place, token, Content_Length=6, Transfer_Encoding="chunked")
    with connect(place) as connection:
        connection.sendall(start + b"0\r\n\r\n" + head(place))
        said = b"".join(iter(lambda: connection.recv(2**16), b""))
    assert said.startswith(b"HTTP/1.1 400 ") and b"exclude each other" in said
    assert said.count(b"HTTP/1.1") == 1


def test_a_chunk_without_a_length_is_refused(place, token):
    with connect(place) as connection:
        connection.sendall(posting(place, token, Transfer_Encoding="chunked") + b"zz\r\nhello\r\n")
        status, _, document = answer(connection)
    assert status == 400 and is_error(document, "bad_request")


def seconds_of_health(place):
    """Of the best of three, because the machine may have had something else to do."""
    seconds = []
    for _ in range(3):
        started_s = time.monotonic()
        assert exchange(place, head(place))[0] == 200
        seconds.append(time.monotonic() - started_s)
    return min(seconds)


def test_health_answers_while_fifty_connections_hang(place, token):
    ways = [b"", b"GET /health HTTP/1.1\r\nX-", posting(place, token, Content_Length=10) + b"{"]
    with ExitStack() as stack:
        for number in range(50):
            stack.enter_context(connect(place)).sendall(ways[number % len(ways)])
        wait_until(lambda: len(place.server.server_state.connections) >= 50)
        assert seconds_of_health(place) < 1
        assert len(place.server.server_state.connections) >= 50  # they do still hang


def test_more_connections_than_there_may_be_cost_those_that_hang_longest(store, token):
    with (
        serving(find=partial(find_user, store), limits=Limits(connections=12)) as place,
        ExitStack() as stack,
        connect(place) as at_work,
    ):
        at_work.sendall(head(place, "GET /slow?seconds=0.5", Authorization=f"Bearer {token}"))
        hanging = [stack.enter_context(connect(place)) for _ in range(30)]
        assert seconds_of_health(place) < 1
        wait_until(lambda: len(place.server.server_state.connections) <= 12)
        assert is_closed_by_server(hanging[0])
        assert answer(at_work)[0] == 200


def test_a_connection_that_was_used_is_kept_longer_than_one_that_never_was(store):
    with (
        serving(find=partial(find_user, store), limits=Limits(connections=12)) as place,
        ExitStack() as stack,
        connect(place) as used,
    ):
        hanging = [stack.enter_context(connect(place)) for _ in range(11)]
        wait_until(lambda: len(place.server.server_state.connections) == 12)
        used.sendall(head(place))
        assert answer(used)[0] == 200
        hanging += [stack.enter_context(connect(place)) for _ in range(4)]
        assert all(is_closed_by_server(connection) for connection in hanging[:4])
        used.sendall(head(place))
        assert answer(used)[0] == 200


def test_a_client_that_does_not_read_is_cut_off(strict, token):
    with connect(strict) as connection:
        connection.sendall(head(strict, "GET /flood", Authorization=f"Bearer {token}"))
        wait_until(lambda: len(strict.server.server_state.tasks) == 1)
        wait_until(lambda: not strict.server.server_state.connections)


# What is said of errors.


@pytest.mark.parametrize(
    ("line", "status", "kind"),
    [
        ("GET /nothing", 404, "not_found"),
        ("DELETE /me", 405, "method_not_allowed"),
        ("GET /conflict", 409, "conflict"),
        ("GET /fault", 400, "bad_request"),
        ("GET /faults", 400, "bad_request"),
        ("GET /slow?seconds=soon", 400, "bad_request"),
        ("GET /broken", 500, "internal"),
    ],
)
def test_errors_of_the_application_have_the_shape_of_the_command_lines(
    place, token, line, status, kind
):
    reply = exchange(place, head(place, line, Authorization=f"Bearer {token}"))
    assert reply[0] == status and is_error(reply[2], kind)


def test_the_headers_of_an_error_are_kept(place, token):
    assert call(place, path="/conflict", token=token).headers["retry-after"] == "7"
    assert call(place, "DELETE", token=token).headers["allow"] == "GET"


def test_every_field_that_is_wrong_is_named_with_what_it_must_be(place, token):
    order = {"name": "much too long", "epochs": 0, "device": "tpu", "lr": 1}
    reply = post(place, token, json.dumps(order).encode(), path="/jobs")
    problems = {one["field"]: one for one in reply.json()["error"]["problems"]}
    assert {field: one["message"] for field, one in problems.items()} == {
        "name": "name = much too long: must be text of at most 8 characters",
        "epochs": "epochs = 0: must be at least 1",
        "device": "device = tpu: must be one of 'cpu' or 'gpu'",
        "lr": "no such field 'lr'",
    }
    assert (problems["epochs"]["value"], problems["epochs"]["allowed"]) == (0, "at least 1")


def test_a_missing_field_and_a_body_of_another_kind_are_named(place, token):
    missing = post(place, token, b"{}", path="/jobs").json()["error"]
    assert missing["message"] == "name is missing"
    other = post(place, token, b"[1]", path="/jobs").json()["error"]
    assert other["problems"][0]["message"] == "body = [1]: must be a block of fields"


def test_a_long_or_secret_value_is_not_sent_back(place, token):
    long = post(place, token, json.dumps({"name": "x" * 10**6}).encode(), path="/jobs")
    assert long.status_code == 400 and len(long.content) < 2000
    many = post(place, token, json.dumps({f"f{n}": n for n in range(9999)}).encode(), path="/jobs")
    assert many.status_code == 400 and len(many.json()["error"]["problems"]) == 50


def test_a_fault_of_ours_is_told_to_the_log_and_not_to_the_client(place, token, caplog):
    reply = call(place, path="/broken", token=token)
    assert reply.status_code == 500
    assert not [word for word in ("hunter2", "secret", "Runtime", ".py") if word in reply.text]
    wait_until(lambda: not place.server.server_state.tasks)
    assert caplog.text.count("RuntimeError: ") == 1 and "/srv/secret/place" in caplog.text
    assert "hunter2" not in caplog.text


def test_what_the_application_does_not_catch_at_all_is_hidden_too(caplog):
    async def app(scope, receive, send):
        raise RuntimeError("outside")

    with serving(find=lambda _: None, app=app) as place:
        reply = call(place, path="/health")
    assert reply.status_code == 500 and is_error(reply.json(), "internal")
    assert "outside" not in reply.text and "outside" in caplog.text


def test_a_reply_that_breaks_off_is_seen_to_break_off(place, token, caplog):
    with pytest.raises(httpx.RemoteProtocolError):
        call(place, path="/half", token=token)
    wait_until(lambda: "in the middle" in caplog.text)
    assert call(place, path="/health").status_code == 200


@pytest.mark.parametrize("path", ["/health", "/me", "/nothing", "/broken", "/slow?seconds=x"])
@pytest.mark.parametrize("is_known", [True, False])
def test_every_reply_says_what_a_browser_must_not_do(place, token, path, is_known):
    headers = call(place, path=path, token=token if is_known else None).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert headers.get_list("content-security-policy") == ["default-src 'none'"]
    assert "server" not in headers


def test_a_page_of_the_application_may_set_its_own_policy(place, token):
    headers = call(place, path="/page", token=token).headers
    assert headers.get_list("content-security-policy") == ["default-src 'self'"]
    assert headers["x-content-type-options"] == "nosniff"


# Where it listens.


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.4", "controller.lab"])
def test_the_network_is_not_let_in_unless_a_name_is_given(host):
    with pytest.raises(RequestError, match="the network can reach the server there"):
        make_server(FastAPI(), host, 0, find_user=lambda _: None)
    names = ["controller.lab:8265"]
    assert make_server(FastAPI(), host, 0, find_user=lambda _: None, allowed_hosts=names)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.7", "::1", "localhost"])
def test_loopback_needs_no_name(host):
    assert make_server(FastAPI(), host, 0, find_user=lambda _: None).config.host == host
