"""Server-sent events: a response that goes on, to a client that must keep up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from aiohttp import web

from nvila_ros.http.connections import begin_asking
from nvila_ros.http.limits import SEND_S

HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class ServerEvents:
    """One stream.

    Args:
        request: that asked for it.
    """

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self.response = web.StreamResponse(headers=HEADERS)

    async def begin(self) -> None:
        """Send the headers."""
        begin_asking(self._request)
        await self.response.prepare(self._request)

    async def send(self, data: Iterable[str], *, kind: str = "", number: int | None = None) -> None:
        """Send events at once; each of the data is JSON without line breaks.

        Raises:
            ConnectionResetError: the client has left, or leaves unread what it is sent and was dropped.
        """
        head = (f"id: {number}\n" if number is not None else "") + (f"event: {kind}\n" if kind else "")
        await self._write("".join(f"{head}data: {each}\n\n" for each in data).encode())

    async def ping(self) -> None:
        """Show that the stream is alive."""
        await self._write(b": ping\n\n")

    async def end(self) -> None:
        """End the response."""
        await asyncio.wait_for(self.response.write_eof(), SEND_S)

    async def _write(self, content: bytes) -> None:
        try:
            await asyncio.wait_for(self.response.write(content), SEND_S)
        except (TimeoutError, asyncio.TimeoutError) as error:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ConnectionResetError("the client reads too slowly") from error
