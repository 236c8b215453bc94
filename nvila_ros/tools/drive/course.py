"""A task driven without ROS: the drive, watch and guard of the node, a simulated robot, and time that is counted.

In: a task, and whoever chooses: frames and an instruction to the probabilities of the ten actions. Out: how the drive
ended, and the way. A second of the robot takes as long as its computing takes, so hundreds of tasks can be counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nvila_ros.driving.decision import read_choice
from nvila_ros.driving.driver import Ask, Driver, Goal, Mover
from nvila_ros.driving.guard import find_space
from nvila_ros.driving.motion import Pose, Space
from nvila_ros.driving.outcomes import DriveEnd, StepOutcome, StepReport
from nvila_ros.driving.settings import DriveConfig
from nvila_ros.driving.watch import Frames, Watch
from nvila_ros.prompt.navila import NUM_FRAMES, SENTENCES
from nvila_ros.types import NS_PER_S
from nvila_ros.video.sampling import sample_indices
from nvila_ros.world.rooms.camera import RoomCamera, take_picture
from nvila_ros.world.rooms.house import scan
from nvila_ros.world.rooms.instructions import Task
from nvila_ros.world.rooms.robot import ROBOT_M, Robot

TICK_S = 0.05
FRAME_TICKS = 2
SCAN_BEARINGS = np.linspace(-math.pi, math.pi, 181)[:-1]
SCAN_M = 8.0
START_NS = 1_000 * NS_PER_S

Chooser = Callable[[str, str, Sequence[np.ndarray]], Sequence[float]]
"""Takes the question, the instruction and the frames, oldest first, (H, W, 3) uint8 RGB; returns ten probabilities."""


@dataclass(frozen=True, slots=True)
class DriveOutcome:
    """How a task went; spl is success x shortest / max(shortest, traveled).

    Attributes:
        track: where the robot was, x and y in m, twenty times a second.
        steps: as they were reported.
    """

    end: DriveEnd
    is_success: bool
    spl: float
    num_collisions: int
    track: tuple[tuple[float, float], ...]
    steps: tuple[StepReport, ...]


class Course:
    """One task under way."""

    def __init__(self, task: Task, choose: Chooser, config: DriveConfig, seed: int = 0) -> None:
        self._task, self._choose, self._rng = task, choose, np.random.default_rng(seed)
        self._robot = Robot(task.house, task.x, task.y, task.yaw)
        self._camera, self._tick = RoomCamera(), 0
        self._poses: list[tuple[int, float, float, float]] = []
        self._watch = Watch(config, Frames(), armed=True)
        self._track: list[tuple[float, float]] = []
        self._steps: list[StepReport] = []
        for _ in range(round(1 / TICK_S)):  # the camera has run for a while when the goal comes
            self._go_on(0.0, 0.0)
        goal = Goal(task.instruction, config.max_steps, config.max_s, config.max_m, config.min_probability)
        self._driver = Driver(goal, Mover.CMD_VEL, config, self._watch, self._ros_ns, self._steady_ns)

    @property
    def _steady_ns(self) -> int:
        return round(self._tick * TICK_S * NS_PER_S)

    @property
    def _ros_ns(self) -> int:
        return START_NS + self._steady_ns

    def run(self) -> DriveOutcome:
        """Drive to the end."""
        robot = self._robot
        while True:
            self._watch.look(self._ros_ns, self._steady_ns)
            orders = self._driver.turn(self._ros_ns, self._steady_ns, Pose(robot.x, robot.y, robot.yaw), self._space())
            self._steps += orders.reports
            if orders.ask is not None:
                self._answer(orders.ask)
            self._go_on(*(orders.velocity or (0.0, 0.0)))
            if orders.ended is not None:
                return self._judge(orders.ended)

    def _go_on(self, speed: float, turn: float) -> None:
        robot = self._robot
        for _ in range(2):
            robot.advance(speed, turn, TICK_S / 2)
        self._tick += 1
        self._track.append((robot.x, robot.y))
        if self._tick % FRAME_TICKS == 0:
            self._poses.append((self._ros_ns, robot.x, robot.y, robot.yaw))
            # A picture is taken when it is looked at; here only that there is a new one.
            self._watch.on_frame(self._ros_ns, self._tick.to_bytes(8, "big"), self._steady_ns)

    def _space(self) -> Space:
        robot = self._robot
        ranges = scan(robot.house, robot.x, robot.y, robot.yaw + SCAN_BEARINGS, SCAN_M)
        ranges[ranges >= SCAN_M] = math.inf
        return find_space(ranges, SCAN_BEARINGS, ROBOT_M)

    def _answer(self, ask: Ask) -> None:
        """Show what a query about that window would, and let the choice be made."""
        window = [pose for pose in self._poses if pose[0] >= ask.start_ns]
        chosen = [window[k] for k in sample_indices([pose[0] for pose in window], NUM_FRAMES)]
        house, camera = self._task.house, self._camera
        images = [take_picture(house, x, y, yaw, camera, self._rng).image for _, x, y, yaw in chosen]
        probabilities = self._choose(ask.question, self._task.instruction, images)
        stamps_ns = [pose[0] for pose in chosen]
        self._driver.on_answer(
            ask.serial, read_choice(ask.question, SENTENCES, probabilities, stamps_ns, "", self._ros_ns)
        )

    def _judge(self, end: DriveEnd) -> DriveOutcome:
        robot, shortest_m = self._robot, self._task.shortest_m
        is_success = end.reason.name == "STOPPED" and self._task.is_done(robot.x, robot.y)
        spl = shortest_m / max(shortest_m, robot.traveled_m) if is_success else 0.0
        return DriveOutcome(end, is_success, spl, robot.num_collisions, tuple(self._track), tuple(self._steps))


def summarize(outcomes: Sequence[DriveOutcome]) -> dict[str, float]:
    """Return the means over tasks: of success, SPL, collisions, steps and way, and how many steps were blocked."""
    num = max(len(outcomes), 1)
    return {
        "tasks": len(outcomes),
        "success": sum(o.is_success for o in outcomes) / num,
        "spl": sum(o.spl for o in outcomes) / num,
        "collided": sum(o.num_collisions > 0 for o in outcomes) / num,
        "steps": sum(o.end.num_steps for o in outcomes) / num,
        "traveled_m": sum(o.end.traveled_m for o in outcomes) / num,
        "blocked": sum(s.outcome is StepOutcome.BLOCKED for o in outcomes for s in o.steps) / num,
    }
