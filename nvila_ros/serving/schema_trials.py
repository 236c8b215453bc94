"""Tries the JSON schemas of requests, one after the other, on a thread of its own.

Compiling a schema may take seconds of a child process (`generation.grammar_compile`), in which neither the thread that
takes frames nor the one that owns the model may wait. Results are kept, so a schema is tried once.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections import deque
from collections.abc import Callable

from nvila_ros.generation.grammar_compile import known_fault, try_schema

LOG = logging.getLogger(__name__)
BUSY = "this machine is too busy to compile it; ask again"

OnTried = Callable[[str], None]
"""Takes why answers cannot be held to a schema, or an empty text; on the thread of the trials, or at once."""


class SchemaTrials:
    """A queue of schemas to try; whoever submits bounds its length."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[tuple[str, OnTried]] = deque()
        self._is_running = False

    def submit(self, schema: str, on_tried: OnTried) -> None:
        """Try a schema, or report at once what is known of it."""
        fault = "" if importlib.util.find_spec("llguidance") is None else known_fault(schema)
        if fault is not None:  # without llguidance the model's own error says what to install
            on_tried(fault)
            return
        with self._lock:
            self._queue.append((schema, on_tried))
            if not self._is_running:
                self._is_running = True
                # Daemon: a trial may take seconds, and the node must end when it is asked to.
                threading.Thread(target=self._run, name="nvila_schemas", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._is_running = False
                    return
                schema, on_tried = self._queue.popleft()
            try:
                fault = try_schema(schema)
            except TimeoutError:
                fault = BUSY
            except Exception as error:  # no request may wait for ever
                LOG.exception("a schema cannot be tried")
                fault = f"it cannot be tried: {error!r}"
            on_tried(fault)
