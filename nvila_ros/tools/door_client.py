"""Requests to an HTTP door, from a thread that may be left alone: closing one stops the work that it asked for."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from typing import Any
from urllib.parse import quote, urlsplit

from nvila_ros.errors import ConfigError, ServerError, shown

MAX_BODY_BYTES = 32 << 20


class DoorClient:
    """Speaks with one door.

    Args:
        url: where it listens, such as `http://127.0.0.1:8000`.
        token: that it asks for; may be empty.
        timeout_s: how long it may be silent.

    Raises:
        ConfigError: this is no such address.
    """

    def __init__(self, url: str, token: str = "", timeout_s: float = 120.0) -> None:
        try:
            parts = urlsplit(url)
            self._host, self._port = parts.hostname or "", parts.port or 80
        except ValueError as error:
            raise ConfigError(f"the door's address must be like http://127.0.0.1:8000, got {shown(url)}") from error
        if parts.scheme != "http" or not self._host or parts.path.strip("/") or parts.username is not None:
            raise ConfigError(f"the door's address must be like http://127.0.0.1:8000, got {shown(url)}")
        self.url, self._timeout_s = url.rstrip("/"), timeout_s
        self._headers = {"Content-Type": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    def call(self, method: str, path: str, body: Any = None) -> DoorRequest:
        """Return a request that is not sent yet."""
        content = None if body is None else json.dumps(body)
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        return DoorRequest(self.url, connection, method, path, content, self._headers)


class DoorRequest:
    """One request and its response."""

    def __init__(
        self,
        url: str,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        content: str | None,
        headers: dict[str, str],
    ) -> None:
        self._url, self._connection = url, connection
        self._request = method, quote(path, safe="/?&=%:,"), content, headers
        self._lock = threading.Lock()
        self._is_closed = False

    def send(self) -> Any:
        """Return the JSON of the response, None where it has none.

        Raises:
            ServerError: nobody is there, or the door refuses, in its own words.
        """
        try:
            status, body = self._exchange()
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            raise ServerError(
                f"{self._url} does not answer as a door of nvila_ros: {error or type(error).__name__}; start "
                "nvila serve, or a node with http_port, and name its address by --url"
            ) from error
        finally:
            self._connection.close()
        if status >= 400:
            refusal = body.get("error") if isinstance(body, dict) else None
            raise ServerError(str(refusal.get("message")) if isinstance(refusal, dict) else f"status {status}")
        return body

    def _exchange(self) -> tuple[int, Any]:
        self._connection.connect()
        with self._lock:
            if self._is_closed:
                raise OSError("the request was closed")
        self._connection.request(*self._request)
        response = self._connection.getresponse()
        content = response.read(MAX_BODY_BYTES)
        return response.status, json.loads(content) if content else None

    def close(self) -> None:
        """Let go of the response, from any thread: the door cancels the question."""
        with self._lock:
            self._is_closed = True
            if self._connection.sock is not None:
                with contextlib.suppress(OSError):
                    self._connection.sock.shutdown(socket.SHUT_RDWR)
