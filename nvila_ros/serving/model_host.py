"""The model of a process that answers: its loader, its worker, and the hand-over from one to the other.

The loader works on a thread of its own and reports each status; whoever watches over the process calls `hand_over`
several times a second, so that a model that answers while another is built gets to work.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from nvila_ros.config import NodeConfig
from nvila_ros.serving.model_loader import ModelLoader, Status
from nvila_ros.serving.scheduler import Scheduler
from nvila_ros.serving.worker import Worker
from nvila_ros.types import FinishReason


class ModelHost:
    """Owns loader and worker.

    Args:
        load: as of `ModelLoader`.
        make_worker: returns a worker with its first model; later ones replace it.

    Attributes:
        worker: None until the first model is loaded.
    """

    def __init__(self, load: Callable[..., Any], make_worker: Callable[[Any], Worker]) -> None:
        self._load, self._make_worker = load, make_worker
        self._lock = threading.Lock()  # of handing over, from any thread
        self._loader: ModelLoader | None = None
        self.worker: Worker | None = None

    @property
    def error(self) -> Exception | None:
        """What the loading ended with before there was a model."""
        return self._loader.error if self._loader is not None else None

    def start(self, config: NodeConfig, on_status: Callable[[Status], None]) -> None:
        """Load or build the model; `on_status` takes every change, on the loader's thread."""
        self._loader = ModelLoader(config, self._load, on_status)
        self._loader.start()

    def hand_over(self) -> None:
        """Hand a newly loaded model to the worker."""
        with self._lock:
            model = self._loader.take_model() if self._loader is not None else None
            if model is not None and self.worker is None:
                self.worker = self._make_worker(model)
                self.worker.start()
            elif model is not None and self.worker is not None:
                self.worker.use(model)

    def release(self) -> None:
        """End a build that runs, and let go of the model."""
        self.close()
        self._loader = None
        if self.worker is not None:
            self.worker.use(None)

    def close(self) -> None:
        """End a build that runs."""
        if self._loader is not None:
            self._loader.close()

    def join(self) -> None:
        """Wait for the worker to end, once the scheduler is closed."""
        if self.worker is not None:
            self.worker.join()

    @property
    def has_died(self) -> bool:
        """Whether nobody works any more."""
        return self.worker is not None and self.worker.has_died

    def counters(self) -> dict[str, int]:
        """Return the model's counters; none without one."""
        return self.worker.counters() if self.worker is not None else {}

    def remark(self) -> str:
        """Return what people should know of the model's answers so far, or an empty text."""
        return self.worker.remark() if self.worker is not None else ""

    def faults(self) -> list[str]:
        """Return why nothing is answered until somebody acts."""
        if self.worker is None:
            return []
        died = "the worker thread has died; see the log, and restart the node" if self.worker.has_died else ""
        return [fault for fault in (died, self.worker.numerics_fault) if fault]


def refuse_waiting(scheduler: Scheduler, refusal: str) -> None:
    """Refuse the requests that would wait in vain, if there is a reason to; only while there is no worker."""
    if not refusal:
        return
    now_ns = time.monotonic_ns()
    scheduler.expire(now_ns)
    while requests := scheduler.pop(now_ns):
        for request in requests:
            request.refuse(FinishReason.REJECTED, refusal, now_ns)
            scheduler.finish(request, now_ns)
