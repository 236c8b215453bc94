"""`POST /v1/chat/completions`: one question on its way through the queue, and back as JSON or as a stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from aiohttp import web

from nvila_ros.errors import NvilaError
from nvila_ros.http import fields
from nvila_ros.http.chat_answer import Completion
from nvila_ros.http.chat_request import MAX_DEADLINE_S, ChatRequest, read_chat
from nvila_ros.http.connections import begin_asking, end_asking
from nvila_ros.http.errors import ApiError, unanswered
from nvila_ros.http.feed import dump
from nvila_ros.http.guard import Guard
from nvila_ros.http.limits import BODY_S
from nvila_ros.http.services import Services
from nvila_ros.http.sse import ServerEvents
from nvila_ros.types import Answer, Piece

DEADLINE_HEADER = "X-Nvila-Deadline"
SMALL_BYTES = 16 << 10
"""Bodies up to this are read on the loop's own thread."""
Items = asyncio.Queue


class ChatEndpoint:
    """Answers chat completions.

    Args:
        services: of the process.
        guard: counts the questions of each client.
        is_draining: returns whether the process ends.

    Attributes:
        num_open: requests in progress.
    """

    def __init__(self, services: Services, guard: Guard, is_draining: Callable[[], bool]) -> None:
        self._services, self._guard, self._is_draining = services, guard, is_draining
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="nvila_requests")
        self.num_open = 0

    def close(self) -> None:
        """End the thread that reads large bodies."""
        self._readers.shutdown(wait=False, cancel_futures=True)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Answer one request; if its client leaves, the query is canceled."""
        with self._guard.one_of(request):
            self._check_open()
            chat = await self._read(request)
            self._check_loaded(chat)
            begin_asking(request)
            self.num_open += 1
            try:
                return await self._answer(request, chat)
            finally:
                self.num_open -= 1
                end_asking(request)

    async def _read(self, request: web.Request) -> ChatRequest:
        content = await read_body(request)
        deadline_s = _deadline_of(request)
        read = partial(_parse, content, self._services, deadline_s)
        if len(content) <= SMALL_BYTES:
            return read()
        return await asyncio.get_running_loop().run_in_executor(self._readers, read)

    def _check_open(self) -> None:
        """Refuse at once what would be refused, or wait for nobody knows how long.

        Raises:
            ApiError: there is no model any more, or the queue is full.
        """
        if self._is_draining():
            raise ApiError(503, "the process is ending; ask again, or another one", code="draining")
        refusal = self._services.refusal()
        if refusal:
            raise ApiError(503, refusal, code="not_ready")
        busy = self._services.answering.scheduler.refusal()
        if busy:
            raise ApiError(429, busy, code="queue_full")

    def _check_loaded(self, chat: ChatRequest) -> None:
        """Let a question wait for a model that is being loaded only where it says for how long.

        Raises:
            ApiError: it does not.
        """
        status = self._services.status()
        if not status.model and chat.query.deadline_ns is None:
            raise ApiError(
                503,
                f"the model is being loaded: {status.text}; ask again, or wait for it by deadline_s",
                code="not_ready",
            )

    async def _answer(self, request: web.Request, chat: ChatRequest) -> web.StreamResponse:
        answering, loop = self._services.answering, asyncio.get_running_loop()
        items: Items[Piece | Answer] = asyncio.Queue()

        def put(item: Piece | Answer) -> None:
            try:
                loop.call_soon_threadsafe(items.put_nowait, item)
            except RuntimeError:  # the loop is closed, and nobody waits
                return

        completion = Completion(chat, lambda: self._services.status().model)
        is_pieced = chat.is_stream and not completion.is_whole
        asked = answering.request(chat.query, put, put if is_pieced else None, turns=chat.turns)
        is_answered = False
        try:
            answering.submit([asked])
            if chat.is_stream:
                response = await self._stream(request, completion, items)
            else:
                response = await self._whole(completion, items)
            is_answered = True
            return response
        finally:
            if not is_answered:
                answering.scheduler.cancel(chat.query.query_id, time.monotonic_ns())

    async def _whole(self, completion: Completion, items: Items[Piece | Answer]) -> web.Response:
        answer = await items.get()
        assert isinstance(answer, Answer), "pieces were not asked for"
        error = unanswered(answer)
        if error is not None:
            raise error
        return web.Response(text=dump(completion.whole(answer, self._now_ns())), content_type="application/json")

    async def _stream(
        self, request: web.Request, completion: Completion, items: Items[Piece | Answer]
    ) -> web.StreamResponse:
        """Stream an answer; one that has an error before its first piece is an error of HTTP."""
        batch = [await items.get()]
        if isinstance(batch[0], Answer) and (error := unanswered(batch[0])) is not None:
            raise error
        stream = ServerEvents(request)
        await stream.begin()
        while True:
            while not items.empty():
                batch.append(items.get_nowait())
            await stream.send([dump(chunk) for item in batch for chunk in self._chunks(completion, item)])
            if isinstance(batch[-1], Answer):
                break
            batch = [await items.get()]
        await stream.send(["[DONE]"])
        await stream.end()
        return stream.response

    def _chunks(self, completion: Completion, item: Piece | Answer) -> list[dict[str, object]]:
        if isinstance(item, Piece):
            is_empty = not item.text and not item.logprobs
            return [] if is_empty else [completion.piece(item.text, item.logprobs)]
        error = unanswered(item)
        return [error.body] if error is not None else completion.end(item, self._now_ns())

    def _now_ns(self) -> int:
        return self._services.answering.clock_ns()


async def read_body(request: web.Request) -> bytes:
    """Return the body of a request that is JSON.

    Raises:
        ApiError: it says to be something else, is too large, or comes too slowly.
    """
    if request.content_type != "application/json":
        raise ApiError(415, f"Content-Type must be application/json, got {request.content_type[:80]!r}")
    try:
        return await asyncio.wait_for(request.read(), BODY_S)
    except (TimeoutError, asyncio.TimeoutError) as error:
        raise ApiError(408, f"the body must arrive within {BODY_S:g} s") from error


def _parse(content: bytes, services: Services, deadline_s: float | None) -> ChatRequest:
    try:
        return read_chat(fields.parse_object(content), services.answering, deadline_s)
    except NvilaError as error:
        raise ApiError(400, str(error)) from error


def _deadline_of(request: web.Request) -> float | None:
    text = request.headers.get(DEADLINE_HEADER)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MAX_DEADLINE_S:
        raise fields.invalid(DEADLINE_HEADER, f"seconds in (0, {MAX_DEADLINE_S:g}]", text)
    return seconds
