"""The process of a node that spins until a signal comes: the camera, the simulation, the drive.

The node that answers has threads and a model to end in order; `process` does that.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import rclpy
from rclpy.exceptions import NameValidationException, ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from nvila_ros.errors import NvilaError
from nvila_ros.paths import images_profile
from nvila_ros.ros import process
from nvila_ros.ros.parameters import print_help

TURN_S = 0.2
"""A signal is noticed between two turns of the executor."""


def run_node(
    args: list[str] | None,
    program: str,
    summary: str,
    config_type: type,
    make_node: Callable[[], Node],
    on_end: Callable[[Any, SingleThreadedExecutor], None] | None = None,
) -> int:
    """Make a node and spin it until SIGINT or SIGTERM.

    Args:
        args: command line; None takes that of the process.
        program: name of the program, for messages and help.
        summary: what it does, for help.
        config_type: its parameters, for help.
        make_node: raises what is not acceptable.
        on_end: called last with the node and its executor, whatever ended the spinning.

    Returns:
        0 after a signal, 2 if a parameter is not acceptable.
    """
    if process.wants_help(args):
        return print_help(program, summary, config_type)
    os.environ.update(images_profile())
    code = 0
    try:
        signals = process.init(args)
        node = make_node()
        signals.raises = (
            False  # an exception amid a turn would leave the executor holding an entity that it never serves
        )
        _spin(node, signals, on_end)
    except (NvilaError, ParameterException, NameValidationException) as error:
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        pass
    finally:
        rclpy.try_shutdown()
    return process.leave(code)


def _spin(node: Node, signals: process.Signals, on_end: Callable[[Any, SingleThreadedExecutor], None] | None) -> None:
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        while not signals.received:
            executor.spin_once(timeout_sec=TURN_S)
    finally:
        if on_end is not None:
            on_end(node, executor)
        executor.shutdown()
        node.destroy_node()
