"""One server over HTTP: connections that stay open, its models, and calls whose answers stream in.

A call runs on a thread of its own and puts what comes into a queue; whoever waits for it works through that queue, and
may close the call at any time. Nothing is followed elsewhere, and no proxy is used.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from nvila_ros.errors import BackendError, shown
from nvila_ros.remote.settings import RemoteSettings

CONNECT_S = 5.0
"""Most time for a connection, and for the list of models: a server that is there is quicker."""
MAX_LINE_BYTES = 1 << 20
MAX_BODY_BYTES = 4 << 20
MAX_ERROR_BYTES = 64 << 10
MAX_TAIL_BYTES = 64
DRAIN_S = 0.05
MAX_IDLE = 8
BUSY = (408, 425, 429, 500, 502, 503, 504)
"""Statuses after which the same question may be answered a little later."""
INVALID = (400, 413, 415, 422)
"""Statuses by which a server says that it does not take the question."""
LOST = (OSError, http.client.HTTPException, ValueError, AttributeError)
"""What reading from a connection raises that is lost, silent, closed by another thread or speaks no HTTP."""


@dataclass(frozen=True, slots=True)
class CallFailed:
    """A call ended without a whole answer.

    Attributes:
        text: why, for people.
        status: of HTTP; 0 where there was no response.
        wait_s: how long the server asks to be left alone.
    """

    text: str
    status: int = 0
    wait_s: float = 0.0

    @property
    def is_invalid(self) -> bool:
        """Whether the server refuses this question and would answer others."""
        return self.status in INVALID

    @property
    def is_passing(self) -> bool:
        """Whether it may be over soon."""
        return not self.status or self.status in BUSY


@dataclass(frozen=True, slots=True)
class CallEnded:
    """A call came to its end; all chunks were passed on before."""


CallEvent = dict[str, Any] | CallFailed | CallEnded
"""A chunk of a response, or how the call ended."""


class RemoteServer:
    """Speaks with one server; safe to use from several threads.

    Args:
        settings: address, key and times.
    """

    def __init__(self, settings: RemoteSettings) -> None:
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        parts = urlsplit(settings.url)
        self.url, self._timeout_s = settings.url, settings.timeout_s
        self._source = (settings.source, 0) if settings.source else None
        self._host, self._port, self._path = parts.hostname or "", parts.port, parts.path
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._headers = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json"}
        if settings.key:
            self._headers["Authorization"] = f"Bearer {settings.key}"

    def models(self) -> list[dict[str, Any]]:
        """Return the models that the server lists.

        Raises:
            BackendError: it cannot be reached, refuses, or lists none.
        """
        connection = self._connect(min(self._timeout_s, CONNECT_S))
        try:
            connection.request("GET", f"{self._path}/models", headers=self._headers)
            response = connection.getresponse()
            content = response.read(MAX_BODY_BYTES)
            found = json.loads(content).get("data") if response.status == 200 else None
        except LOST as error:
            raise BackendError(f"{self.url} lists no models: {_reason(error)}; see remote_url") from error
        finally:
            connection.close()
        if response.status != 200:
            raise BackendError(f"{self.url}/models answers {response.status}: {_message(content)}")
        models = [model for model in found or () if isinstance(model, dict) and isinstance(model.get("id"), str)]
        if not models:
            raise BackendError(f"{self.url} lists no models, got {shown(content)}; name one by remote_model")
        return models

    def take_idle(self) -> http.client.HTTPConnection | None:
        """Return a connection that was used before, which the server may have closed since."""
        with self._lock:
            return self._idle.pop() if self._idle else None

    def connect(self) -> http.client.HTTPConnection:
        """Return a new connection.

        Raises:
            BackendError: there is nobody.
        """
        return self._connect(self._timeout_s)

    def keep(self, connection: http.client.HTTPConnection) -> None:
        """Take a connection back whose response was read to its end."""
        connection.sock.settimeout(self._timeout_s)
        with self._lock:
            if len(self._idle) < MAX_IDLE:
                self._idle.append(connection)
                return
        connection.close()

    def post(self, connection: http.client.HTTPConnection, body: bytes) -> http.client.HTTPResponse:
        """Send a chat completion and return the response, whose body is still to be read."""
        connection.request("POST", f"{self._path}/chat/completions", body, self._headers)
        return connection.getresponse()

    def close(self) -> None:
        """Close the connections that nobody uses."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def __del__(self) -> None:
        self.close()

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        connect_s = min(timeout_s, CONNECT_S)
        if self._tls is not None:
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                self._host, self._port, timeout=connect_s, source_address=self._source, context=self._tls
            )
        else:
            connection = http.client.HTTPConnection(
                self._host, self._port, timeout=connect_s, source_address=self._source
            )
        try:
            connection.connect()
        except LOST as error:
            connection.close()
            raise BackendError(f"{self.url} cannot be reached: {_reason(error)}") from error
        connection.sock.settimeout(timeout_s)
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


class RemoteCall:
    """One chat completion on a thread of its own.

    Args:
        server: to ask.
        body: JSON.
        put: takes the call with each chunk and with its end, on the thread of the call.
    """

    def __init__(self, server: RemoteServer, body: bytes, put: Callable[[RemoteCall, CallEvent], None]) -> None:
        self._server, self._body, self._put = server, body, put
        self._lock = threading.Lock()
        self._is_closed = False
        self._connection: http.client.HTTPConnection | None = None
        self._socket: socket.socket | None = None
        # Daemon: one that connects cannot be interrupted, and the process must end when it is asked to.
        self._thread = threading.Thread(target=self._run, name="nvila_remote", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Let go of the answer: the server sees the connection closed, and stops."""
        with self._lock:
            self._is_closed = True
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads; it closes the rest

    def _run(self) -> None:
        try:
            end = self._ask()
        except BackendError as error:
            end = CallFailed(str(error))
        except LOST as error:
            end = CallFailed(f"{self._server.url} broke off: {_reason(error)}")
        if not isinstance(end, CallEnded) and self._connection is not None:
            self._connection.close()
        if not self._is_closed:
            self._put(self, end)

    def _ask(self) -> CallFailed | CallEnded:
        response = self._open()
        if response is None:
            return CallFailed("closed")
        if response.status != 200:
            return _failure(self._server.url, response)
        kind = response.headers.get_content_type()
        end = self._read_stream(response) if kind == "text/event-stream" else self._read_whole(response, kind)
        self._release(response, is_whole=isinstance(end, CallEnded))
        return end

    def _open(self) -> http.client.HTTPResponse | None:
        """Send the request; on a connection that was used before, which may be gone, else on a new one."""
        idle = self._server.take_idle()
        if idle is not None and self._hold(idle):
            try:
                return self._server.post(idle, self._body)
            except LOST as error:
                idle.close()
                if isinstance(error, TimeoutError):
                    raise
        fresh = self._server.connect()
        return self._server.post(fresh, self._body) if self._hold(fresh) else None

    def _hold(self, connection: http.client.HTTPConnection) -> bool:
        """Make a connection that of this call; returns whether anybody still waits for it."""
        with self._lock:
            self._connection, self._socket = connection, connection.sock
            if self._is_closed:
                connection.close()
            return not self._is_closed

    def _release(self, response: http.client.HTTPResponse, *, is_whole: bool) -> None:
        with self._lock:
            connection, self._connection, self._socket = self._connection, None, None
            is_whole = is_whole and not self._is_closed
        if connection is None:
            return
        if is_whole and not response.will_close and _is_at_its_end(connection, response):
            self._server.keep(connection)
        else:
            connection.close()

    def _read_stream(self, response: http.client.HTTPResponse) -> CallFailed | CallEnded:
        num_bytes = 0
        while line := response.readline(MAX_LINE_BYTES + 1):
            num_bytes += len(line)
            if len(line) > MAX_LINE_BYTES or num_bytes > MAX_BODY_BYTES:
                return CallFailed(f"{self._server.url} sent more than {MAX_BODY_BYTES >> 20} MiB for one answer", 200)
            data = line[5:].strip() if line.startswith(b"data:") else b""
            if data == b"[DONE]":
                return CallEnded()
            if data and (failure := self._pass_on(data)):
                return failure
        return CallEnded()  # some servers leave the last line out; whether the answer is whole shows in its chunks

    def _read_whole(self, response: http.client.HTTPResponse, kind: str) -> CallFailed | CallEnded:
        if kind != "application/json":
            return CallFailed(f"{self._server.url} must answer in JSON or server-sent events, got {shown(kind)}", 200)
        return self._pass_on(response.read(MAX_BODY_BYTES)) or CallEnded()

    def _pass_on(self, data: bytes) -> CallFailed | None:
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError):
            chunk = None
        if not isinstance(chunk, dict):
            return CallFailed(f"{self._server.url} must send JSON objects, got {shown(data)}", 200)
        if chunk.get("error"):
            return CallFailed(f"{self._server.url} says: {_message(data)}", 200)
        if not self._is_closed:
            self._put(self, chunk)
        return None


def _is_at_its_end(connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> bool:
    """Read what is behind an answer; a server that has more than a line end to say, or none yet, is not waited for."""
    try:
        connection.sock.settimeout(DRAIN_S)
        return not response.read(MAX_TAIL_BYTES).strip() and response.isclosed()
    except LOST:
        return False


def _failure(url: str, response: http.client.HTTPResponse) -> CallFailed:
    message = _message(response.read(MAX_ERROR_BYTES))
    hint = {401: "; see remote_key_file", 403: "; see remote_key_file", 404: "; see remote_url and remote_model"}
    try:
        wait_s = min(max(float(response.headers.get("Retry-After", "0")), 0.0), 60.0)
    except ValueError:
        wait_s = 0.0
    return CallFailed(
        f"{url} answers {response.status}: {message}{hint.get(response.status, '')}", response.status, wait_s
    )


def _message(content: bytes) -> str:
    """Return what an error's body says: `{"error": {"message": ...}}`, or as servers have it besides."""
    try:
        body = json.loads(content)
        error = body.get("error", body)
        text = error.get("message", error.get("detail", error)) if isinstance(error, dict) else error
    except (ValueError, AttributeError, RecursionError):
        text = content.decode(errors="replace")
    return " ".join(str(text).split())[:500]


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it is silent for too long"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
