"""A server on a real socket that answers as it is told, with what other engines send; it keeps what it was asked."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WAIT_S = 60.0
Reply = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class ScriptedServer:
    """What is said and heard.

    Attributes:
        url: base of the API.
        script: replies to chat completions, in order; the last one goes on.
        bodies: of the requests.
        headers: likewise.
        num_connections: that were opened.
        left: set once a client has left amid an answer.
        owner: of the only model.
        most_open: chat completions that were in progress at once.
    """

    url: str = ""
    script: Sequence[Reply] = ()
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    num_connections: int = 0
    left: threading.Event = field(default_factory=threading.Event)
    owner: str = "somebody"
    num_open: int = 0
    most_open: int = 0
    closed: threading.Event = field(default_factory=threading.Event)


@contextmanager
def scripted_server(
    *script: Reply, owner: str = "somebody", tls: ssl.SSLContext | None = None
) -> Iterator[ScriptedServer]:
    """Serve a script."""
    told = ScriptedServer(script=script, owner=owner)

    class ScriptHandler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            told.num_connections += 1
            self.told = told

        def do_GET(self) -> None:
            send_json({"data": [{"id": "big-model", "owned_by": told.owner}]})(self)

        def do_POST(self) -> None:
            told.headers.append(dict(self.headers))
            told.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            told.num_open += 1
            told.most_open = max(told.most_open, told.num_open)
            told.script[min(len(told.bodies), len(told.script)) - 1](self)
            told.num_open -= 1

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), ScriptHandler)
    server.daemon_threads = True
    told.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}/v1"
    if tls is not None:  # the handshake is made by the thread of the connection, not by the one that accepts
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield told
    finally:
        told.closed.set()
        server.shutdown()
        thread.join()
        server.server_close()


def send_json(body: Any, status: int = 200, **headers: str) -> Reply:
    """Answer at once."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content_Type": "application/json", **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return reply


def error(status: int, text: str, **headers: str) -> Reply:
    """Answer by an error in OpenAI's form."""
    return send_json({"error": {"message": text}}, status, **headers)


def stream(*chunks: Any, is_whole: bool = True) -> Reply:
    """Stream chunks; one that is not whole breaks off behind them."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        begin_stream(handler)
        for chunk in chunks:
            send_chunk(handler, chunk)
        if is_whole:
            send_data(handler, b"[DONE]")
        handler.wfile.write(b"0\r\n\r\n" if is_whole else b"")
        handler.close_connection = not is_whole

    return reply


def stream_for_ever(handler: BaseHTTPRequestHandler) -> None:
    """Stream words until the client leaves."""
    told: ScriptedServer = handler.told  # type: ignore[attr-defined]
    begin_stream(handler)
    try:
        while not told.closed.wait(0.005):
            send_chunk(handler, text("word "))
    except OSError:
        told.left.set()
        handler.close_connection = True


def silence(handler: BaseHTTPRequestHandler) -> None:
    """Say nothing until the test is over."""
    told: ScriptedServer = handler.told  # type: ignore[attr-defined]
    told.closed.wait(WAIT_S)
    handler.close_connection = True


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    """Close the connection instead of an answer."""
    handler.close_connection = True


def begin_stream(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "text/event-stream; charset=utf-8")
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()


def send_chunk(handler: BaseHTTPRequestHandler, chunk: Any) -> None:
    send_data(handler, chunk if isinstance(chunk, bytes) else json.dumps(chunk).encode())


def send_data(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    line = b"data: " + data + b"\n\n"
    handler.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
    handler.wfile.flush()


def text(content: str, tokens: Sequence[tuple[str, float, dict[str, float]]] = ()) -> dict[str, Any]:
    """Return a chunk with text, and tokens with the likeliest others, as engines report them."""
    listed = [
        {
            "token": token,
            "logprob": logprob,
            "bytes": list(token.encode()),
            "top_logprobs": [{"token": t, "logprob": lp, "bytes": list(t.encode())} for t, lp in top.items()],
        }
        for token, logprob, top in tokens
    ]
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": None, "logprobs": {"content": listed}}
    return {"object": "chat.completion.chunk", "model": "big-model", "choices": [choice]}


def end(reason: str = "stop", **usage: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the last chunks of a stream."""
    choice = {"index": 0, "delta": {}, "finish_reason": reason}
    head = {"object": "chat.completion.chunk", "model": "big-model"}
    return {**head, "choices": [choice]}, {**head, "choices": [], "usage": usage or None}
