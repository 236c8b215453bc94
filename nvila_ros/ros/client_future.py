"""The futures that a client's calls return, and how a program waits for them whoever turns its node.

A program that spins its node in a thread waits here until that thread has completed the future; one that does not spin
has its node turned here meanwhile. In a coroutine, of an rclpy executor or of asyncio, a future is awaited.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, InvalidStateError
from types import FrameType
from typing import Any, TypeVar

from rclpy.executors import Executor, SingleThreadedExecutor
from rclpy.node import Node

from nvila_ros.errors import ServerError, ServerTimeoutError

T = TypeVar("T")
STEP_S = 0.05
"""How long a waiting thread sleeps before it looks again who turns the node."""
TURN_S = 0.5
"""How long an executor may take for a turn; one that takes longer does not spin."""
GRACE_S = 0.5
"""How long after a future's deadline the node's own timer may still report why it failed."""


class NodeWaiter:
    """Waits until something is true that callbacks of a node bring about.

    Args:
        node: turned here where no executor has it.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._changed = threading.Condition()
        self._turning = threading.Lock()
        self._own: SingleThreadedExecutor | None = None

    def notify(self) -> None:
        """Wake waiting threads, and coroutines of the node's executor; from any thread."""
        with self._changed:
            self._changed.notify_all()
        executor = self._executor()
        if executor is not None:
            executor.wake()

    def wait(self, is_true: Callable[[], bool], end_s: float) -> bool:
        """Wait until a condition holds, at most until `end_s` of `time.monotonic`.

        Returns:
            Whether it holds.

        Raises:
            ServerError: ROS was shut down, or this thread is the one that would have to run the callbacks.
        """
        while not is_true():
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                return False
            if not self._node.context.ok():
                raise ServerError("ROS was shut down while a client waited; call rclpy.init and make a new node")
            executor = self._executor()
            if executor is None:
                self._turn(is_true, end_s)
            elif _is_turned_below(executor, sys._getframe()):
                raise ServerError(
                    "a callback waits for what its own executor must deliver; await it in an async callback, or wait "
                    "in another thread"
                )
            else:
                with self._changed:
                    self._changed.wait_for(is_true, min(left_s, STEP_S))
        return True

    def let_turn(self) -> None:
        """Wait until whoever turns the node has gathered anew what it waits for; not where nobody turns it.

        What was removed from the node before is in none of the executor's lists then, so that it can be destroyed:
        rclpy adds an action client to its wait set that was destroyed since it was listed, and asks such a timer
        whether it is ready. Both raise, in the thread that spins.
        """
        executor = self._executor()
        if executor is None or _is_turned_below(executor, sys._getframe()):
            return
        turned = threading.Event()
        executor.create_task(turned.set)  # tasks are served before the lists are made
        turned.wait(TURN_S)

    def close(self) -> None:
        """Release the executor that turned the node."""
        with self._turning:
            if self._own is not None:
                self._own.shutdown()
                self._own = None

    def _executor(self) -> Executor | None:
        """Return the executor that has the node now; rclpy forgets to clear it when the node is removed."""
        executor: Executor | None = self._node.executor
        return executor if executor is not None and self._node in executor.get_nodes() else None

    def _turn(self, is_true: Callable[[], bool], end_s: float) -> None:
        """Turn the node until the condition holds, the time is over, or another executor takes the node."""
        with self._turning:
            if self._executor() is not None:
                return
            if self._own is None:
                self._own = SingleThreadedExecutor(context=self._node.context)
            self._spin(self._own, is_true, end_s)

    def _spin(self, own: SingleThreadedExecutor, is_true: Callable[[], bool], end_s: float) -> None:
        own.add_node(self._node)
        try:
            while not is_true() and self._node.context.ok() and self._node in own.get_nodes():
                left_s = end_s - time.monotonic()
                if left_s <= 0:
                    return
                own.spin_once(timeout_sec=min(left_s, STEP_S))
        finally:
            own.remove_node(self._node)


class ClientFuture(Future[T]):
    """The outcome of a client's call: wait with `result`, await it, or add a callback.

    Callbacks run on the thread of the node's executor. `cancel` withdraws the call.
    """

    def __init__(self, waiter: NodeWaiter, what: str, timeout_s: float) -> None:
        super().__init__()
        self.expires_s = time.monotonic() + timeout_s
        """When it fails if nothing came, `time.monotonic`."""
        self.on_cancel: Callable[[], None] | None = None
        self._waiter, self._what = waiter, what

    def result(self, timeout: float | None = None) -> T:
        """Wait for the outcome and return it.

        Args:
            timeout: seconds to wait; None is until the call itself times out.

        Raises:
            ServerTimeoutError: it did not come in time.
            NvilaError: why there is none.
            concurrent.futures.CancelledError: it was canceled.
        """
        self._wait(timeout)
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the outcome and return why there is none; arguments and errors as of `result`."""
        self._wait(timeout)
        return super().exception(0)

    def cancel(self) -> bool:
        """Withdraw the call; False where it has ended already."""
        is_canceled = super().cancel()
        if is_canceled and self.on_cancel is not None:
            self.on_cancel()
        self._waiter.notify()
        return is_canceled

    def settle(self, value: T) -> None:
        """Complete it, unless it has ended already."""
        self._end(lambda: self.set_result(value))

    def fail(self, error: Exception) -> None:
        """Complete it by an error, unless it has ended already."""
        self._end(lambda: self.set_exception(error))

    def __await__(self) -> Generator[Any, None, T]:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # a coroutine of an rclpy executor, which resumes it whenever it turns
            while not self.done():
                yield None
        else:
            yield from asyncio.wrap_future(self, loop=loop).__await__()
        return super().result(0)

    def _wait(self, timeout: float | None) -> None:
        patience_s = self.expires_s + GRACE_S
        end_s = patience_s if timeout is None else min(time.monotonic() + timeout, patience_s)
        if self._waiter.wait(self.done, end_s):
            return
        if time.monotonic() < patience_s:
            raise ServerTimeoutError(f"{self._what} did not come within {timeout:g} s")
        self.fail(
            ServerTimeoutError(
                f"{self._what} did not come in time, and no callback of the node ran: spin the executor that has it"
            )
        )

    def _end(self, end: Callable[[], None]) -> None:
        try:
            end()
        except InvalidStateError:  # it was canceled, or failed, meanwhile
            return
        self._waiter.notify()


def _is_turned_below(executor: Executor, frame: FrameType | None) -> bool:
    """Whether a thread, given its innermost frame, is amid a call of an executor's `spin`, whatever its form."""
    while frame is not None:
        if frame.f_code.co_name.lstrip("_").startswith("spin") and frame.f_locals.get("self") is executor:
            return True
        frame = frame.f_back
    return False
