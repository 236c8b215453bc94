"""Who gets in: hosts, origins, tokens, and how much of each.

A page on another site that a browser on this machine shows must not reach the door, neither by a name of its own that
it lets point here (DNS rebinding: the Host header gives it away) nor by a request across sites (the Origin header
does). Without a token, that and the loopback address are the protection.
"""

from __future__ import annotations

import hmac
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from urllib.parse import urlsplit

from aiohttp import web

from nvila_ros.http.errors import ApiError
from nvila_ros.http.limits import MAX_CLIENT_REQUESTS
from nvila_ros.http.services import Access

COOKIE = "nvila_token"
OPEN_PATHS = frozenset({"/health", "/ready"})
"""What needs no token: they say yes or no, and an orchestrator that restarts the process has none."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """Decides over each request before anything of it is read.

    Args:
        access: who may.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._names = {"localhost", socket.gethostname().lower(), *map(str.lower, access.hosts)}
        self._names |= {f"{name}.local" for name in (socket.gethostname().lower(),)}
        self._num_open: Counter[str] = Counter()

    def check(self, request: web.Request) -> None:
        """Let a request in.

        Raises:
            ApiError: it comes by a foreign name, from a foreign page, or without the token.
        """
        self._check_host(request.headers.get("Host", ""))
        self._check_origin(request)
        is_free = request.path in OPEN_PATHS or request.method == "OPTIONS" or is_login(request)
        if self._access.token and not is_free and not self.knows_token(request):
            raise ApiError(401, "a token is needed: send the header Authorization: Bearer TOKEN", code="no_token")

    def allowed_origin(self, request: web.Request) -> str:
        """Return the origin of another page that may use the door, or an empty text."""
        origin = request.headers.get("Origin", "")
        return origin if origin and origin in self._access.origins else ""

    def is_token(self, given: str) -> bool:
        """Whether this is the token; takes as long whichever of its characters differ."""
        return hmac.compare_digest(given.encode("utf-8", "replace"), self._access.token.encode())

    def knows_token(self, request: web.Request) -> bool:
        """Whether a request shows the token, in its header or, of the page, in its cookie."""
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self.is_token(given.strip())
        return self.is_token(request.cookies.get(COOKIE, ""))

    @contextmanager
    def one_of(self, request: web.Request) -> Iterator[None]:
        """Count a question while it is open.

        Raises:
            ApiError: its client has too many.
        """
        client = request.remote or ""
        if self._num_open[client] >= MAX_CLIENT_REQUESTS:
            raise ApiError(429, f"at most {MAX_CLIENT_REQUESTS} questions of a client may be open", code="client_busy")
        self._num_open[client] += 1
        try:
            yield
        finally:
            self._num_open[client] -= 1
            if not self._num_open[client]:
                del self._num_open[client]

    def _check_host(self, host: str) -> None:
        name = _host_name(host)
        if not name or not (_is_address(name) or name in self._names):
            raise ApiError(
                403,
                f"the Host header must be an address or a known name, got {host[:80]!r}; add the name to http_hosts",
                code="unknown_host",
            )

    def _check_origin(self, request: web.Request) -> None:
        origin = request.headers.get("Origin")
        if origin is None:
            is_foreign = request.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site")
            if is_foreign and request.headers.get("Sec-Fetch-Mode") != "navigate":
                raise ApiError(403, "other sites may not embed what this door shows", code="unknown_origin")
        elif origin not in self._access.origins and origin.partition("://")[2] != request.headers.get("Host"):
            raise ApiError(
                403,
                f"pages of {origin[:80]!r} may not use this door; add the origin to http_origins",
                code="unknown_origin",
            )


def is_login(request: web.Request) -> bool:
    """Whether a browser opens the page with the token in its address, which is looked at there."""
    return request.path == "/" and "token" in request.query


def _host_name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
