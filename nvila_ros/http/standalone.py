"""A process that answers without ROS: the node's own parts behind the HTTP door, with cameras of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from nvila_ros.config import NodeConfig
from nvila_ros.http.door import HttpDoor
from nvila_ros.http.services import CameraState, Services, access_from_config
from nvila_ros.serving.answering import Answering
from nvila_ros.serving.model_host import ModelHost, refuse_waiting
from nvila_ros.serving.model_loader import ModelState, Status
from nvila_ros.standing.query import TICK_NS
from nvila_ros.standing.service import StandingService
from nvila_ros.types import NS_PER_S, RawFrame
from nvila_ros.video.buffer import FrameBuffer
from nvila_ros.video.deferred import decode_raw

LOG = logging.getLogger(__name__)


class LiveSource(Protocol):
    """A camera that fills the buffer on a thread of its own."""

    def start(self, buffer: FrameBuffer[RawFrame]) -> None:
        """Begin."""

    def stop(self) -> None:
        """End the thread."""

    def state(self) -> CameraState:
        """Return how its frames arrive."""
        ...


class Standalone:
    """Buffer, queue, model, standing queries and door of one process.

    Args:
        config: as of the node; `cameras` are the names of the sources, in order.
        sources: of frames.
        load: as of `ModelLoader`.
        clock_ns: of capture stamps.

    Attributes:
        door: where it listens.
        status: what the model is doing.

    Raises:
        ConfigError: the door's address or token, or the file of standing queries, is not acceptable.
    """

    def __init__(
        self,
        config: NodeConfig,
        sources: Sequence[LiveSource],
        load: Callable[..., Any],
        clock_ns: Callable[[], int],
        on_status: Callable[[Status], None] = lambda status: None,
    ) -> None:
        self._config, self._sources, self._report = config, sources, on_status
        self.status = Status(state=ModelState.LOADING)
        self.answering = Answering(lambda: config, lambda: self.status.refusal, clock_ns, decode_raw)
        self.host = ModelHost(load, self.answering.make_worker)
        self.standing = StandingService(self.answering, lambda: self.host.worker is not None)
        self.door = HttpDoor(self._services(), access_from_config(config))

    def _services(self) -> Services:
        return Services(
            name="nvila serve",
            answering=self.answering,
            standing=self.standing,
            status=lambda: self.status,
            refusal=lambda: self.status.refusal,
            cameras=lambda: [source.state() for source in self._sources],
            counters=self.host.counters,
            faults=self.host.faults,
        )

    def start(self) -> None:
        """Open the door and the cameras, and begin to load the model.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        self.door.start()
        for source in self._sources:
            source.start(self.answering.buffer)
        self.host.start(self._config, self._on_status)

    def work(self, stop: threading.Event) -> None:
        """Hand models over and ask standing queries until it is to stop.

        Raises:
            Exception: what the loading ended with before there was a model.
        """
        while not stop.wait(TICK_NS / NS_PER_S) and not self.host.has_died:
            if self.host.error is not None and self.host.worker is None:
                raise self.host.error
            self.host.hand_over()
            self.answering.expire()
            if self.host.worker is None:
                refuse_waiting(self.answering.scheduler, self.status.refusal)
            self.standing.tick()

    def close(self) -> None:
        """Let answers in progress come to their end, for a bounded time, and end all in order."""
        self.door.drain()
        for source in self._sources:
            source.stop()
        self.answering.close()
        self.host.close()
        self.host.join()
        self.standing.close()
        self.door.close()

    def _on_status(self, status: Status) -> None:
        self.status = status
        self._report(status)
