"""A robot with two driven wheels: it turns and drives within its limits, and stays outside of what stands there."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nvila_ros.world.rooms.house import House, free_distance

ROBOT_M = 0.2
"""Radius of the robot."""
_LEFT_M = 0.02


@dataclass(frozen=True, slots=True)
class RobotLimits:
    """Greatest speeds, m/s and rad/s, and accelerations, m/s^2 and rad/s^2; commands older than `hold_s` count as 0."""

    speed: float = 0.6
    turn: float = 1.2
    acceleration: float = 2.0
    turn_acceleration: float = 5.0
    hold_s: float = 0.5


@dataclass(slots=True)
class Robot:
    """Where it is, how fast it goes, how far it went, and how often it touched something.

    Attributes:
        is_touching: whether its last motion was stopped by something.
    """

    house: House
    x: float
    y: float
    yaw: float
    limits: RobotLimits = RobotLimits()
    speed: float = 0.0
    turn: float = 0.0
    traveled_m: float = 0.0
    num_collisions: int = 0
    is_touching: bool = False

    def advance(self, speed: float, turn: float, dt_s: float) -> None:
        """Go on for a while under a command; it is moved along the arc of the mean speeds.

        Args:
            speed: wanted, m/s.
            turn: wanted, rad/s.
            dt_s: at most some hundredths of a second, so that nothing is jumped over.
        """
        before, turned = self.speed, self.turn
        self.speed = _approach(self.speed, speed, self.limits.speed, self.limits.acceleration * dt_s)
        self.turn = _approach(self.turn, turn, self.limits.turn, self.limits.turn_acceleration * dt_s)
        way, angle = (before + self.speed) / 2 * dt_s, (turned + self.turn) / 2 * dt_s
        heading = self.yaw + angle / 2
        chord = way * np.sinc(angle / 2 / math.pi)
        x, y = self.x + chord * math.cos(heading), self.y + chord * math.sin(heading)
        self.yaw = math.remainder(self.yaw + angle, 2 * math.pi)
        if not way:
            return
        room = _room_around(self.house, x, y)
        if room < ROBOT_M and room <= _room_around(self.house, self.x, self.y):
            self.num_collisions += not self.is_touching
            self.is_touching, self.speed = True, 0.0
            return
        self.is_touching = self.is_touching and room < ROBOT_M + _LEFT_M
        self.x, self.y = x, y
        self.traveled_m += abs(way)


def _room_around(house: House, x: float, y: float) -> float:
    return float(free_distance(house, np.array(x), np.array(y)))


def _approach(now: float, wanted: float, most: float, step: float) -> float:
    wanted = min(max(wanted, -most), most)
    return now + min(max(wanted - now, -step), step)
