"""How a step is made with velocities: as fast as is set, slower towards its end, until odometry or time says done.

In: an action, and at each turn the time and what odometry and the guard report. Out: a velocity, or that it has ended.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nvila_ros.driving.outcomes import StepOutcome
from nvila_ros.driving.settings import DriveConfig
from nvila_ros.prompt.navila import Action
from nvila_ros.types import NS_PER_S

STAND = (0.0, 0.0)
"""Velocity of a robot that stands, m/s and rad/s."""
ALLOWANCE_S = 2.0
"""A step may take this long and twice its time at full speed."""
_CREEP_MPS, _CREEP_RADPS = 0.06, 0.2
_NEAR_M, _NEAR_RAD = 0.01, math.radians(1.0)
_TURN_DECELERATION = 2.5


@dataclass(frozen=True, slots=True)
class Pose:
    """Where odometry has the robot: m and rad, in a tf frame."""

    x: float
    y: float
    yaw: float
    frame: str = "odom"


@dataclass(frozen=True, slots=True)
class Space:
    """What the guard sees, m: free way ahead, and room around; inf where nothing is near.

    Attributes:
        turns_m: free way ahead behind each turn of `prompt.navila.ACTIONS`; empty where no guard knows.
    """

    ahead_m: float = math.inf
    around_m: float = math.inf
    turns_m: tuple[float, ...] = ()

    def behind(self, guard_m: float) -> Space:
        """Return what is left where some of each way stays free."""
        ahead_m, *turns_m = (max(far - guard_m, 0.0) for far in (self.ahead_m, *self.turns_m))
        return Space(ahead_m, self.around_m, tuple(turns_m))


@dataclass(slots=True)
class StepMotion:
    """One step under way.

    Attributes:
        moved: of the action's amount, m or rad, never negative.
    """

    action: Action
    config: DriveConfig
    begin_ns: int
    pose: Pose | None
    moved: float = 0.0
    _yaw: float = 0.0
    _turned: float = 0.0

    def __post_init__(self) -> None:
        self._yaw = self.pose.yaw if self.pose else 0.0

    @property
    def rate(self) -> float:
        """Of the step, m/s or rad/s."""
        return self.config.speed if self.action.kind == "forward" else self.config.turn_speed

    @property
    def allowance_s(self) -> float:
        """Longest time of the step."""
        return allowance_s(self.action, self.config)

    def velocity(self, steady_ns: int, pose: Pose | None, space: Space) -> tuple[float, float] | StepOutcome:
        """Return the velocity to go on with, m/s and rad/s, or how the step has ended."""
        is_ahead = self.action.kind == "forward"
        elapsed_s = (steady_ns - self.begin_ns) / NS_PER_S
        self.moved = self._progress(elapsed_s, pose)
        left = self.action.amount - self.moved
        if left <= (_NEAR_M if is_ahead else _NEAR_RAD):
            return StepOutcome.DONE
        if elapsed_s > self.allowance_s:
            return StepOutcome.TIMED_OUT
        if (space.ahead_m if is_ahead else space.around_m) <= (self.config.guard_m if is_ahead else 0.0):
            return StepOutcome.BLOCKED
        if pose is None:  # made by time: nothing says when to slow down
            return (self.rate, 0.0) if is_ahead else (0.0, self._side * self.rate)
        if is_ahead:
            room = max(space.ahead_m - self.config.guard_m, 0.0)
            return _slowing(self.rate, min(left, room), self.config.deceleration, _CREEP_MPS), 0.0
        return 0.0, self._side * _slowing(self.rate, left, _TURN_DECELERATION, _CREEP_RADPS)

    @property
    def _side(self) -> int:
        return 1 if self.action.kind == "left" else -1

    def _progress(self, elapsed_s: float, pose: Pose | None) -> float:
        if pose is None or self.pose is None:
            return min(elapsed_s * self.rate, self.action.amount)
        if self.action.kind == "forward":
            ahead = (pose.x - self.pose.x) * math.cos(self.pose.yaw) + (pose.y - self.pose.y) * math.sin(self.pose.yaw)
            return max(ahead, 0.0)
        self._turned += self._side * math.remainder(pose.yaw - self._yaw, 2 * math.pi)
        self._yaw = pose.yaw
        return max(self._turned, 0.0)


def allowance_s(action: Action, config: DriveConfig) -> float:
    """Return the longest time that a step may take; never 0, which Nav2 takes for no limit."""
    rate = config.speed if action.kind == "forward" else config.turn_speed
    return action.amount / rate * 2 + ALLOWANCE_S


def _slowing(rate: float, left: float, deceleration: float, creep: float) -> float:
    return min(rate, max(math.sqrt(2 * deceleration * left), creep))
