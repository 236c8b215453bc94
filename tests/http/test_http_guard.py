"""Who gets in, and what nobody gets out."""

from __future__ import annotations

import base64
import contextlib
import http.client
import itertools
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nvila_ros.config import NodeConfig
from nvila_ros.errors import ConfigError
from nvila_ros.http.services import TOKEN_VARIABLE, access_from_config
from nvila_ros.types import Answer, FinishReason, Query
from tests.http.serving import Served, picture, scene, serving, wait_until
from tests.tiny import load_fake

TOKEN = "0123456789abcdef" * 2


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A door that other machines could reach, with a token."""
    path = tmp_path_factory.mktemp("token") / "token"
    path.write_text(f"{TOKEN}\n")
    values = {"http_host": "0.0.0.0", "http_token_file": str(path), "http_hosts": ("robot.example",)}
    with serving(load_fake, model="fake", http_origins=("http://panel.example:3000",), **values) as served:
        served.cameras["front"].show(scene())
        yield served


@pytest.fixture(scope="module")
def plain() -> Iterator[Served]:
    with serving(load_fake, model="fake", max_age_s=0.0) as served:
        served.cameras["front"].show(scene())
        yield served


def status_of(served: Served, path: str = "/v1/models", **headers: str) -> int:
    return served.request("GET", path, **headers)[0]


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "robot.example"])
def test_another_address_needs_a_token(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match="loopback address"):
        access_from_config(NodeConfig(http_host=host))
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    assert access_from_config(NodeConfig(http_host=host)).token == TOKEN


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.53"])
def test_this_machine_alone_needs_none(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert access_from_config(NodeConfig(http_host=host)).token == ""


@pytest.mark.parametrize("text", ["", "short", "with blanks in it, which no header takes"])
def test_a_token_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    with pytest.raises(ConfigError, match="http_token_file"):
        access_from_config(NodeConfig(http_token_file=str(path)))


def test_the_token_opens_the_door(guarded: Served) -> None:
    assert status_of(guarded) == 401
    assert status_of(guarded, Authorization="Bearer wrong") == 401
    assert status_of(guarded, Authorization=f"Basic {TOKEN}") == 401
    assert status_of(guarded, Authorization=f"Bearer {TOKEN}") == 200
    assert status_of(guarded, "/api/state") == 401
    assert status_of(guarded, "/metrics") == 401
    assert status_of(guarded, "/health") == 200


def test_a_browser_gets_a_cookie_for_the_token(guarded: Served) -> None:
    status, _, headers = guarded.request("GET", f"/?token={TOKEN}", Cookie="nvila_token=old")
    assert (status, headers["Location"]) == (303, "/")
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert status_of(guarded, Cookie=cookie.partition(";")[0]) == 200
    assert status_of(guarded, "/?token=wrong") == 401


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "x.local", "[::"])
def test_a_foreign_host_is_refused(plain: Served, host: str) -> None:
    status, error, _ = plain.request("GET", "/api/state", Host=host)
    assert (status, error["error"]["code"]) == (403, "unknown_host")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000", "192.168.1.7"])
def test_addresses_and_this_machine_are_known_hosts(plain: Served, host: str) -> None:
    assert status_of(plain, Host=host) == 200


def test_named_hosts_and_origins_are_let_in(guarded: Served) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert status_of(guarded, Host="robot.example:1", **bearer) == 200
    status, _, headers = guarded.request("GET", "/v1/models", Origin="http://panel.example:3000", **bearer)
    assert (status, headers["Access-Control-Allow-Origin"]) == (200, "http://panel.example:3000")
    status, _, headers = guarded.request("OPTIONS", "/v1/chat/completions", Origin="http://panel.example:3000")
    assert (status, headers["Access-Control-Allow-Methods"]) == (204, "GET, POST, PATCH, DELETE")


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://panel.example:3000"])
def test_a_foreign_origin_is_refused(plain: Served, origin: str) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}]}
    status, error, headers = plain.request("POST", "/v1/chat/completions", body, Origin=origin)
    assert (status, error["error"]["code"]) == (403, "unknown_origin")
    assert "Access-Control-Allow-Origin" not in headers


def test_the_pages_own_origin_is_let_in(plain: Served) -> None:
    host = "{}:{}".format(*plain.address)
    assert status_of(plain, Host=host, Origin=f"http://{host}") == 200


def test_other_sites_may_not_embed_pictures(plain: Served) -> None:
    path = "/api/cameras/front/latest.jpg"
    assert status_of(plain, path, Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors") == 403
    status, _, headers = plain.request("GET", path)
    assert (status, headers["Cross-Origin-Resource-Policy"]) == (200, "same-origin")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_form_of_another_site_is_no_request(plain: Served, kind: str) -> None:
    assert plain.request("POST", "/v1/chat/completions", '{"messages":[]}', Content_Type=kind)[0] == 415


@pytest.mark.parametrize(
    "path",
    [
        "/../app.py", "/%2e%2e/app.py", "/..%2fapp.py", "/page/../app.py", "//etc/passwd", "/app.py", "/.git/config",
        "/index.html%00.js", "/%5c..%5capp.py",
    ],
)  # fmt: skip
def test_no_file_of_the_machine_is_served(plain: Served, path: str) -> None:
    assert plain.request("GET", path)[0] == 404


ADDRESSES = [
    "file:///etc/passwd",
    "/etc/passwd",
    "http://127.0.0.1:1/x.jpg",
    "https://example.org/x.jpg",
    "ftp://x/y",
    "concat:/etc/passwd",
    "data:image/jpeg,plain",
    "data:;base64,####",
    "data:image/svg+xml;base64,PHN2Zz48aW1hZ2UgaHJlZj0iZmlsZTovLy9ldGMvcGFzc3dkIi8+PC9zdmc+",
    "nvila:file/etc/passwd",
    "nvila:camera/../x",
]


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("kind", ["image_url", "video_url"])
def test_no_address_is_fetched(plain: Served, address: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = socket.getaddrinfo

    def find(host: Any, port: Any, *args: Any) -> Any:
        assert (host, port) == plain.address, "something connects elsewhere"
        return known(host, port, *args)

    content = [{"type": "text", "text": "x"}, {"type": kind, kind: {"url": address}}]
    with monkeypatch.context() as patch:
        patch.setattr("socket.getaddrinfo", find)
        status, error = plain.ask(content)

    assert status == 400
    assert error["error"]["type"] == "invalid_request_error"


PLAYLISTS = [b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", b"ffconcat version 1.0\nfile '/etc/passwd'\n"]


@pytest.mark.parametrize("content", PLAYLISTS)
def test_a_playlist_reaches_nothing(plain: Served, content: bytes) -> None:
    url = f"data:video/mp4;base64,{base64.b64encode(content).decode()}"
    status, error = plain.ask([{"type": "text", "text": "x"}, {"type": "video_url", "video_url": {"url": url}}])
    assert (status, error["error"]["code"]) == (400, "invalid_media")


def test_a_body_too_large_is_413(plain: Served) -> None:
    status, error, _ = plain.request("POST", "/v1/chat/completions", b'{"x": "' + b"a" * (33 << 20) + b'"}')
    assert status == 413
    assert error["error"]["type"] == "invalid_request_error"


def test_too_many_pictures_are_413(plain: Served) -> None:
    status, error = plain.ask([picture(scene()[:8, :8])] * 65)
    assert (status, error["error"]["code"]) == (413, "too_many_images")


def test_connections_are_bounded_and_free_again(plain: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvila_ros.http.connections.MAX_CLIENT_CONNECTIONS", 8)
    opened = [socket.create_connection(plain.address) for _ in range(8)]
    wait_until(lambda: not answers(plain), "a further one is closed at once")
    for each in opened:
        each.close()
    wait_until(lambda: answers(plain), "there is room again")


def answers(served: Served) -> bool:
    with contextlib.suppress(ConnectionError, http.client.BadStatusLine):
        return status_of(served, "/health") == 200
    return False


def test_a_slow_reader_is_dropped(slow: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that follows the events and reads none of them costs a bounded buffer, and then its connection."""
    monkeypatch.setattr("nvila_ros.http.sse.SEND_S", 0.2)
    with socket.socket() as viewer:
        viewer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        viewer.connect(slow.address)
        viewer.sendall(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        viewer.recv(100)
        num_open = slow.server.door.num_connections
        wait_until(lambda: num_open() == 1, "it follows")
        numbers = itertools.count()
        wait_until(lambda: say_much(slow, next(numbers)) or num_open() == 0, "it is dropped")


def say_much(served: Served, number: int) -> bool:
    """Let there be an answer of 4 kB; False."""
    query = Query(query_id=f"much{number}", question="x" * 4000)
    for listener in served.server.answering.listeners:
        listener.on_answer(Answer(query=query, finish_reason=FinishReason.STOP))
    return False
