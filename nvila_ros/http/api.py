"""What the page in the browser uses beside the chat: state, what happens, pictures, standing queries."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from nvila_ros.config import from_dict
from nvila_ros.errors import ConfigError, FrameError, NvilaError
from nvila_ros.http import fields
from nvila_ros.http.chat import read_body
from nvila_ros.http.connections import begin_asking, end_asking
from nvila_ros.http.errors import ApiError
from nvila_ros.http.feed import Feed, dump
from nvila_ros.http.frames import Picture, Pictures
from nvila_ros.http.limits import MAX_FRAME_WAIT_S, MAX_VIEWERS, NUM_KEPT, STATE_S
from nvila_ros.http.services import Services
from nvila_ros.http.sse import ServerEvents
from nvila_ros.http.views import query_view, standing_view, state_view
from nvila_ros.standing.query import StandingQuery


class Api:
    """Handlers of `/api`.

    Args:
        services: of the process.
        feed: what happens.
        pictures: of the cameras.
    """

    def __init__(self, services: Services, feed: Feed, pictures: Pictures) -> None:
        self._services, self._feed, self._pictures = services, feed, pictures
        self._num_viewers = 0
        self._state_s, self._state = 0.0, ""

    def routes(self) -> list[web.RouteDef]:
        """Return what is served where."""
        return [
            web.get("/api/state", self.state),
            web.get("/api/events", self.events),
            web.get("/api/answers", self.answers),
            web.get("/api/answers/{query_id}", self.answer),
            web.get("/api/cameras/{name:.+}/latest.jpg", self.latest),
            web.get("/api/cameras/{name:.+}/frame", self.frame),
            web.get("/api/standing", self.list_standing),
            web.post("/api/standing", self.add_standing),
            web.patch("/api/standing/{name:.+}", self.change_standing),
            web.delete("/api/standing/{name:.+}", self.remove_standing),
        ]

    async def state(self, request: web.Request) -> web.Response:
        """Show all that a viewer needs at first sight."""
        return _json(dump(state_view(self._services)))

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Stream what happens: the state first and when it changes, then answers, events and changes as they come."""
        last = _whole(request.headers.get("Last-Event-ID") or request.query.get("last", ""), "Last-Event-ID")
        if self._num_viewers >= MAX_VIEWERS:
            raise ApiError(429, f"at most {MAX_VIEWERS} may follow the events", code="too_many_viewers")
        self._num_viewers += 1
        stream = ServerEvents(request)
        following = asyncio.ensure_future(asyncio.sleep(0))
        try:
            await stream.begin()
            lock = asyncio.Lock()
            following = asyncio.ensure_future(self._follow(stream, lock, last))
            await self._send_states(stream, lock, following)
        finally:
            following.cancel()
            self._num_viewers -= 1
        return stream.response

    async def _follow(self, stream: ServerEvents, lock: asyncio.Lock, last: int | None) -> None:
        async for item in self._feed.follow(last):
            async with lock:
                if item is None:
                    await stream.ping()
                elif isinstance(item, int):
                    await stream.send([dump({"num_missed": item})], kind="missed")
                else:
                    await stream.send([item.data], kind=item.kind, number=item.number)

    async def _send_states(self, stream: ServerEvents, lock: asyncio.Lock, following: asyncio.Future[Any]) -> None:
        """Send the state each time that it is another, until the stream ends."""
        sent = ""
        while not following.done():
            state = self._shared_state()
            if state != sent:
                async with lock:
                    await stream.send([state], kind="state")
                sent = state
            await asyncio.wait({following}, timeout=STATE_S)
        await following

    def _shared_state(self) -> str:
        """Return the state, made once in `STATE_S` for all viewers."""
        now_s = time.monotonic()
        if now_s - self._state_s >= STATE_S / 2:
            self._state_s, self._state = now_s, dump(state_view(self._services))
        return self._state

    async def answers(self, request: web.Request) -> web.Response:
        """Show the last answers, oldest first."""
        limit = _whole(request.query.get("limit", ""), "limit")
        return _json(dump({"answers": self._feed.answers(min(limit or NUM_KEPT, NUM_KEPT))}))

    async def answer(self, request: web.Request) -> web.Response:
        """Show one answer that is still kept."""
        found = self._feed.answer(request.match_info["query_id"])
        if found is None:
            raise ApiError(404, "no answer of that name is kept; see /api/answers", code="no_answer")
        return _json(dump(found))

    async def latest(self, request: web.Request) -> web.Response:
        """Show the newest frame of a camera; with `after_ns`, wait for one that is another."""
        camera, width = self._camera(request), _width(request)
        after = _whole(request.query.get("after_ns", ""), "after_ns")
        wait_s = MAX_FRAME_WAIT_S if after is not None else 0.0
        begin_asking(request)  # nobody waits for the picture of a viewer who has left
        try:
            picture = await self._shown(self._pictures.newest(camera, width, -1 if after is None else after, wait_s))
        finally:
            end_asking(request)
        if picture is None and after is not None:
            return web.Response(status=204)
        return _picture(picture, "no-store")

    async def frame(self, request: web.Request) -> web.Response:
        """Show the frame of a stamp."""
        camera, width = self._camera(request), _width(request)
        stamp_ns = _whole(request.query.get("stamp_ns", ""), "stamp_ns")
        if stamp_ns is None:
            raise fields.invalid("stamp_ns", "nanoseconds", "")
        return _picture(
            await self._shown(self._pictures.at(camera, width, stamp_ns)), "private, max-age=3600, immutable"
        )

    async def _shown(self, picture: Any) -> Picture | None:
        try:
            found: Picture | None = await picture
        except FrameError as error:
            raise ApiError(404, str(error), code="no_frames") from error
        return found

    async def list_standing(self, request: web.Request) -> web.Response:
        """Show all standing queries."""
        return _json(dump({"queries": [standing_view(state) for state in self._services.standing.states()]}))

    async def add_standing(self, request: web.Request) -> web.Response:
        """Let a query stand."""
        body = fields.parse_object(await read_body(request))
        is_replacing = fields.flag(body, "replace")
        query = _standing_query({name: value for name, value in body.items() if name != "replace"})
        done = asyncio.get_running_loop().create_future()

        def settle(error: str) -> None:
            if not done.done():  # else the client has left
                done.set_result(error)

        def on_done(error: str) -> None:
            done.get_loop().call_soon_threadsafe(settle, error)

        try:
            complete = self._services.standing.add(query, on_done, is_replacing=is_replacing)
        except NvilaError as error:
            raise ApiError(400, str(error), code="invalid_query") from error
        _check(await done)
        return _json(dump({"query": query_view(complete)}), status=201)

    async def change_standing(self, request: web.Request) -> web.Response:
        """Ask a standing query again, or no more for now."""
        body = fields.parse_object(await read_body(request))
        if body.keys() != {"enabled"} or not isinstance(body["enabled"], bool):
            raise fields.invalid("enabled", "true or false, and the only field", body)
        _check(self._services.standing.enable(request.match_info["name"], body["enabled"]))
        return _json(dump({"enabled": body["enabled"]}))

    async def remove_standing(self, request: web.Request) -> web.Response:
        """Forget a standing query."""
        _check(self._services.standing.remove(request.match_info["name"]))
        return web.Response(status=204)

    def _camera(self, request: web.Request) -> str:
        name, known = request.match_info["name"], self._services.answering.config().cameras
        if name not in known:
            raise ApiError(404, f"there is no camera {name[:80]!r}; there are {list(known)}", code="no_camera")
        return name


def _standing_query(values: Mapping[str, Any]) -> StandingQuery:
    try:
        query: StandingQuery = from_dict(StandingQuery, values)
    except (ConfigError, TypeError) as error:
        raise ApiError(400, str(error), code="invalid_query") from error
    return query


def _check(error: str) -> None:
    if error:
        is_unknown = error.startswith("no standing query")
        raise ApiError(404 if is_unknown else 400, error, code="no_query" if is_unknown else "invalid_query")


def _whole(text: str, name: str) -> int | None:
    if not text:
        return None
    if not re.fullmatch(r"\d{1,19}", text, re.ASCII) or int(text) >= 1 << 63:
        raise fields.invalid(name, "a whole number", text)
    return int(text)


def _width(request: web.Request) -> int:
    return Pictures.width_for(_whole(request.query.get("width", ""), "width") or 0)


def _picture(picture: Picture | None, caching: str) -> web.Response:
    if picture is None:
        raise ApiError(404, "the buffer holds no such frame", code="no_frames")
    headers = {"Cache-Control": caching, "X-Nvila-Stamp-Ns": str(picture.stamp_ns)}
    return web.Response(body=picture.content, content_type="image/jpeg", headers=headers)


def _json(text: str, status: int = 200) -> web.Response:
    return web.Response(
        text=text, status=status, content_type="application/json", headers={"Cache-Control": "no-store"}
    )
