"""Velocities on a topic: Twist, or TwistStamped where the distribution's Nav2 takes that."""

from __future__ import annotations

import os
from collections.abc import Callable

from geometry_msgs.msg import Twist, TwistStamped
from rclpy.node import Node

_WITHOUT_STAMP = frozenset({"foxy", "galactic", "humble", "iron", "jazzy"})


def is_stamped(setting: str) -> bool:
    """Return whether velocities have stamps: as is set, and for `auto` from Kilted on, as Nav2's default says.

    Source: navigation2, parameter `enable_stamped_cmd_vel`: false in Jazzy, true from Kilted on.
    """
    if setting != "auto":
        return setting == "true"
    return os.environ.get("ROS_DISTRO") not in _WITHOUT_STAMP


class VelocityPublisher:
    """Publishes velocities of a frame."""

    def __init__(self, node: Node, topic: str, frame: str, stamped: str) -> None:
        self._node, self._frame, self._is_stamped = node, frame, is_stamped(stamped)
        kind = TwistStamped if self._is_stamped else Twist
        self._publisher = node.create_publisher(kind, topic, 1)

    @property
    def num_listeners(self) -> int:
        """How many subscribe."""
        return int(self._publisher.get_subscription_count())

    def publish(self, speed: float, turn: float) -> None:
        """Publish m/s and rad/s."""
        twist = Twist()
        twist.linear.x, twist.angular.z = float(speed), float(turn)
        if self._is_stamped:
            message = TwistStamped(twist=twist)
            message.header.stamp = self._node.get_clock().now().to_msg()
            message.header.frame_id = self._frame
            self._publisher.publish(message)
        else:
            self._publisher.publish(twist)


def subscribe_velocities(node: Node, topic: str, stamped: str, on_velocity: Callable[[float, float], None]) -> None:
    """Call back with m/s and rad/s of each message of a topic."""
    if is_stamped(stamped):
        node.create_subscription(TwistStamped, topic, lambda m: on_velocity(m.twist.linear.x, m.twist.angular.z), 1)
    else:
        node.create_subscription(Twist, topic, lambda m: on_velocity(m.linear.x, m.angular.z), 1)
