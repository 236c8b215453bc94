"""The node's model through its lifecycle: configuring loads or builds it, cleaning up releases it.

The loader works on a thread of its own and reports its status here; a transition awaits it. The main thread hands the
worker a model that answers while another is built (`process.spin`), the end of a transition the one that it loaded.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rclpy.node import Node
from rclpy.task import Future

from nvila_ros.config import NodeConfig
from nvila_ros.msg import Status as StatusMessage
from nvila_ros.ros import messages
from nvila_ros.ros.lifecycle import LABELS, Lifecycle, TransitionActions
from nvila_ros.serving.model_host import ModelHost
from nvila_ros.serving.model_loader import ModelState, Status
from nvila_ros.serving.scheduler import Scheduler
from nvila_ros.serving.worker import Worker

PROGRESS_EVERY_S = 10.0  # in the log; the topic has every step


class ManagedModel:
    """Owns the model's host and the lifecycle.

    Args:
        node: speaks for it.
        config: returns the parameters as they are now.
        scheduler: of the node's requests.
        load: as of `ModelLoader`.
        make_worker: returns a worker with its first model; later ones replace it.

    Attributes:
        status: what the model is doing.
        host: has loader and worker.
        is_shut_down: a transition asked the process to end.
    """

    def __init__(
        self,
        node: Node,
        config: Callable[[], NodeConfig],
        scheduler: Scheduler,
        load: Callable[..., Any],
        make_worker: Callable[[Any], Worker],
    ) -> None:
        self._node, self._config, self._scheduler = node, config, scheduler
        self.host = ModelHost(load, make_worker)
        self._configured: Future | None = None
        self._is_starting = config().autostart
        self._statuses = node.create_publisher(StatusMessage, "~/status", messages.STATUS)
        self.is_shut_down = self._is_remarked = False
        self.lifecycle = Lifecycle(
            node,
            TransitionActions(
                configure=self._configure,
                activate=self._activate,
                deactivate=self._deactivate,
                cleanup=self._cleanup,
                shutdown=self._shut_down,
            ),
        )
        self.status = Status(state=ModelState.LOADING if self._is_starting else ModelState.UNKNOWN)
        if not self._is_starting:
            self._publish(Status(state=ModelState.UNKNOWN, text=self.lifecycle.refusal))

    @property
    def refusal(self) -> str:
        """Why no question is taken now, or an empty text; those that come while the node starts by itself wait."""
        return self.status.refusal or ("" if self._is_starting else self.lifecycle.refusal)

    @property
    def error(self) -> Exception | None:
        """Why there is no model, where the node was to start by itself and must end."""
        return self.host.error if self._config().autostart else None

    async def start(self) -> None:
        """Configure and activate, unless a lifecycle manager is to do so."""
        if self._is_starting:
            if not await self.lifecycle.change("configure"):
                await self.lifecycle.change("activate")
            self._is_starting = False

    def hand_over(self) -> str:
        """Hand a newly loaded model to the worker; return why requests would wait in vain, or an empty text."""
        self.host.hand_over()
        return self.status.refusal if self.host.worker is None else ""

    async def _configure(self) -> str:
        configured = self._configured = Future(executor=self._node.executor)
        self.host.start(self._config(), self._on_status)  # which may be done before the next line
        fault = str(await configured)
        self.hand_over()  # before the node is active: a worker without a model fails what it is asked
        return "" if self.status.model else fault  # after a failed build the unquantized checkpoint may answer

    async def _activate(self) -> str:
        return ""

    async def _deactivate(self) -> str:
        self._scheduler.cancel_all(time.monotonic_ns(), "the node was deactivated")
        return ""

    async def _cleanup(self) -> str:
        self.host.release()
        self._publish(Status(state=ModelState.UNKNOWN, text="the node was cleaned up"))
        return ""

    async def _shut_down(self) -> str:
        await self._deactivate()
        self.is_shut_down = True
        return ""

    def _on_status(self, status: Status) -> None:
        """Take the loader's status, on its thread; READY and FAILED end the transition that awaits them."""
        if self.error is not None:
            return  # the process ends and says why
        self._publish(status)
        configured = self._configured
        if configured is not None and status.state in (ModelState.READY, ModelState.FAILED):
            self._configured = None
            configured.set_result("" if status.state is ModelState.READY else status.text)
            self._node.executor.wake()

    def _publish(self, status: Status) -> None:
        before, self.status = self.status, status
        self._statuses.publish(messages.status_message(status, self._node.get_clock().now().nanoseconds))
        log, info = (
            self._node.get_logger(),
            f"model={status.model} backend={status.backend} precision={status.precision}",
        )
        line = f"{status.state.name.lower()} {status.progress:.0%} {status.text}"
        if status.state is ModelState.READY:
            log.info(f"ready {info} cameras={','.join(self._config().cameras)}")
        elif status.state is ModelState.FAILED:
            log.error(line)
        elif status.model != before.model:
            log.info(f"{line}; answering meanwhile {info}")
        elif (status.state, status.part) != (before.state, before.part):
            log.info(line)
        else:
            log.info(line, throttle_duration_sec=PROGRESS_EVERY_S)

    def tell_remark(self) -> None:
        """Tell once, in the log and the status, what people should know of the model's answers."""
        remark = self.host.remark()
        if not remark or self._is_remarked or self.status.state is not ModelState.READY:
            return
        self._is_remarked = True
        self._node.get_logger().warning(remark)
        self.status = replace(self.status, text=remark)
        self._statuses.publish(messages.status_message(self.status, self._node.get_clock().now().nanoseconds))

    def values(self) -> dict[str, object]:
        """Return what the diagnostics show of it."""
        return {
            "lifecycle_state": LABELS[self.lifecycle.state],
            "model_state": self.status.state.name,
            **self.host.counters(),
        }

    def faults(self) -> tuple[list[str], bool]:
        """Return what is wrong, and whether nothing is answered until somebody acts."""
        deadly = self.host.faults()
        warnings = [*deadly]
        if self.status.state is ModelState.FAILED:
            warnings.append(self.status.text)
        elif self.refusal:
            warnings.append(self.refusal)
        has_no_model = self.status.state is ModelState.FAILED and bool(self.status.refusal)
        return warnings, bool(deadly) or has_no_model
