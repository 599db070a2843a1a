"""What stands between the network and the application: a request is let in, or refused whole.

In this order: the name it calls us by, the page it comes from, who sends it, then its body. Nothing
of the body is read for somebody who is not known.
"""

import hashlib
import json
import logging
import re
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpt2cls.errors import RequestError
from jobs.access import User
from jobs.console import error_document
from jobs.faults import BadRequestError, Problem, shown
from jobs.masking import mask, mask_value

FindUser = Callable[[str], User | None]
"""Whose token this is. May wait for the store: it runs in a thread."""

OPEN_PATH = "/health"
USER_KEPT_S = 5.0
"""How long a revoked token still works, at most."""
_USERS_KEPT = 1024
_LOOK_UPS_AT_ONCE = 8
_LOOK_UP_WITHIN_S = 10.0
_LINGER_S = 1.0
_PROBLEMS_SHOWN = 50
_VALUE_CHARACTERS = 120
_HALF_OR_NUL = re.compile("[\0\ud800-\udfff]")

_KINDS = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    409: "conflict",
    413: "too_large",
    415: "unsupported_type",
    500: "internal",
    503: "service",
}
_NO_TOKEN = (
    "there is no such token, or it has expired or was revoked; "
    "send a good one as `Authorization: Bearer TOKEN`"
)
_OUR_FAULT = "this is a fault of the server; its log holds the traceback"
_SAFE_HEADERS = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'",
}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What one client can make the server hold, and for how long."""

    body_bytes: int = 4 * 2**20
    body_within_s: float = 10.0
    """From the end of the headers to the end of the body."""
    headers_within_s: float = 10.0
    """From the connection, or from the first byte of a later request on it."""
    unread_within_s: float = 30.0
    """How long a client may leave a reply unread before the connection is cut."""
    connections: int = 400
    """Beyond it, whoever has sent no whole request for the longest time is cut off."""


class Refused(Exception):
    """A request that goes no further."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status, self.message = status, message


class Guard:
    """Lets good requests through to an application, with the user in `scope["state"]["user"]`."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        find_user: FindUser,
        allowed_hosts: Collection[str] = (),
        limits: Limits | None = None,
    ) -> None:
        """`allowed_hosts`: as in a Host header; loopback with the server's port always is."""
        self._app, self._limits = app, limits or Limits()
        self._users = _Users(find_user)
        self._allowed_hosts = frozenset(host.lower() for host in allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a websocket, which nobody here speaks
            await send({"type": "websocket.close", "code": 1008})
            return
        incoming, reply = _Incoming(scope, receive), _Reply(send)
        try:
            await self._app(scope, await self._let_in(scope, incoming), reply)
        except Refused as refused:
            _log.info("%s %r: refused, %d", scope["method"], scope["path"], refused.status)
            await _refuse(refused, incoming, reply)
        except Exception as error:  # the last boundary: uvicorn would answer in plain text
            _log_traceback(f"{scope['method']} {scope['path']!r}", error)
            if not reply.has_begun:
                await _refuse(Refused(500, _OUR_FAULT), incoming, reply)

    async def _let_in(self, scope: Scope, incoming: "_Incoming") -> Receive:
        """Check the request; gives what the application reads instead of the network.

        Raises:
            Refused: it may not go on.
        """
        headers = Headers(scope=scope)
        _check_host(headers, self._allowed_hosts | _loopback_hosts(scope))
        is_open = scope["path"] == OPEN_PATH and scope["method"] in ("GET", "HEAD")
        if not is_open:
            user = await self._users.of(_token(headers))
            if user is None:
                raise Refused(401, _NO_TOKEN)
            scope.setdefault("state", {})["user"] = user
        if not incoming.has_more:
            return incoming
        body_bytes = 0 if is_open else self._limits.body_bytes
        _check_body_headers(headers, body_bytes)
        body = await _read_body(incoming, body_bytes, self._limits.body_within_s)
        if body:
            _check_json(body)
        return _replayed(body, incoming)


class _Users:
    """Who has which token; one token is looked up in the store once in five seconds at most.

    Unknown ones are kept too, so that a bad token costs and takes what a good one does.
    """

    def __init__(self, find_user: FindUser) -> None:
        self._find_user = find_user
        self._seen: OrderedDict[bytes, tuple[float, User | None]] = OrderedDict()
        # Our own, because the application's slow requests use up the threads that all share.
        self._threads = anyio.CapacityLimiter(_LOOK_UPS_AT_ONCE)

    async def of(self, token: str) -> User | None:
        key = hashlib.sha256(token.encode()).digest()
        now = time.monotonic()
        asked_s, user = self._seen.get(key, (float("-inf"), None))
        if now - asked_s < USER_KEPT_S:
            return user
        user = await self._look_up(token)
        self._seen[key] = (now, user)
        self._seen.move_to_end(key)
        while len(self._seen) > _USERS_KEPT:
            self._seen.popitem(last=False)
        return user

    async def _look_up(self, token: str) -> User | None:
        try:
            with anyio.fail_after(_LOOK_UP_WITHIN_S):
                return await anyio.to_thread.run_sync(
                    self._find_user, token, abandon_on_cancel=True, limiter=self._threads
                )
        except Exception as error:  # the store is another service, which may be away
            _log_traceback("looking up a token", error)
            raise Refused(503, "the job store does not answer; try again later") from error


class _Incoming:
    """What a client sends, and whether more of its body is to come."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        headers = Headers(scope=scope)
        length = headers.get("content-length", "0")
        self.has_more = "transfer-encoding" in headers or length != "0"
        self._receive = receive

    async def __call__(self) -> Message:
        message = await self._receive()
        self.has_more = message.get("more_body", False)
        return message


class _Reply:
    """Sends a reply with the headers that every reply has."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
            message.setdefault("headers", [])
            headers = MutableHeaders(scope=message)
            for name, value in _SAFE_HEADERS.items():
                headers.setdefault(name, value)  # a page of the application may set its own policy
        await self._send(message)


def error_response(status: int, message: str, problems: Collection[Problem] = ()) -> JSONResponse:
    """An error as the command line says it with --json."""
    kind = _KINDS.get(status, "error")
    headers = {"www-authenticate": "Bearer"} if status == 401 else {}
    return JSONResponse(error_document(kind, message, [*problems]), status, headers | _SAFE_HEADERS)


async def _refuse(refused: Refused, incoming: "_Incoming", send: Send) -> None:
    response = error_response(refused.status, refused.message)
    if incoming.has_more:  # it must not be waited for, nor taken for the next request
        response.headers["connection"] = "close"
    start = {"type": "http.response.start", "status": refused.status}
    await send(start | {"headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    # Closing on unread bytes resets the connection, and the client may never see the reply.
    with anyio.move_on_after(_LINGER_S):
        while incoming.has_more:
            await incoming()
    await send({"type": "http.response.body", "body": b""})


def _loopback_hosts(scope: Scope) -> set[str]:
    port = (scope.get("server") or ("", None))[1]
    suffix = "" if port == 80 else f":{port}"  # clients leave the usual port out
    return {f"{name}{suffix}" for name in ("localhost", "127.0.0.1", "[::1]")}


def _check_host(headers: Headers, allowed: Collection[str]) -> None:
    """A page whose name was made to point here (DNS rebinding) still calls us by its own name."""
    host = headers.get("host", "").lower()
    if host not in allowed:
        raise Refused(403, f"Host = {shown(host)}: this server is not called so")
    # Not the scheme: in front of us may be a proxy that speaks TLS.
    strangers = [o for o in headers.getlist("origin") if o.lower().partition("://")[2] != host]
    if strangers:
        raise Refused(403, f"Origin = {shown(strangers[0])}: only pages of {host} may call it")


def _token(headers: Headers) -> str:
    """The token that was sent, or nothing, which is nobody's token."""
    values = headers.getlist("authorization")
    scheme, _, token = (values[0] if len(values) == 1 else "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _check_body_headers(headers: Headers, limit_bytes: int) -> None:
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise Refused(400, f"Content-Length = {shown(length)}: must be a whole number")
    if int(length) > limit_bytes:
        raise Refused(413, _too_large(limit_bytes))
    if "transfer-encoding" in headers and "content-length" in headers:
        raise Refused(400, "Content-Length and Transfer-Encoding exclude each other; send one")
    content_type = headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, f"Content-Type = {shown(content_type)}: must be application/json")


async def _read_body(receive: Receive, limit_bytes: int, within_s: float) -> bytes:
    body = bytearray()
    try:
        with anyio.fail_after(within_s):
            while (message := await receive())["type"] == "http.request":
                body += message.get("body", b"")
                if len(body) > limit_bytes:
                    raise Refused(413, _too_large(limit_bytes))
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise Refused(408, f"the body did not arrive within {within_s:g} s") from None
    raise Refused(400, "the connection ended before the body did")


def _too_large(limit_bytes: int) -> str:
    return f"the body is larger than {limit_bytes:,} bytes, which is the most that is taken here"


def _check_json(body: bytes) -> None:
    """Refuse what is not JSON, and texts that no database or reply could hold."""
    try:
        value = json.loads(body.decode(), parse_constant=_no_such_constant)
    except UnicodeDecodeError as error:
        raise Refused(400, f"the body is not UTF-8: see byte {error.start}") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise Refused(400, f"the body is not JSON: {error.msg}, {where}") from None
    except (ValueError, RecursionError):
        words = "the body holds a number that JSON does not have, or too long or deep a value"
        raise Refused(400, words) from None
    if any(_HALF_OR_NUL.search(text) for text in _texts(value)):
        raise Refused(400, "a text in the body holds NUL or half of a surrogate pair")


def _no_such_constant(name: str) -> None:
    raise ValueError(name)


def _texts(value: Any) -> Iterator[str]:
    todo = [value]
    while todo:
        at = todo.pop()
        if isinstance(at, str):
            yield at
        elif isinstance(at, dict):
            todo += [*at, *at.values()]
        elif isinstance(at, list):
            todo += at


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The whole body first, then what the network says, which is when the client leaves."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return waiting.pop() if waiting else await receive()

    return next_message


def _log_traceback(doing: str, error: BaseException) -> None:
    _log.error("%s: %s", doing, mask("".join(traceback.format_exception(error))))


def install_error_handlers(app: FastAPI) -> None:
    """Let every error of the application have the shape that the command line's errors have."""
    app.add_exception_handler(HTTPException, _say_http_error)
    app.add_exception_handler(RequestValidationError, _say_faults)
    app.add_exception_handler(RequestError, _say_bad_request)
    app.add_exception_handler(Exception, _say_our_fault)


async def _say_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    if error.status_code == 404 and message == "Not Found":
        message = f"{shown(request.url.path)}: there is nothing here"
    elif error.status_code == 405 and message == "Method Not Allowed":
        message = f"{request.method} {shown(request.url.path)}: it does not take this method"
    response = error_response(error.status_code, message)
    response.headers.update(error.headers or {})
    return response


async def _say_faults(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems: dict[str | None, Problem] = {}
    for detail in error.errors():
        problem = _problem(detail)
        problems.setdefault(problem.field, problem)
    return _bad_request([*problems.values()][:_PROBLEMS_SHOWN])


async def _say_bad_request(_request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, BadRequestError):
        return _bad_request(error.problems)
    return error_response(400, str(error))


async def _say_our_fault(_request: Request, _error: Exception) -> JSONResponse:
    return error_response(500, _OUR_FAULT)  # the traceback: starlette raises it on, to the guard


def _bad_request(problems: Collection[Problem]) -> JSONResponse:
    return error_response(400, "\n".join(problem.text() for problem in problems), problems)


_MUST_BE = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a number that is finite",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "string_pattern_mismatch": "text like {pattern}",
    "string_too_short": "text of at least {min_length} characters",
    "string_too_long": "text of at most {max_length} characters",
    "list_type": "a list",
    "too_short": "at least {min_length} items long",
    "too_long": "at most {max_length} items long",
    "dict_type": "a block of fields",
    "model_type": "a block of fields",
    "model_attributes_type": "a block of fields",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "one of {expected}",
    "enum": "one of {expected}",
}
"""Type of fault -> what the field must be."""


def _problem(detail: dict[str, Any]) -> Problem:
    """One fault of pydantic's in our words."""
    where, *path = detail["loc"]
    field = ".".join(str(part) for part in path) or str(where)
    if detail["type"] == "missing":
        return Problem(f"{field} is missing", field=field)
    if detail["type"] == "extra_forbidden":
        return Problem(f"no such field '{field}'", field=field)
    allowed = _MUST_BE.get(detail["type"], "").format(**detail.get("ctx", {}))
    value = mask_value(field, detail["input"])
    words = f"must be {allowed}" if allowed else detail["msg"]
    message = f"{field} = {shown(value)}: {words}"
    # A value as long as the body is not sent back.
    is_short = len(str(value)) <= _VALUE_CHARACTERS
    return Problem(message, field=field, value=value if is_short else None, allowed=allowed or None)
