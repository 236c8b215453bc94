"""`nvila sim`: a robot with a camera in a house, as a ROS node: what it sees and feels out, velocities in.

It publishes image (rgb8), camera_info, odom, scan and, where tf2_msgs is installed, /tf; with `clock` also /clock, and
then it stamps by that. Task k of the evaluation is its house and start; `task` may be set while it runs. It can be
given the faults that a robot's camera has, to see what those who drive it do about them.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from nav_msgs.msg import Odometry
from rcl_interfaces.msg import SetParametersResult
from rclpy.node import Node
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, LaserScan
from std_msgs.msg import String

from nvila_ros.config import check_fields, setting
from nvila_ros.ros.camera_publisher import image_message
from nvila_ros.ros.messages import TRANSIENT_LOCAL, stamp_from_ns
from nvila_ros.ros.parameters import declare_parameters
from nvila_ros.ros.sim_messages import OPTICAL, camera_info, laser_scan, odometry, transforms
from nvila_ros.ros.spinning_node import run_node
from nvila_ros.ros.velocities import subscribe_velocities
from nvila_ros.types import NS_PER_S
from nvila_ros.world.rooms.camera import RoomCamera, take_picture
from nvila_ros.world.rooms.house import scan
from nvila_ros.world.rooms.instructions import Task, eval_task
from nvila_ros.world.rooms.robot import Robot, RobotLimits

PHYSICS_HZ, MAX_TICK_S = 50.0, 0.05
SCAN_BEARINGS = np.linspace(-math.pi, math.pi, 181)[:-1]
SCAN_M = 8.0
DELAY_S, JUMP_S = 2.0, 5.0
FAULTS = ("none", "frozen", "lost", "delayed", "stamps")


@dataclass(frozen=True, slots=True, kw_only=True)
class SimConfig:
    """The simulation's parameters.

    Raises:
        ConfigError: a value outside its range or choices.
    """

    task: int = setting(0, "number of the task whose house and start it is", low=0, high=(1 << 24), read_only=False)
    width: int = setting(320, "width of the images", "px", low=16, high=1920)
    height: int = setting(240, "height of the images", "px", low=16, high=1080)
    rate_hz: float = setting(15.0, "images and scans a second", "Hz", low=0.5, high=60.0)
    clock: bool = setting(False, "publish /clock, and stamp by it")
    stamped: str = setting(
        "auto", "whether cmd_vel is TwistStamped; auto: from Kilted on", choices=("auto", "true", "false")
    )
    cmd_vel_topic: str = setting("cmd_vel", "where velocities come")
    hold_s: float = setting(0.25, "silence on cmd_vel after which it stands", "s", low=0.05, high=5.0)
    fault: str = setting(
        "none",
        "of the camera: repeats a picture, is silent, comes 2 s late, or stamps jump",
        choices=FAULTS,
        read_only=False,
    )
    strict_parameters: bool = setting(False, "end at a parameter that it does not know; false: warn")

    def __post_init__(self) -> None:
        """Check every field against its bound."""
        check_fields(self)


class SimNode(Node):
    """A robot in a house.

    Raises:
        ConfigError: a parameter is unknown or breaks its rule.
    """

    def __init__(self) -> None:
        super().__init__("nvila_sim", automatically_declare_parameters_from_overrides=True)
        self.config: SimConfig = declare_parameters(self, SimConfig)
        self._camera = RoomCamera(self.config.width, self.config.height)
        self._limits = RobotLimits(hold_s=self.config.hold_s)
        self._fault, self._late, self._frozen = self.config.fault, deque[Image](), b""
        self._rng = np.random.default_rng(self.config.task)
        qos = QoSProfile(depth=5, reliability=QoSReliabilityPolicy.BEST_EFFORT)
        self._images = self.create_publisher(Image, "image", qos)
        self._infos = self.create_publisher(CameraInfo, "camera_info", qos)
        self._odometry = self.create_publisher(Odometry, "odom", 10)
        self._scans = self.create_publisher(LaserScan, "scan", qos)
        self._truths = self.create_publisher(String, "~/truth", TRANSIENT_LOCAL)
        self._clocks = self.create_publisher(Clock, "/clock", 10) if self.config.clock else None
        self._tf = self._tf_publisher()
        self._command, self._commanded_s, self._now_s = (0.0, 0.0), -math.inf, time.monotonic()
        self._begin(self.config.task)
        subscribe_velocities(self, self.config.cmd_vel_topic, self.config.stamped, self._on_velocity)
        self.add_on_set_parameters_callback(self._on_parameters)
        self.create_timer(1 / PHYSICS_HZ, self._advance)
        self.create_timer(1 / self.config.rate_hz, self._look)
        self.get_logger().info(f"task {self.config.task}: {self.task.instruction!r}")

    def _begin(self, number: int) -> None:
        self.task: Task = eval_task(number)
        self.robot = Robot(self.task.house, self.task.x, self.task.y, self.task.yaw, self._limits)
        self._command = 0.0, 0.0
        self._number = number

    def _tf_publisher(self) -> Any:
        if importlib.util.find_spec("tf2_msgs") is None:
            self.get_logger().warning("tf2_msgs is not installed: /tf is not published")
            return None
        from tf2_msgs.msg import TFMessage

        return self.create_publisher(TFMessage, "/tf", 10)

    def _stamp(self) -> Time:
        if self._clocks is None:
            return self.get_clock().now().to_msg()
        return stamp_from_ns(round(self._now_s * NS_PER_S))

    def _on_velocity(self, speed: float, turn: float) -> None:
        if math.isfinite(speed) and math.isfinite(turn):
            self._command, self._commanded_s = (speed, turn), time.monotonic()

    def _advance(self) -> None:
        now_s = time.monotonic()
        if now_s - self._commanded_s > self._limits.hold_s:
            self._command = 0.0, 0.0
        while self._now_s < now_s:  # a late timer is caught up with in small steps: time goes by as it does
            dt_s = min(now_s - self._now_s, MAX_TICK_S)
            self._now_s += dt_s
            self.robot.advance(*self._command, dt_s)
        if self._clocks is not None:
            self._clocks.publish(Clock(clock=self._stamp()))
        stamp = self._stamp()
        self._odometry.publish(odometry(self.robot, stamp))
        if self._tf is not None:
            self._tf.publish(self._tf.msg_type(transforms=transforms(self.robot, self._camera, stamp)))

    def _look(self) -> None:
        stamp, robot = self._stamp(), self.robot
        ranges = scan(robot.house, robot.x, robot.y, robot.yaw + SCAN_BEARINGS, SCAN_M)
        self._scans.publish(laser_scan(ranges, SCAN_BEARINGS, SCAN_M, stamp))
        self._truths.publish(String(data=json.dumps(self.truth())))
        if self._fault == "lost":
            return
        message = image_message(take_picture(robot.house, robot.x, robot.y, robot.yaw, self._camera, self._rng).image)
        message.header.stamp, message.header.frame_id = stamp, OPTICAL
        self._send(message)
        self._infos.publish(camera_info(self._camera, message.header.stamp))

    def _send(self, message: Image) -> None:
        """Publish an image as the fault that is set has it."""
        if self._fault == "frozen":
            self._frozen = self._frozen or message.data
            message.data = self._frozen
        elif self._fault == "stamps":
            stamp = message.header.stamp
            message.header.stamp = stamp_from_ns((stamp.sec - round(JUMP_S)) * NS_PER_S + stamp.nanosec)
        elif self._fault == "delayed":
            self._late.append(message)
            if len(self._late) <= DELAY_S * self.config.rate_hz:
                return
            message = self._late.popleft()
        self._images.publish(message)

    def truth(self) -> dict[str, Any]:
        """Return what is true of the robot and its task."""
        robot = self.robot
        return {
            "task": self._number,
            "instruction": self.task.instruction,
            "x": robot.x,
            "y": robot.y,
            "yaw": robot.yaw,
            "speed": robot.speed,
            "turn": robot.turn,
            "traveled_m": robot.traveled_m,
            "collisions": robot.num_collisions,
            "is_done": self.task.is_done(robot.x, robot.y),
        }

    def _on_parameters(self, parameters: list[Any]) -> SetParametersResult:
        for parameter in parameters:
            if parameter.name == "fault":
                if parameter.value not in FAULTS:
                    return SetParametersResult(successful=False, reason=f"fault must be one of {', '.join(FAULTS)}")
                self._fault, self._frozen = parameter.value, b""
                self._late.clear()
            elif parameter.name == "task":
                self._begin(parameter.value)
        return SetParametersResult(successful=True)


def main(args: list[str] | None = None) -> int:
    """Run the simulation until SIGINT or SIGTERM.

    Returns:
        0 after a signal, 2 if a parameter is not acceptable.
    """
    cv2.setNumThreads(1)
    return run_node(args, "nvila_sim", "A robot with a camera in a house.", SimConfig, SimNode)


if __name__ == "__main__":
    sys.exit(main())
