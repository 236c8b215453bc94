"""A robot that follows an instruction step by step, as a camera films it: steps, their frames, and how it ended.

Time goes by in steps: a step takes its amount over the robot's speed, and a pause in which the next one is chosen. The
frames of a step are spread evenly over the time since the robot set out, as a query about that window shows them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from nvila_ros.prompt.navila import NUM_FRAMES, Action
from nvila_ros.world.rooms.camera import RoomCamera, take_picture
from nvila_ros.world.rooms.follower import MIN_PIXELS, Seen, doorways_in_view, follow
from nvila_ros.world.rooms.house import House
from nvila_ros.world.rooms.instructions import Task
from nvila_ros.world.rooms.robot import Robot

SPEED_MPS, TURN_RADPS = 0.4, 0.8
PAUSE_S = 0.5
TICK_S = 0.05
FRAME_S = 0.5
"""Frames are taken so far apart; the current one is taken when it is asked about."""
MAX_STEPS = 60


@dataclass(frozen=True, slots=True)
class EpisodeView:
    """A frame of the robot's camera: its number in the walk, where it was taken, the picture, and what it shows.

    Attributes:
        places: of the things that are seen, the middle of their pixels, fractions of width and height.
    """

    number: int
    x: float
    y: float
    yaw: float
    image: np.ndarray
    seen: Seen
    places: dict[int, tuple[float, float]]


@dataclass(slots=True)
class Walk:
    """A robot on its way through a house, and the frames that its camera took.

    Attributes:
        views: by the time at which they were taken, s.
    """

    house: House
    robot: Robot
    rng: np.random.Generator
    camera: RoomCamera = field(default_factory=RoomCamera)
    t_s: float = 1.0
    _track: list[tuple[float, float, float]] = field(default_factory=list)
    views: dict[float, EpisodeView] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._track = [self._pose()] * (round(self.t_s / TICK_S) + 1)

    def step(self, action: Action) -> None:
        """Make an action, with the small errors of a real drive, and pause."""
        error = 1 + self.rng.normal(0, 0.03)
        is_ahead = action.kind == "forward"
        side = {"left": 1, "right": -1}.get(action.kind, 0)
        rate = SPEED_MPS if is_ahead else TURN_RADPS
        for _ in range(round(action.amount * error / rate / TICK_S)):
            self.robot.advance(rate if is_ahead else 0.0, side * rate, TICK_S)
            self._tick()
        if action.amount:
            self._coast(is_ahead)
        for _ in range(round(PAUSE_S / TICK_S)):
            self._tick()

    def _coast(self, is_ahead: bool) -> None:
        while abs(self.robot.speed) + abs(self.robot.turn) > 1e-3:
            self.robot.advance(0.0, 0.0, TICK_S)
            self._tick()

    def _tick(self) -> None:
        self.t_s += TICK_S
        self._track.append(self._pose())

    def _pose(self) -> tuple[float, float, float]:
        return self.robot.x, self.robot.y, self.robot.yaw

    def frame_times(self) -> list[float]:
        """Return when the frames of the current step were taken, s, oldest first."""
        times = [self.t_s * k / (NUM_FRAMES - 1) for k in range(NUM_FRAMES - 1)]
        return [math.floor(t / FRAME_S + 0.5) * FRAME_S for t in times] + [self.t_s]

    def look(self) -> list[EpisodeView]:
        """Return the frames of the current step."""
        return [self.view_at(min(t, self.t_s)) for t in self.frame_times()]

    def view_at(self, t_s: float) -> EpisodeView:
        """Return the frame that was taken at a time."""
        key = round(t_s, 3)
        if key not in self.views:
            x, y, yaw = self._track[min(round(t_s / TICK_S), len(self._track) - 1)]
            picture = take_picture(self.house, x, y, yaw, self.camera, self.rng)
            places = _places(picture.label_HW, len(self.house.things))
            seen = Seen(frozenset(places), doorways_in_view(self.house, x, y, yaw))
            self.views[key] = EpisodeView(len(self.views), x, y, yaw, picture.image, seen, places)
        return self.views[key]


def _places(label_HW: np.ndarray, num_things: int) -> dict[int, tuple[float, float]]:
    """Return the middle of each thing that is seen, fractions of width and height."""
    rows, columns = np.nonzero(label_HW >= 0)
    label = label_HW[rows, columns]
    counts = np.bincount(label, minlength=num_things)
    x, y = (np.bincount(label, at + 0.5, num_things) / np.maximum(counts, 1) for at in (columns, rows))
    height, width = label_HW.shape
    return {int(k): (float(x[k]) / width, float(y[k]) / height) for k in np.flatnonzero(counts >= MIN_PIXELS)}


def all_seen(views: Sequence[EpisodeView]) -> Seen:
    """Return what any of the frames shows."""
    return Seen(
        frozenset().union(*(view.seen.things for view in views)),
        frozenset().union(*(view.seen.doorways for view in views)),
    )


def turned_in_vain(views: Sequence[EpisodeView]) -> int:
    """Return how many turns of 45 degrees the frames have made on the spot."""
    here = views[-1]
    angle = 0.0
    for before, after in zip(reversed(views[:-1]), reversed(views[1:]), strict=True):
        if math.hypot(before.x - here.x, before.y - here.y) > 0.1:
            break
        angle += abs(math.remainder(after.yaw - before.yaw, 2 * math.pi))
    return int(angle / math.radians(44))


@dataclass(frozen=True, slots=True)
class EpisodeOutcome:
    """How an episode ended; spl is success x shortest / max(shortest, traveled)."""

    is_success: bool
    has_stopped: bool
    num_steps: int
    traveled_m: float
    num_collisions: int
    spl: float


Choose = Callable[[Walk, list[EpisodeView]], Action]
"""Returns the next action, given the walk and the frames of the step."""


def run_episode(
    task: Task, choose: Choose, rng: np.random.Generator, max_steps: int = MAX_STEPS
) -> tuple[EpisodeOutcome, Walk]:
    """Let someone follow a task until it stops or has used up its steps."""
    walk = Walk(task.house, Robot(task.house, task.x, task.y, task.yaw), rng)
    has_stopped, steps = False, 0
    while not has_stopped and steps < max_steps:
        action = choose(walk, walk.look())
        has_stopped = action.kind == "stop"
        if not has_stopped:
            walk.step(action)
            steps += 1
    return judge(task, walk.robot, steps, has_stopped=has_stopped), walk


def judge(task: Task, robot: Robot, num_steps: int, *, has_stopped: bool) -> EpisodeOutcome:
    """Return how an episode ended."""
    success = has_stopped and task.is_done(robot.x, robot.y)
    spl = task.shortest_m / max(task.shortest_m, robot.traveled_m) if success else 0.0
    return EpisodeOutcome(success, has_stopped, num_steps, robot.traveled_m, robot.num_collisions, spl)


def choose_as_follower(task: Task) -> Choose:
    """Return the follower of a task."""

    def choose(walk: Walk, views: list[EpisodeView]) -> Action:
        robot = walk.robot
        num_turned = turned_in_vain(views)
        return follow(task.house, task.target, robot.x, robot.y, robot.yaw, all_seen(views), num_turned=num_turned)

    return choose
