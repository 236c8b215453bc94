"""The node's process: it starts the threads, records signals, and ends all in order.

The main thread does no work: it hands each new model to the worker, and waits for a signal.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args

from nvila_ros.errors import ConfigError
from nvila_ros.ros.managed_model import ManagedModel
from nvila_ros.serving.model_host import refuse_waiting
from nvila_ros.serving.scheduler import Scheduler

FLUSH_S = 2.0
SENT_S = 0.2
"""How long a message that was handed to the middleware may take to leave the process: its threads end with ours."""
POLL_S = 0.1
REPEATED_S = 2.0
"""Signals that follow the first one within this time repeat it: a terminal and `ros2 launch` both send one."""


class Signals:
    """SIGINT and SIGTERM of this process: the first asks it to end in order, one that comes much later ends it at once.

    Attributes:
        received: whether the first has come.
        raises: whether it raises KeyboardInterrupt, as long as no thread could be left behind.
    """

    def __init__(self) -> None:
        self.received, self.raises = False, True
        self._first_s = 0.0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if not self.received:
            self.received, self._first_s = True, now_s
            if self.raises:
                raise KeyboardInterrupt
        elif now_s - self._first_s > REPEATED_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def wants_help(args: list[str] | None) -> bool:
    """Return whether the command line asks for help."""
    return any(word in ("-h", "--help") for word in _own_words(args))


def init(args: list[str] | None) -> Signals:
    """Start ROS; from here on the first signal raises KeyboardInterrupt.

    Raises:
        ConfigError: the ROS arguments are not acceptable, or there are others.
    """
    signals = Signals()
    words = _own_words(args)
    if words:
        raise ConfigError(
            f"{' '.join(words)!r} is not understood; parameters are given as --ros-args -p NAME:=VALUE, see --help"
        )
    init_ros(args)
    return signals


def init_ros(args: Sequence[str] | None) -> None:
    """Start ROS without its signal handlers: they would end its context while something still waits for it.

    Raises:
        ConfigError: the ROS arguments are not acceptable, or there is no folder for the log.
    """
    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:  # the base of all that rclpy raises here
        if "log" in str(error).partition(":")[0]:
            raise ConfigError(f"{error}; set ROS_LOG_DIR to a folder that this user may write to") from error
        raise ConfigError(f"ROS arguments are not acceptable: {error}") from error


def _own_words(args: list[str] | None) -> list[str]:
    """Return what a command line has beside the program's name and the arguments of ROS."""
    try:
        return list(remove_ros_args(sys.argv if args is None else args))[1:]
    except RuntimeError:  # those of ROS are wrong, which it reports once it is started
        return []


def spin(
    node: Node, signals: Signals, scheduler: Scheduler, model: ManagedModel, drain: Callable[[], None] = lambda: None
) -> int:
    """Run executor, loader and worker until a signal comes; then answer what is open, and end all in order.

    Args:
        node: spun by the executor.
        signals: of the process.
        scheduler: of the node's requests.
        model: of the node.
        drain: lets answers in progress come to their end, once no more questions are to be taken.

    Returns:
        0 after a signal or a transition that shuts down, 1 if the executor or the worker ended by itself, so that a
        launch file may respawn the node.

    Raises:
        Exception: what the loader ended with before there was a model, where the node starts by itself.
    """
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    signals.raises = False  # an exception between any two lines would leave a thread behind
    thread = threading.Thread(target=executor.spin, name="nvila_executor")
    executor.create_task(model.start)
    thread.start()
    while thread.is_alive() and not signals.received and not _must_end(model):
        thread.join(POLL_S)
        refuse_waiting(scheduler, model.hand_over())
    error = model.error
    node.get_logger().info("shutting down")
    drain()
    scheduler.close(time.monotonic_ns())
    model.host.close()
    model.host.join()
    if thread.is_alive():
        _flush(executor)
    time.sleep(SENT_S)  # a response has no acknowledgment that could be waited for
    executor.shutdown(timeout_sec=FLUSH_S)
    thread.join()
    if error is not None:
        raise error
    return 0 if signals.received or model.is_shut_down else 1


def _must_end(model: ManagedModel) -> bool:
    return model.host.has_died or model.is_shut_down or model.error is not None


def leave(code: int) -> int:
    """Return the exit code; where a runtime is amid loading, end with it here, since it would crash in the exit.

    A schema that is being tried would hold it up, and ends here as well. From here on signals are ignored: while the
    interpreter ends, one that repeats the first would turn the exit code into its own.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if any(thread.daemon for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _flush(executor: SingleThreadedExecutor) -> None:
    """Let the executor spin until the last answers are sent: the coroutine, its result, the result's response."""
    for _ in range(3):
        turned = threading.Event()
        executor.create_task(turned.set)
        turned.wait(FLUSH_S)
