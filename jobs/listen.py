"""The HTTP server under the controller's application: uvicorn, with limits that it lacks.

uvicorn waits for the end of a request's headers for ever: its `timeout_keep_alive` is for silence
after a reply and ends with the next byte. Its `limit_concurrency` counts connections that hang, so
they would shut everybody out; here the longest hanging ones are cut off instead.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Collection
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from gpt2cls.errors import RequestError
from jobs.guard import FindUser, Guard, Limits, error_response

LOOPBACK = "127.0.0.1"
_KEEP_ALIVE_S = 5
_ROOM_AFTER_S = 0.01
_STOP_WITHIN_S = 10
"""How long running requests may take to end once the server was told to stop."""


def make_server(
    app: ASGIApp,
    host: str = LOOPBACK,
    port: int = 8265,
    *,
    find_user: FindUser,
    allowed_hosts: Collection[str] = (),
    limits: Limits | None = None,
) -> uvicorn.Server:
    """A server of the application behind its guard; its `run` or `serve` starts it.

    Args:
        app: what answers requests that the guard lets in.
        host: address to listen at; loopback unless `allowed_hosts` says who else calls.
        port: to listen at; 0 takes a free one.
        find_user: whose token this is.
        allowed_hosts: what else clients call this server, as in a Host header: name:port.
        limits: what one client can make it hold.

    Raises:
        RequestError: the network could reach it, but by no name that it would answer to.
    """
    if not _is_loopback(host) and not allowed_hosts:
        raise RequestError(
            f"host = {host!r}: the network can reach the server there, and nobody said by what "
            f"name; name it, such as {socket.gethostname()}:{port}, or listen at {LOOPBACK}"
        )
    limits = limits or Limits()
    guard = Guard(app, find_user=find_user, allowed_hosts=allowed_hosts, limits=limits)
    config = uvicorn.Config(
        guard,
        host=host,
        port=port,
        http=_protocol(limits),
        loop="asyncio",
        ws="none",
        log_config=None,  # the process that serves decides where logs go
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nobody in front of us is trusted to say who the client is
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_STOP_WITHIN_S,
    )
    return uvicorn.Server(config)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name; others than this one may mean anything tomorrow
        return host == "localhost"


def _protocol(limits: Limits) -> type[H11Protocol]:
    """Uvicorn makes one of this class for each connection, and gives it nothing of ours."""

    class LimitedProtocol(_ImpatientProtocol):
        pass

    LimitedProtocol.limits = limits
    return LimitedProtocol


class _ImpatientProtocol(H11Protocol):
    """One connection, cut off when its client lets it hang."""

    limits = Limits()

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._headers_timer: asyncio.TimerHandle | None = None
        self._hangs_since_s = self.loop.time()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _cut_unread(transport, self.limits.unread_within_s)
        self._await_headers()
        # Not at once: of many that connect together, each is to have its first bytes read.
        self.loop.call_later(_ROOM_AFTER_S, self._make_room)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:  # a request, whole but for its body
            self._hangs_since_s = self.loop.time()
            self._stop_awaiting_headers()
        elif self._headers_timer is None:
            self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_awaiting_headers()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls when it cannot read a request."""
        words = "this is no whole request of HTTP/1.1, with one Host and no more than 16 KiB before"
        self._refuse(400, f"{words} its body")

    def _await_headers(self) -> None:
        within_s = self.limits.headers_within_s
        words = f"no whole request came within {within_s:g} s"
        self._headers_timer = self.loop.call_later(within_s, self._refuse, 408, words)

    def _stop_awaiting_headers(self) -> None:
        if self._headers_timer is not None:
            self._headers_timer.cancel()
            self._headers_timer = None

    def _refuse(self, status: int, message: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # no other reply has begun
            response = error_response(status, message)
            headers = [*response.raw_headers, (b"connection", b"close")]
            reason = HTTPStatus(status).phrase.encode()
            reply = h11.Response(status_code=status, headers=headers, reason=reason)
            for event in (reply, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _make_room(self) -> None:
        """One connection too many costs the one that hangs longest, or this one if none does."""
        all_open = [c for c in self.connections if isinstance(c, _ImpatientProtocol)]
        all_open = [c for c in all_open if not c.transport.is_closing()]
        if len(all_open) > self.limits.connections:
            hanging = [c for c in all_open if c.conn.their_state is h11.IDLE]
            min(hanging, key=lambda c: c._hangs_since_s, default=self).transport.abort()


def _cut_unread(transport: asyncio.Transport, within_s: float) -> None:
    """End the connection of a client that does not read its replies, which pile up here."""
    option = getattr(socket, "TCP_USER_TIMEOUT", None)  # only Linux has it
    if option is not None:
        milliseconds = int(within_s * 1000)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, option, milliseconds)
