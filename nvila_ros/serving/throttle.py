"""Says of what goes on and on whether to tell it again; each kind by itself, so that none hides another."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable

from nvila_ros.types import NS_PER_S

MAX_KINDS = 256


class Throttle:
    """Remembers when each kind was told; safe to use from several threads.

    Args:
        every_s: least time from one telling to the next.
    """

    def __init__(self, every_s: float) -> None:
        self._every_ns = round(every_s * NS_PER_S)
        self._told_ns: OrderedDict[Hashable, int] = OrderedDict()
        self._lock = threading.Lock()

    def is_due(self, kind: Hashable, now_ns: int) -> bool:
        """Return whether to tell now, on the steady clock; once that was done, not again for a while."""
        with self._lock:
            told_ns = self._told_ns.get(kind)
            if told_ns is not None and now_ns - told_ns < self._every_ns:
                return False
            self._told_ns[kind] = now_ns
            self._told_ns.move_to_end(kind)
            if len(self._told_ns) > MAX_KINDS:
                self._told_ns.popitem(last=False)
            return True
