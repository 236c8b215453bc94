"""Limits how often a repeated event is reported; each kind by itself, so that none hides another."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable

from nvila_ros.types import NS_PER_S

MAX_KINDS = 256


class Throttle:
    """Remembers when each kind was last reported; safe to use from several threads.

    Args:
        every_s: least time from one report to the next.
    """

    def __init__(self, every_s: float) -> None:
        self._every_ns = round(every_s * NS_PER_S)
        self._reported_ns: OrderedDict[Hashable, int] = OrderedDict()
        self._lock = threading.Lock()

    def is_due(self, kind: Hashable, now_ns: int) -> bool:
        """Return whether to report now, on the steady clock; True counts as a report."""
        with self._lock:
            reported_ns = self._reported_ns.get(kind)
            if reported_ns is not None and now_ns - reported_ns < self._every_ns:
                return False
            self._reported_ns[kind] = now_ns
            self._reported_ns.move_to_end(kind)
            if len(self._reported_ns) > MAX_KINDS:
                self._reported_ns.popitem(last=False)
            return True
