"""The door: a server on a thread of its own, with a loop of its own, so that no callback ever waits for a client."""

from __future__ import annotations

import asyncio
import logging
import threading
from functools import partial
from typing import Any

from aiohttp import web

from nvila_ros.errors import ConfigError
from nvila_ros.http.api import Api
from nvila_ros.http.app import Plain, make_app
from nvila_ros.http.chat import ChatEndpoint
from nvila_ros.http.connections import Connections
from nvila_ros.http.feed import Feed
from nvila_ros.http.frames import Pictures
from nvila_ros.http.guard import Guard
from nvila_ros.http.limits import DRAIN_S, KEEPALIVE_S
from nvila_ros.http.metrics import Metrics
from nvila_ros.http.services import Access, Services, is_loopback
from nvila_ros.http.views import standing_view

LOG = logging.getLogger(__name__)
PROTOCOL_LOG = logging.getLogger(f"{__name__}.protocol")
PROTOCOL_LOG.setLevel(logging.CRITICAL)  # bytes that are no HTTP are a client's, who could fill the log with them
START_S = 10.0
CLOSE_S = 5.0
VIEWERS_S = 0.2
"""What is open when the door closes, behind `drain`, are followers of what happens, who never end by themselves."""


class HttpDoor:
    """Serves HTTP from `start` to `close`.

    Args:
        services: of the process.
        access: where to listen, and who may come in.

    Attributes:
        url: where it listens.
        feed: what happens.
    """

    def __init__(self, services: Services, access: Access) -> None:
        self._services, self._access = services, access
        self._loop = asyncio.new_event_loop()
        self._is_draining = False
        self._chat: ChatEndpoint | None = None
        self._connections: Connections | None = None
        self._started = threading.Event()
        self._stop = asyncio.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="nvila_http")
        self.url = ""
        self.feed = Feed(self._loop, services.answering.clock_ns)

    def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        self._thread.start()
        self._started.wait(START_S)
        if self._error is not None:
            self._thread.join()
            where = f"{self._access.host}:{self._access.port}"
            raise ConfigError(f"the HTTP door cannot listen on {where}: {self._error}; choose another http_port")

    def num_connections(self) -> int:
        """Return how many connections are open."""
        return self._connections.num_open if self._connections is not None else 0

    def drain(self) -> None:
        """Take no more questions, and let those in progress come to their end, for a bounded time."""
        self._is_draining = True
        deadline = threading.Event()
        waited_s = 0.0
        while self._chat is not None and self._chat.num_open and waited_s < DRAIN_S:
            deadline.wait(0.05)
            waited_s += 0.05

    def close(self) -> None:
        """Close all connections, and end the thread."""
        self._is_draining = True
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:
            self._error = error
            if self._started.is_set():
                LOG.exception("the HTTP door has ended")
        finally:
            self._started.set()
            self._loop.close()

    async def _serve(self) -> None:
        services, guard = self._services, Guard(self._access)
        feed, pictures = self.feed, Pictures(services.answering)
        metrics = Metrics(services)
        chat = self._chat = ChatEndpoint(services, guard, lambda: self._is_draining)
        plain = Plain(services, guard, metrics, lambda: self._is_draining)
        app = make_app(chat, Api(services, feed, pictures), plain, guard)
        runner = web.AppRunner(
            app, handle_signals=False, access_log=None, handler_cancellation=True, shutdown_timeout=VIEWERS_S
        )
        await runner.setup()
        try:
            server = await self._listen(runner)
            self._connect(feed, metrics)
            self._started.set()
            await self._stop.wait()
            server.close()
        finally:
            runner_closed = asyncio.wait_for(runner.cleanup(), CLOSE_S)
            await asyncio.gather(runner_closed, return_exceptions=True)
            chat.close()
            pictures.close()

    async def _listen(self, runner: web.AppRunner) -> asyncio.Server:
        assert runner.server is not None, "the runner was set up"
        options: dict[str, Any] = {"keepalive_timeout": KEEPALIVE_S, "access_log": None, "lingering_time": 1.0}
        options["logger"] = PROTOCOL_LOG
        self._connections = Connections(runner.server, **options)
        server = await self._loop.create_server(self._connections, self._access.host, self._access.port, backlog=64)
        port = server.sockets[0].getsockname()[1]
        host = self._access.host if is_loopback(self._access.host) else server.sockets[0].getsockname()[0]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        return server

    def _connect(self, feed: Feed, metrics: Metrics) -> None:
        """Hear of what happens from now on."""
        services = self._services
        services.answering.listeners += [feed, metrics]
        services.standing.on_events.append(feed.on_events)
        services.standing.on_changes.append(lambda name: feed.post("standing", partial(self._standing, name)))

    def _standing(self, name: str) -> dict[str, Any]:
        """Return how a standing query stands, or that there is none of that name any more."""
        state = self._services.standing.state(name)
        return {"name": name, "state": None if state is None else standing_view(state)}
