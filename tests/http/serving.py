"""The whole door in this process, over the real model or a fake one; frames come when a test shows them."""

from __future__ import annotations

import base64
import http.client
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from nvila_ros.config import NodeConfig
from nvila_ros.http.services import CameraState
from nvila_ros.http.standalone import Standalone
from nvila_ros.types import Frame, RawFrame
from nvila_ros.video.buffer import FrameBuffer
from nvila_ros.world.live_world import LiveWorld
from nvila_ros.world.rendering import render

WAIT_S = 45.0


class HandCamera:
    """A camera that shows what it is given."""

    def __init__(self, name: str) -> None:
        self.name, self._count = name, 0
        self._buffer: FrameBuffer[RawFrame] | None = None

    def start(self, buffer: FrameBuffer[RawFrame]) -> None:
        self._buffer = buffer

    def stop(self) -> None:
        self._buffer = None

    def state(self) -> CameraState:
        return CameraState(name=self.name, source="by hand", received=self._count)

    def show(self, image: np.ndarray, stamp_ns: int | None = None) -> int:
        """Show an image (H, W, 3) uint8 RGB and return its stamp."""
        stamp_ns = time.time_ns() if stamp_ns is None else stamp_ns
        assert self._buffer is not None, "the camera was not started"
        self._buffer.push(Frame(image=image, stamp_ns=stamp_ns, camera=self.name).raw)
        self._count += 1
        return stamp_ns


class Served:
    """A door, its cameras by name, and plain requests to it."""

    def __init__(self, server: Standalone, cameras: dict[str, HandCamera]) -> None:
        self.server, self.cameras, self.url = server, cameras, server.door.url
        self.address = urlsplit(self.url).hostname or "", urlsplit(self.url).port or 0

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """Return status, JSON (or bytes, where it is none) and headers; those given have _ in place of -."""
        connection = http.client.HTTPConnection(*self.address, timeout=WAIT_S)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        content = body if isinstance(body, bytes | str | None) else json.dumps(body)
        if content is not None:
            given = {"Content-Type": "application/json"} | given
        try:
            connection.request(method, path, content, given)
            response = connection.getresponse()
            data, kind = response.read(), response.headers.get("Content-Type", "")
            found = json.loads(data) if kind.startswith("application/json") else data
            return response.status, found, dict(response.headers)
        finally:
            connection.close()

    def ask(self, content: Any = "what is this", **fields: Any) -> tuple[int, Any]:
        """Ask by a chat completion; return status and JSON."""
        body = {"messages": [{"role": "user", "content": content}], **fields}
        status, found, _ = self.request("POST", "/v1/chat/completions", body)
        return status, found


@contextmanager
def serving(load: Callable[..., Any], *cameras: str, waits_for_model: bool = True, **values: Any) -> Iterator[Served]:
    """Serve with these cameras and parameters until the end of the block."""
    hands = {name: HandCamera(name) for name in cameras or ("front",)}
    config = NodeConfig(cameras=tuple(hands), http_port=0, **values)
    server = Standalone(config, list(hands.values()), load, time.time_ns)
    stop = threading.Event()
    thread = threading.Thread(target=server.work, args=(stop,))
    server.start()
    thread.start()
    try:
        wait_until(lambda: server.host.worker is not None or not waits_for_model, "the model is loaded")
        yield Served(server, hands)
    finally:
        stop.set()
        thread.join()
        server.close()


def wait_until(is_true: Callable[[], Any], what: str) -> None:
    """Wait for a condition.

    Raises:
        AssertionError: it did not come true in time.
    """
    end = time.monotonic() + WAIT_S
    while not is_true():
        assert time.monotonic() < end, f"waited {WAIT_S} s for: {what}"
        time.sleep(0.005)


def scene(index: int = 0, t_s: float = 0.5) -> np.ndarray:
    """Return a picture of the synthetic world, (120, 160, 3)."""
    world = LiveWorld(0)
    return render(world.scene_at(index * world.scene_s)[1], t_s, 160, 120)


def data_uri(image: np.ndarray, kind: str = "png") -> str:
    """Return an image as a data URI; PNG keeps every pixel."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def picture(image: np.ndarray, kind: str = "png") -> dict[str, Any]:
    """Return an image as a part of a message."""
    return {"type": "image_url", "image_url": {"url": data_uri(image, kind)}}
