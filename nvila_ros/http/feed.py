"""What happens, for those who follow it: answers, events and changes, in one bounded ring that all viewers read.

Items are put in from any thread and read on the door's. A viewer holds nothing but the number of the item it saw last,
so a slow one costs no memory: what has left the ring meanwhile it has missed, and is sent how many.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nvila_ros.http.limits import NUM_KEPT, PING_S
from nvila_ros.http.views import Json, answer_view, event_view
from nvila_ros.standing.event import Event
from nvila_ros.types import Answer, Piece


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that happened: its number, from 1, its kind, and JSON."""

    number: int
    kind: str
    data: str


class Feed:
    """The ring, and the last answers by their query; all but `on_answer`, `on_events` and `post` on the loop's thread.

    Args:
        loop: of the door.
        clock_ns: of capture stamps.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, clock_ns: Callable[[], int]) -> None:
        self._loop, self._clock_ns = loop, clock_ns
        self._ring: deque[Item] = deque(maxlen=NUM_KEPT)
        self._answers: OrderedDict[str, Json] = OrderedDict()
        self._num_items = 0
        self._news = asyncio.Event()

    def on_answer(self, answer: Answer) -> None:
        """Take an answer, from any thread."""
        now_ns = self._clock_ns()
        self.post("answer", lambda: self._keep(answer_view(answer, now_ns)))

    def on_piece(self, piece: Piece) -> None:
        """Pieces are for those who asked."""

    def on_events(self, events: Sequence[Event]) -> None:
        """Take events of standing queries, from any thread."""
        for event in events:
            self.post("event", lambda event=event: event_view(event))  # type: ignore[misc]

    def post(self, kind: str, view: Callable[[], Json]) -> None:
        """Put something in, from any thread; its JSON is made on the loop's."""
        try:
            self._loop.call_soon_threadsafe(self._add, kind, view)
        except RuntimeError:  # the loop is closed: nobody listens any more
            return

    def answers(self, limit: int) -> list[Json]:
        """Return the last answers, oldest first."""
        return list(self._answers.values())[-limit:]

    def answer(self, query_id: str) -> Json | None:
        """Return the answer to a query, where it is still kept."""
        return self._answers.get(query_id)

    async def follow(self, last: int | None) -> AsyncIterator[Item | int | None]:
        """Yield items as they come, None where nothing came for a while, and a number where so many were missed.

        Args:
            last: number of the last item that was seen; None begins with what comes next.
        """
        seen = self._num_items if last is None or last > self._num_items else last
        while True:
            news = self._news
            oldest = self._ring[0].number if self._ring else self._num_items + 1
            if seen < oldest - 1:
                yield oldest - 1 - seen
                seen = max(seen, oldest - 1)
            for item in [item for item in self._ring if item.number > seen]:
                seen = item.number
                yield item
            if seen == self._num_items and not await _comes(news):
                yield None

    def _keep(self, view: Json) -> Json:
        self._answers[view["query_id"]] = view
        if len(self._answers) > NUM_KEPT:
            self._answers.popitem(last=False)
        return view

    def _add(self, kind: str, view: Callable[[], Json]) -> None:
        self._num_items += 1
        self._ring.append(Item(self._num_items, kind, dump(view())))
        self._news.set()
        self._news = asyncio.Event()


async def _comes(news: asyncio.Event) -> bool:
    try:
        return await asyncio.wait_for(news.wait(), PING_S)
    except (TimeoutError, asyncio.TimeoutError):
        return False


def dump(value: Any) -> str:
    """Return compact JSON; what is no number of JSON becomes null."""
    try:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), separators=(",", ":"), ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list) else value
