"""What a simulated robot publishes, as messages."""

from __future__ import annotations

import math

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Quaternion, TransformStamped
from nav_msgs.msg import Odometry
from sensor_msgs.msg import CameraInfo, LaserScan

from nvila_ros.world.rooms.camera import RoomCamera
from nvila_ros.world.rooms.robot import Robot

ODOM, BASE, OPTICAL, LASER = "odom", "base_link", "camera", "base_link"
"""Frames; the laser sits at the robot's centre."""


def camera_info(camera: RoomCamera, stamp: Time) -> CameraInfo:
    """Return the calibration of a pinhole camera without distortion."""
    fx, cx, cy = camera.focal_px, camera.width / 2 - 0.5, camera.height / 2 - 0.5
    message = CameraInfo(width=camera.width, height=camera.height, distortion_model="plumb_bob", d=[0.0] * 5)
    message.header.stamp, message.header.frame_id = stamp, OPTICAL
    message.k = [fx, 0.0, cx, 0.0, fx, cy, 0.0, 0.0, 1.0]
    message.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    message.p = [fx, 0.0, cx, 0.0, 0.0, fx, cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    return message


def odometry(robot: Robot, stamp: Time) -> Odometry:
    """Return where a robot is and how fast; it is exact."""
    message = Odometry(child_frame_id=BASE)
    message.header.stamp, message.header.frame_id = stamp, ODOM
    message.pose.pose.position.x, message.pose.pose.position.y = robot.x, robot.y
    message.pose.pose.orientation = yaw_quaternion(robot.yaw)
    message.twist.twist.linear.x, message.twist.twist.angular.z = robot.speed, robot.turn
    return message


def laser_scan(ranges: np.ndarray, bearings: np.ndarray, longest_m: float, stamp: Time) -> LaserScan:
    """Return a planar scan; bearings are evenly spaced, rad."""
    message = LaserScan(angle_min=float(bearings[0]), angle_max=float(bearings[-1]), range_max=longest_m)
    message.angle_increment = float(bearings[1] - bearings[0])
    message.header.stamp, message.header.frame_id = stamp, LASER
    message.ranges = ranges.astype(np.float32).tolist()
    return message


def transforms(robot: Robot, camera: RoomCamera, stamp: Time) -> list[TransformStamped]:
    """Return the robot in the odometry's frame, and its camera's optical frame on the robot."""
    base = TransformStamped(child_frame_id=BASE)
    base.header.stamp, base.header.frame_id = stamp, ODOM
    base.transform.translation.x, base.transform.translation.y = robot.x, robot.y
    base.transform.rotation = yaw_quaternion(robot.yaw)
    optical = TransformStamped(child_frame_id=OPTICAL)
    optical.header.stamp, optical.header.frame_id = stamp, BASE
    optical.transform.translation.z = camera.height_m
    optical.transform.rotation = Quaternion(x=-0.5, y=0.5, z=-0.5, w=0.5)  # z ahead, x right, y down
    return [base, optical]


def yaw_quaternion(yaw: float) -> Quaternion:
    """Return a turn about z."""
    return Quaternion(z=math.sin(yaw / 2), w=math.cos(yaw / 2))


def quaternion_yaw(turn: Quaternion) -> float:
    """Return the yaw of a turn, rad."""
    return math.atan2(2 * (turn.w * turn.z + turn.x * turn.y), 1 - 2 * (turn.y**2 + turn.z**2))
