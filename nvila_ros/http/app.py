"""The application: which path is served by what, and what holds for all of them."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web

from nvila_ros.errors import NvilaError
from nvila_ros.http.api import Api
from nvila_ros.http.chat import ChatEndpoint
from nvila_ros.http.chat_request import LIVE_MODEL
from nvila_ros.http.errors import ApiError
from nvila_ros.http.guard import COOKIE, HEADERS, Guard, is_login
from nvila_ros.http.limits import MAX_BODY_BYTES
from nvila_ros.http.metrics import Metrics
from nvila_ros.http.openapi import document
from nvila_ros.http.services import Services
from nvila_ros.http.views import Json
from nvila_ros.paths import version
from nvila_ros.serving.model_loader import ModelState

LOG = logging.getLogger(__name__)
PAGE = Path(__file__).with_name("page")
KINDS = {
    ".css": "text/css",
    ".html": "text/html",
    ".ico": "image/x-icon",
    ".js": "text/javascript",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}
"""Files of the page; nothing else is served."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Plain:
    """Handlers of what is neither chat nor the page's own.

    Args:
        services: of the process.
        guard: knows the token.
        metrics: of the process.
        is_draining: whether the process ends.
    """

    def __init__(self, services: Services, guard: Guard, metrics: Metrics, is_draining: Callable[[], bool]) -> None:
        self._services, self._guard, self._metrics, self._is_draining = services, guard, metrics, is_draining
        self._created = int(time.time())

    async def health(self, request: web.Request) -> web.Response:
        """Say that the process is alive; 503 where it is, but nothing is answered until somebody acts."""
        faults = list(self._services.faults())
        return web.json_response(
            {"status": "failed" if faults else "ok", "faults": faults}, status=503 if faults else 200
        )

    async def ready(self, request: web.Request) -> web.Response:
        """Say whether questions are answered: a model is loaded, and every camera was seen."""
        missing = self._missing()
        return web.json_response({"ready": not missing, "missing": missing}, status=503 if missing else 200)

    def _missing(self) -> list[str]:
        status, buffer = self._services.status(), self._services.answering.buffer
        missing = ["the process is ending"] if self._is_draining() else []
        refusal = self._services.refusal() or ("" if status.model else f"the model is {status.state.name.lower()}")
        missing += [refusal] if refusal else []
        unseen = [name for name in self._services.answering.config().cameras if buffer.newest_ns([name]) is None]
        return missing + [f"no frame of {name} has come" for name in unseen]

    async def models(self, request: web.Request) -> web.Response:
        """List the model, and `live`: the same, asked about the cameras where a question shows nothing."""
        return web.json_response({"object": "list", "data": [self._model(name) for name in self._names()]})

    async def model(self, request: web.Request) -> web.Response:
        """Show one of them."""
        name = request.match_info["name"]
        if name not in self._names():
            raise ApiError(404, f"there is no model {name[:80]!r}; there are {self._names()}", code="model_not_found")
        return web.json_response(self._model(name))

    def _names(self) -> list[str]:
        model = self._services.status().model
        return [model, LIVE_MODEL] if model else []

    def _model(self, name: str) -> Json:
        status = self._services.status()
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "nvila_ros",
            "root": status.model,
            "nvila": {
                "backend": status.backend,
                "precision": status.precision,
                "is_ready": status.state is ModelState.READY,
                "cameras": list(self._services.answering.config().cameras),
            },
        }

    async def version(self, request: web.Request) -> web.Response:
        """Say which version of this package serves."""
        return web.json_response({"version": version()})

    async def metrics(self, request: web.Request) -> web.Response:
        """Show what Prometheus reads."""
        return web.Response(
            body=self._metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def openapi(self, request: web.Request) -> web.Response:
        """Show what this door serves, as an OpenAPI document."""
        return web.json_response(document(version()))

    async def page(self, request: web.Request) -> web.StreamResponse:
        """Serve a file of the page; `/?token=...` keeps the token in a cookie and leads to the address without it."""
        if is_login(request):
            return self._log_in(request.query["token"])
        name = request.match_info.get("name") or "index.html"
        path = PAGE / name
        if (
            not re.fullmatch(r"(\w[\w.-]*/)*\w[\w.-]*", name, re.ASCII)
            or path.suffix not in KINDS
            or not path.is_file()
        ):
            raise ApiError(404, f"there is nothing at {request.path[:80]!r}; see /openapi.json", code="not_found")
        headers = {"Content-Type": KINDS[path.suffix], "Cache-Control": "no-cache"}
        response = web.Response(body=path.read_bytes(), headers=headers)
        response.enable_compression()  # a third of the size, for a phone on a robot's wireless network
        return response

    def _log_in(self, given: str) -> web.Response:
        if not self._guard.is_token(given):
            raise ApiError(401, "this is not the token", code="no_token")
        response = web.Response(status=303, headers={"Location": "/"})
        response.set_cookie(COOKIE, given, httponly=True, samesite="Strict")
        return response

    def routes(self) -> list[web.RouteDef]:
        """Return what is served where; the page comes last, since it takes what is left."""
        return [
            web.get("/health", self.health),
            web.get("/ping", self.health),
            web.get("/ready", self.ready),
            web.get("/version", self.version),
            web.get("/metrics", self.metrics),
            web.get("/openapi.json", self.openapi),
            web.get("/v1/models", self.models),
            web.get("/v1/models/{name:.+}", self.model),
            web.get("/", self.page),
            web.get("/{name:.+}", self.page),
        ]


def make_app(chat: ChatEndpoint, api: Api, plain: Plain, guard: Guard) -> web.Application:
    """Return the application."""
    app = web.Application(middlewares=[_outer(guard)], client_max_size=MAX_BODY_BYTES)
    app.on_response_prepare.append(partial(_add_headers, guard))
    app.add_routes(
        [
            web.post("/v1/chat/completions", chat.complete),
            web.post("/chat/completions", chat.complete),  # as some clients know VILA's own server
            *api.routes(),
            *plain.routes(),
        ]
    )
    return app


def _outer(guard: Guard) -> Any:
    @web.middleware
    async def outer(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Check who asks, and turn errors into OpenAI's form."""
        try:
            guard.check(request)
            if request.method == "OPTIONS":
                response: web.StreamResponse = web.Response(status=204)
            else:
                response = await handler(request)
        except ApiError as error:
            response = error.response()
        except web.HTTPException as error:
            response = _of_aiohttp(error)
        except NvilaError as error:
            response = ApiError(400, str(error)).response()
        except ConnectionResetError:
            raise  # the client has left
        except Exception:  # one request must not end the others
            LOG.exception("path=%s failed", request.path)
            response = ApiError(500, "this request failed here; see the log", code="failed").response()
        return response

    return outer


async def _add_headers(guard: Guard, request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS | _cors(guard.allowed_origin(request)))
    if "X-Request-Id" in request.headers:
        response.headers["X-Request-Id"] = _printable(request.headers["X-Request-Id"])


def _of_aiohttp(error: web.HTTPException) -> web.StreamResponse:
    """Return an error that aiohttp found in our form."""
    if error.status < 400:
        return error
    allowed = error.headers.get("Allow")
    response = ApiError(error.status, f"{error.reason}; see /openapi.json").response()
    if allowed:
        response.headers["Allow"] = allowed
    return response


def _cors(origin: str) -> dict[str, str]:
    if not origin:
        return {}
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Headers": "Authorization, Content-Type, X-Nvila-Deadline",
        "Access-Control-Allow-Methods": "GET, POST, PATCH, DELETE",
        "Cross-Origin-Resource-Policy": "cross-origin",
        "Vary": "Origin",
    }


def _printable(text: str) -> str:
    return "".join(char for char in text[:128] if char.isascii() and char.isprintable())
