"""Connections: how many may be open, and what becomes of one whose client has said all that it will.

A client that closes its connection and one that closes only its own half look the same here. While a question is asked,
both have left, and the question is canceled. Else what was said is still answered, though it be an error: that a
request was cut off, say. Then the connection is closed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, cast

from aiohttp import StreamReader, web

from nvila_ros.http.errors import ApiError
from nvila_ros.http.limits import MAX_CLIENT_CONNECTIONS, MAX_CONNECTIONS

NO_HEADER = b"\0\r\n\r\n"
"""What no parser takes for a part of a request, so that it refuses what came before."""


class Connections:
    """Makes the protocol of each connection, and bounds how many are open, over all and of one address.

    Args:
        server: handles their requests.
        options: of aiohttp's `RequestHandler`.
    """

    def __init__(self, server: web.Server, **options: Any) -> None:
        self._server, self._options = server, options
        self._by_client: Counter[str] = Counter()

    def __call__(self) -> web.RequestHandler:
        """Return the protocol of a connection that comes."""
        return HalfOpenHandler(self, self._server, loop=asyncio.get_running_loop(), **self._options)

    @property
    def num_open(self) -> int:
        """Connections that are open."""
        return self._by_client.total()

    def enter(self, client: str) -> bool:
        """Count a connection, where there is room for it."""
        if self._by_client.total() >= MAX_CONNECTIONS or self._by_client[client] >= MAX_CLIENT_CONNECTIONS:
            return False
        self._by_client[client] += 1
        return True

    def leave(self, client: str) -> None:
        """Count a connection no more."""
        self._by_client[client] -= 1
        if not self._by_client[client]:
            del self._by_client[client]


class HalfOpenHandler(web.RequestHandler):
    """The protocol of one connection.

    Attributes:
        is_asking: a client that says no more has left; set while a question or a stream is open.
        has_ended: the client says no more.
    """

    __slots__ = ("_client", "_connections", "_is_begun", "_payload", "has_ended", "is_asking")

    def __init__(self, connections: Connections, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._connections, self._client = connections, ""
        self._payload: StreamReader | None = None  # of the last request whose headers came
        self._is_begun = False  # there are bytes of a request whose headers are not whole
        self.is_asking = self.has_ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection, or drop it where there are too many."""
        peer = transport.get_extra_info("peername")
        client = str(peer[0]) if peer else "?"
        if not self._connections.enter(client):
            cast(asyncio.Transport, transport).abort()
            return
        self._client = client
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Take bytes, and note whether a request is whole."""
        num_before = len(self._messages)
        super().data_received(data)
        if len(self._messages) > num_before:
            self._payload, self._is_begun = self._messages[-1][1], False
        elif data and (self._payload is None or self._payload.is_eof()):
            self._is_begun = True

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio's own type is bool | None
        """Take that the client says no more; returns whether it is answered nevertheless."""
        self.has_ended = True
        if self.is_asking:
            return False
        if self._payload is not None and not self._payload.is_eof():
            self._payload.set_exception(ApiError(400, "the body ended before it was whole; send all of it"))
            self._payload.feed_eof()
        elif self._is_begun:
            super().data_received(NO_HEADER)
        has_work = self._has_work()
        if has_work:
            self.close()  # once the response is sent
        return has_work

    def _has_work(self) -> bool:
        """Whether a request waits or is answered; else aiohttp waits for the next one, or has never got any."""
        is_idle = self._waiter is not None and not self._waiter.done()
        has_said = self._payload is not None or self._is_begun
        return bool(self._messages) or (has_said and not is_idle)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Count the connection no more."""
        if self._client:
            self._connections.leave(self._client)
            super().connection_lost(exc)


def begin_asking(request: web.Request) -> None:
    """Let a client that says no more have left from now on.

    Raises:
        ApiError: it has said that already.
    """
    protocol = request.protocol
    if isinstance(protocol, HalfOpenHandler):
        if protocol.has_ended:
            raise ApiError(400, "the connection was closed for sending; keep it open until the answer has come")
        protocol.is_asking = True


def end_asking(request: web.Request) -> None:
    """Answer whatever comes on the connection from now on."""
    if isinstance(request.protocol, HalfOpenHandler):
        request.protocol.is_asking = False
