"""What a drive node hears of the world: frames, the lock, odometry, a scan, the node that answers, standing queries."""

from __future__ import annotations

import hashlib
import math
import time
from typing import Any

import cv2
import numpy as np
from nav_msgs.msg import Odometry
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import QoSDurabilityPolicy, QoSLivelinessPolicy, QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image, LaserScan
from std_msgs.msg import Bool

from nvila_ros.driving.guard import find_space
from nvila_ros.driving.motion import Pose, Space
from nvila_ros.driving.outcomes import DriveStop, Fault
from nvila_ros.driving.settings import DriveConfig
from nvila_ros.driving.watch import Frames, Watch
from nvila_ros.errors import FrameError
from nvila_ros.msg import Event, Status
from nvila_ros.ros.messages import decode_frame, raw_frame, stamp_to_ns
from nvila_ros.ros.sim_messages import quaternion_yaw
from nvila_ros.types import NS_PER_S

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ModuleNotFoundError:  # before ROS 2 Iron
    from rclpy.qos_event import SubscriptionEventCallbacks

SENSOR = QoSProfile(depth=2, reliability=QoSReliabilityPolicy.BEST_EFFORT)
JPEG_QUALITY = 85
LEASE_S = 0.1
"""By how much the status topic's lease is longer than other silences: the middleware renews it by itself."""


class DriveInputs:
    """Subscribes to all of it, and keeps what came last.

    Attributes:
        watch: what must hold.
    """

    def __init__(self, node: Node, config: DriveConfig) -> None:
        self._node, self._config = node, config
        self.watch = Watch(config, Frames(), armed=config.armed)
        self._image: Image | CompressedImage | None = None
        self._pose: tuple[Pose, int] | None = None
        self._space: tuple[Space, int] | None = None
        self._interrupts = frozenset(filter(None, config.interrupts))
        kind = CompressedImage if config.image_transport == "compressed" else Image
        node.create_subscription(kind, "image", self._on_image, SENSOR)
        if config.lock_topic:
            node.create_subscription(Bool, config.lock_topic, self._on_lock, 1)
        if config.odometry_topic:
            node.create_subscription(Odometry, config.odometry_topic, self._on_odometry, SENSOR)
        if config.scan_topic:
            node.create_subscription(LaserScan, config.scan_topic, self._on_scan, SENSOR)
        if self._interrupts:
            node.create_subscription(Event, f"{config.node}/event", self._on_event, 16)
        self._watch_node()

    def _watch_node(self) -> None:
        """Hear of the end of the node that answers by its status topic's liveliness: the middleware asserts it.

        A process that is killed says nothing, and discovery notices it after many seconds only.
        """
        qos = QoSProfile(
            depth=1,
            durability=QoSDurabilityPolicy.TRANSIENT_LOCAL,
            liveliness=QoSLivelinessPolicy.AUTOMATIC,
            liveliness_lease_duration=Duration(seconds=self._config.watch_s + LEASE_S),
        )
        self._node.create_subscription(
            Status,
            f"{self._config.node}/status",
            lambda _: None,
            qos,
            event_callbacks=SubscriptionEventCallbacks(liveliness=self._on_liveliness),
        )

    def pose(self, steady_ns: int) -> Pose | None:
        """Return where the robot is; None without odometry, or where it has fallen silent."""
        if self._pose is None or steady_ns - self._pose[1] > self._config.watch_s * NS_PER_S:
            return None
        return self._pose[0]

    def space(self, steady_ns: int) -> Space | Fault:
        """Return what the guard sees, or why the robot must not move by cmd_vel."""
        if not self._config.scan_topic:
            if self._config.base_has_guard:
                return Space()
            text = "cmd_vel needs a guard: name a scan_topic, or set base_has_guard where the base stops by itself"
            return Fault(DriveStop.MOTION_FAILED, text)
        if self._space is None or steady_ns - self._space[1] > self._config.watch_s * NS_PER_S:
            return Fault(DriveStop.MOTION_FAILED, f"the scan on {self._config.scan_topic} is lost; see its driver")
        return self._space[0]

    def picture(self) -> CompressedImage | None:
        """Return the newest frame as a file; None where there is none, or where it cannot be read."""
        image = self._image
        if image is None or isinstance(image, CompressedImage) or not self._config.sends_pictures:
            return image if isinstance(image, CompressedImage) and self._config.sends_pictures else None
        try:
            pixels = decode_frame(raw_frame(image, self._config.camera, 0)).image
        except FrameError:
            return None
        bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
        _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        return CompressedImage(header=image.header, format="jpeg", data=data.tobytes())

    def _on_image(self, message: Image | CompressedImage) -> None:
        self._image = message
        digest = hashlib.blake2b(memoryview(message.data), digest_size=16).digest()
        self.watch.on_frame(stamp_to_ns(message.header.stamp), digest, time.monotonic_ns())

    def _on_lock(self, message: Bool) -> None:
        self.watch.on_lock(message.data, time.monotonic_ns())

    def _on_odometry(self, message: Odometry) -> None:
        place, turn = message.pose.pose.position, message.pose.pose.orientation
        self._pose = Pose(place.x, place.y, quaternion_yaw(turn), message.header.frame_id), time.monotonic_ns()

    def _on_scan(self, message: LaserScan) -> None:
        ranges = np.asarray(message.ranges, np.float64)
        ranges[(ranges < message.range_min) | (ranges >= message.range_max)] = math.inf
        bearings = message.angle_min + message.angle_increment * np.arange(len(ranges))
        radius = self._config.robot_radius_m
        space = find_space(ranges, bearings, radius)
        self._space = space, time.monotonic_ns()

    def _on_event(self, message: Event) -> None:
        if message.phase in (Event.BEGIN, Event.INSTANT) and message.name in self._interrupts:
            self.watch.interrupted_by = message.name

    def _on_liveliness(self, event: Any) -> None:
        self.watch.is_alive = event.alive_count > 0
