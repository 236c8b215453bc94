"""A process that is nothing but a client of the node: what `nvila call` runs in."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

import rclpy

from nvila_ros.ros.client import NvilaClient
from nvila_ros.ros.process import init_ros


@contextlib.contextmanager
def connected(node: str, timeout_s: float, ros_args: Sequence[str] = ()) -> Iterator[NvilaClient]:
    """Give a client of a node, and end ROS afterwards.

    Args:
        node: name of the node that is asked, with its namespace.
        timeout_s: of each call.
        ros_args: behind --ros-args.

    Raises:
        ConfigError: the ROS arguments are not acceptable.
    """
    init_ros(["nvila", "--ros-args", *ros_args])
    own = rclpy.create_node(f"nvila_call_{os.getpid()}")
    try:
        with NvilaClient(own, node, timeout_s=timeout_s) as client:
            yield client
    finally:
        own.destroy_node()
        rclpy.try_shutdown()
