"""What a client iterates: the pieces of one answer, and the events of standing queries."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Generic, TypeVar

from nvila_ros.errors import ServerTimeoutError
from nvila_ros.ros.client_future import GRACE_S, ClientFuture, NodeWaiter
from nvila_ros.ros.client_messages import StandingEvent
from nvila_ros.types import Answer

T = TypeVar("T")
MAX_EVENTS = 1024
FOREVER_S = threading.TIMEOUT_MAX


class Stream(Generic[T]):
    """Values that callbacks bring, taken by `for` in any thread or by `async for` in a coroutine, until it ends."""

    def __init__(self, waiter: NodeWaiter, what: str) -> None:
        self._waiter, self._what = waiter, what
        self._values: deque[T] = deque()
        self._lock = threading.Lock()
        self._arrival: ClientFuture[None] | None = None
        self._has_ended = False

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        self._waiter.wait(lambda: bool(self._values) or self._has_ended, self._end_s())
        if not self._values:
            self._raise_failure()
            raise StopIteration
        return self._values.popleft()

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        while not self._values and not self._has_ended:
            await self._next_arrival()
        if not self._values:
            self._raise_failure()
            raise StopAsyncIteration
        return self._values.popleft()

    def _next_arrival(self) -> ClientFuture[None]:
        with self._lock:
            if self._arrival is None or self._arrival.done():
                self._arrival = ClientFuture(self._waiter, self._what, FOREVER_S)
                if self._values or self._has_ended:
                    self._arrival.settle(None)
            return self._arrival

    def _put(self, value: T) -> None:
        self._values.append(value)
        self._announce()

    def _end(self) -> None:
        self._has_ended = True
        self._announce()

    def _announce(self) -> None:
        with self._lock:
            arrival = self._arrival
        if arrival is not None:
            arrival.settle(None)
        self._waiter.notify()

    def _end_s(self) -> float:
        """Return how long a value may be waited for, `time.monotonic`."""
        return math.inf

    def _raise_failure(self) -> None:
        """Raise why it ended before its time."""


class AnswerStream(Stream[str]):
    """The pieces of one answer's text, as the model generates them; joined they are the text of `answer`.

    Leaving a `with` block, or `cancel`, ends the work at the model's next token. Iteration ends with the answer, and
    raises what `answer.result()` raises.

    Attributes:
        answer: the whole answer; of one that was canceled here, as far as it came.
    """

    def __init__(self, waiter: NodeWaiter, answer: ClientFuture[Answer], cancel: Callable[[], None]) -> None:
        super().__init__(waiter, "the next piece of the answer")
        self.answer = answer
        self._request_cancel = cancel
        self._next_index = 0
        self._early: dict[int, str] = {}
        self._text = ""
        answer.add_done_callback(self._on_answer)

    def cancel(self) -> None:
        """Ask the node to stop; what it has said until then is still delivered."""
        if not self.answer.done():
            self._request_cancel()

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(self, *args: object) -> None:
        self.cancel()

    def on_piece(self, index: int, text: str) -> None:
        """Take a piece; one that overtook others waits for them."""
        self._early[index] = text
        while self._next_index in self._early and not self._has_ended:
            self._take(self._early.pop(self._next_index))
            self._next_index += 1

    def _take(self, text: str) -> None:
        self._text += text
        if text:
            self._put(text)

    def _on_answer(self, future: Any) -> None:
        """End, after what the pieces lack: feedback and result travel apart, so that one may overtake the other."""
        if not future.cancelled() and future.exception() is None:
            text = future.result().text
            if text.startswith(self._text):
                self._take(text[len(self._text) :])
        self._end()

    def _end_s(self) -> float:
        return self.answer.expires_s + GRACE_S

    def _raise_failure(self) -> None:
        self.answer.result()


class EventStream(Stream[StandingEvent]):
    """Events of standing queries from now on, until `close`, or until a `with` block is left.

    Attributes:
        num_dropped: events lost because more than `MAX_EVENTS` waited to be taken.
    """

    def __init__(self, waiter: NodeWaiter, name: str, close: Callable[[EventStream], None]) -> None:
        super().__init__(waiter, "the next event")
        self.num_dropped = 0
        self._name, self._close = name, close

    def next(self, timeout_s: float) -> StandingEvent:
        """Wait for the next event.

        Raises:
            ServerTimeoutError: none came in time.
            StopIteration: the stream was closed.
        """
        if not self._waiter.wait(lambda: bool(self._values) or self._has_ended, time.monotonic() + timeout_s):
            raise ServerTimeoutError(f"no event of {self._name or 'any standing query'} came within {timeout_s:g} s")
        return self.__next__()

    def close(self) -> None:
        """End the stream; events that wait can still be taken."""
        if not self._has_ended:
            self._close(self)
            self._end()

    def __enter__(self) -> EventStream:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def on_event(self, event: StandingEvent) -> None:
        """Take an event, if it is of the query that is listened to."""
        if self._name and event.name != self._name:
            return
        if len(self._values) == MAX_EVENTS:
            self._values.popleft()
            self.num_dropped += 1
        self._put(event)
