"""A drive from its goal to its end, turn by turn: ask, decide, move, stand, ask again.

In: what was observed (`Watch`, pose, space, answers), and the time, at each turn. Out: orders: a velocity, a
question, a step of Nav2's, the steps to report. It talks to nobody, so every rule of it is tested without ROS.

Rules, of which a model can change none: it chooses among ten actions; a choice needs its probability, a frame that is
young and from after the last step, and a lock that is open; what there is no room for is gone round; a step has an
amount and a time; at every turn all of `Watch` must hold; and every way out orders the robot to stand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import Enum

from nvila_ros.driving.decision import MIN_WAY_M, make_way, objection
from nvila_ros.driving.motion import STAND, Pose, Space, StepMotion, allowance_s
from nvila_ros.driving.outcomes import DriveEnd, DriveStop, Fault, ScoredStep, StepOutcome, StepReport
from nvila_ros.driving.settings import DriveConfig
from nvila_ros.driving.watch import Watch
from nvila_ros.prompt.navila import Action, question
from nvila_ros.types import NS_PER_S

BEFORE_S = 1.0
"""The first question also shows what the camera saw so long before the goal."""
Velocity = tuple[float, float]


class Mover(Enum):
    """What moves the robot."""

    NAV2 = "nav2"
    CMD_VEL = "cmd_vel"
    DRY_RUN = "dry_run"


class DrivePhase(Enum):
    """What a drive waits for: a frame from after the last step, an answer, or the end of a step."""

    SETTLING = "settling"
    ASKING = "asking"
    MOVING = "moving"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Goal:
    """What is to be done, and its limits."""

    instruction: str
    max_steps: int
    max_s: float
    max_m: float
    min_probability: float


@dataclass(frozen=True, slots=True)
class Ask:
    """A question to ask now, about frames from a stamp on, ROS clock; serial separates its answer from older ones."""

    serial: int
    question: str
    start_ns: int


@dataclass(slots=True)
class Orders:
    """What is to be done at a turn.

    Attributes:
        velocity: to be published; None leaves the topic to others.
        behavior: a step that Nav2 is to make, with its time.
        cancels_behavior: the step that Nav2 makes is to be cancelled.
        reports: steps that begin or have ended.
    """

    velocity: Velocity | None = None
    ask: Ask | None = None
    behavior: tuple[Action, float] | None = None
    cancels_behavior: bool = False
    reports: list[StepReport] = field(default_factory=list)
    ended: DriveEnd | None = None


@dataclass(slots=True)
class Driver:
    """One drive.

    Args:
        goal: to be followed.
        mover: what moves the robot.
        config: limits that no goal changes.
        watch: what is observed of the world.
        ros_ns: now.
        steady_ns: now.
    """

    goal: Goal
    mover: Mover
    config: DriveConfig
    watch: Watch
    ros_ns: int
    steady_ns: int
    phase: DrivePhase = DrivePhase.SETTLING
    num_steps: int = 0
    traveled_m: float = 0.0
    _index: int = 0
    _serial: int = 0
    _settled_ns: int = 0
    _asked_ns: int = 0
    _question: str = ""
    _answer: ScoredStep | Fault | None = None
    _step: StepReport | None = None
    _motion: StepMotion | None = None
    _behavior_end: tuple[StepOutcome, str, float] | None = None
    _last: StepReport | None = None
    _blocked: int = 0
    _is_way_blocked: bool = False
    _turned: str = ""
    _turns: list[Action] = field(default_factory=list)
    _wanted_end: Fault | None = None
    _began: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        self._began = self.ros_ns, self.steady_ns
        self._question = question(self.config.wording, self.goal.instruction)
        self.watch.clear()

    @property
    def is_dry(self) -> bool:
        """Whether nothing is moved."""
        return self.mover is Mover.DRY_RUN

    def end(self, reason: DriveStop, text: str) -> None:
        """Ask the drive to end at its next turn, for a reason that it cannot see by itself."""
        if self._wanted_end is None:
            self._wanted_end = Fault(reason, text)

    def on_answer(self, serial: int, answer: ScoredStep | Fault) -> None:
        """Take what the model chose, or why there is no answer; an answer to an older question is dropped."""
        if serial == self._serial and self.phase is DrivePhase.ASKING:
            self._answer = answer

    def on_behavior_end(self, outcome: StepOutcome, error: str, moved: float) -> None:
        """Take how the step that Nav2 made has ended."""
        if self.phase is DrivePhase.MOVING:
            self._behavior_end = outcome, error, moved

    def turn(self, ros_ns: int, steady_ns: int, pose: Pose | None, space: Space | Fault) -> Orders:
        """Go on.

        Args:
            ros_ns: now.
            steady_ns: now.
            pose: of odometry; None where there is none.
            space: what the guard sees, or why it sees nothing.
        """
        self.ros_ns, self.steady_ns = ros_ns, steady_ns
        orders = Orders(velocity=None if self.mover is not Mover.CMD_VEL else STAND)
        if self.phase is DrivePhase.ENDED:
            return orders
        fault = self._wanted_end or self._fault(pose, space)
        if fault is not None:
            self._finish(orders, fault)
        elif self.phase is DrivePhase.SETTLING:
            self._settle(orders)
        elif self.phase is DrivePhase.ASKING:
            self._decide(orders, pose, space)
        else:
            self._move(orders, pose, space)
        return orders

    def _fault(self, pose: Pose | None, space: Space | Fault) -> Fault | None:
        if fault := self.watch.fault(self.ros_ns, self.steady_ns, is_dry=self.is_dry):
            return fault
        if (self.steady_ns - self._began[1]) / NS_PER_S >= self.goal.max_s:
            return Fault(DriveStop.LIMIT, f"the {self.goal.max_s:g} s of the goal are over; raise max_s")
        if self.mover is not Mover.CMD_VEL:
            return None
        if self.config.odometry_topic and pose is None:
            return Fault(DriveStop.MOTION_FAILED, f"odometry on {self.config.odometry_topic} is lost; see its driver")
        return space if isinstance(space, Fault) else None

    def _settle(self, orders: Orders) -> None:
        """Ask once there is a frame from after the last step."""
        if self.watch.frames.stamp_ns < self._settled_ns:
            return
        if self.num_steps >= self.goal.max_steps:
            self._finish(orders, Fault(DriveStop.LIMIT, f"the {self.goal.max_steps} steps of the goal are used up"))
            return
        self._serial += 1
        self._answer, self._asked_ns, self.phase = None, self.steady_ns, DrivePhase.ASKING
        orders.ask = Ask(self._serial, self._question, self._began[0] - round(BEFORE_S * NS_PER_S))

    def _decide(self, orders: Orders, pose: Pose | None, space: Space | Fault) -> None:
        answer = self._answer
        if answer is None:
            if self.steady_ns - self._asked_ns > self.config.answer_s * NS_PER_S:
                text = f"no answer came within {self.config.answer_s:g} s; raise answer_s or take a faster build"
                self._finish(orders, Fault(DriveStop.NO_ANSWER, text))
            return
        if isinstance(answer, Fault):
            self._finish(orders, answer)
            return
        refusal = objection(
            answer,
            min_probability=self.goal.min_probability,
            max_age_s=self.config.max_age_s,
            settled_ns=self._settled_ns,
        )
        if refusal is not None or answer.action.kind == "stop" or self.is_dry:
            self._keep_standing(orders, answer, refusal)
        else:
            self._find_way(orders, answer, pose, space)

    def _find_way(self, orders: Orders, choice: ScoredStep, pose: Pose | None, space: Space | Fault) -> None:
        """Begin the step, or one that there is room for."""
        found = space if self.mover is Mover.CMD_VEL and isinstance(space, Space) else Space()
        room = found.behind(self.config.guard_m)
        if self._is_way_blocked:
            room = replace(room, ahead_m=0.0)
        made = make_way(choice, room, self._turned, self._turns) if self.config.detours else choice
        is_ahead, is_other = made.action.kind == "forward", made is not choice
        why = f"in place of {choice.action.sentence!r}: {room.ahead_m:.2f} m are free ahead" if is_other else ""
        self._turned = made.action.kind if is_other and not is_ahead else ""
        self._turns = [] if is_ahead else [*self._turns, made.action]
        if is_ahead and self.traveled_m + made.action.amount > self.goal.max_m:
            text = f"the step would exceed the {self.goal.max_m:g} m of the goal; raise max_m"
            self._keep_standing(orders, made, Fault(DriveStop.LIMIT, text))
        elif not self._turned or self._is_way_left(orders, why):
            self._begin(orders, made, pose, why)

    def _is_way_left(self, orders: Orders, error: str) -> bool:
        """Count a way ahead that could not be made; the drive ends where there are too many of these."""
        self._blocked += 1
        if self._blocked >= self.config.max_blocked:
            text = f"{self._blocked} ways ahead, with no other between them, were blocked: {error}"
            self._finish(orders, Fault(DriveStop.BLOCKED, text))
        return self.phase is not DrivePhase.ENDED

    def _keep_standing(self, orders: Orders, choice: ScoredStep, refusal: Fault | None) -> None:
        """Tell of a step that is not taken; a stop and a refusal end the drive, a dry run goes on."""
        text = refusal.text if refusal else "" if choice.action.kind == "stop" else "dry run"
        self._last = StepReport(self._index, StepOutcome.NOT_TAKEN, choice, text)
        orders.reports.append(self._last)
        self._index += 1
        if refusal is not None:
            self._finish(orders, refusal)
        elif choice.action.kind == "stop":
            self._finish(orders, Fault(DriveStop.STOPPED, ""))
        else:
            self.num_steps += 1
            self._settle_from(self.ros_ns)

    def _begin(self, orders: Orders, choice: ScoredStep, pose: Pose | None, why: str) -> None:
        self._step = StepReport(self._index, StepOutcome.BEGUN, choice, why, begin_ns=self.ros_ns)
        orders.reports.append(self._step)
        self._behavior_end, self.phase = None, DrivePhase.MOVING
        self._motion = StepMotion(choice.action, self.config, self.steady_ns, pose)
        if self.mover is Mover.NAV2:
            orders.behavior = choice.action, allowance_s(choice.action, self.config)

    def _move(self, orders: Orders, pose: Pose | None, space: Space | Fault) -> None:
        assert self._motion is not None
        if self.mover is Mover.NAV2:
            if self._behavior_end is not None:
                self._end_step(orders, *self._behavior_end)
            elif self.steady_ns - self._motion.begin_ns > (self._motion.allowance_s + 2) * NS_PER_S:
                orders.cancels_behavior = True
                self._end_step(orders, StepOutcome.TIMED_OUT, "Nav2 did not end the step in its time", 0.0)
            return
        assert isinstance(space, Space), "a fault ends the drive before"
        found = self._motion.velocity(self.steady_ns, pose, space)
        if isinstance(found, StepOutcome):
            self._end_step(orders, found, _explain(found, space), self._motion.moved)
        else:
            orders.velocity = found

    def _end_step(self, orders: Orders, outcome: StepOutcome, error: str, moved: float) -> None:
        assert self._step is not None
        is_ahead = self._step.choice.action.kind == "forward"
        self._report_end(orders, outcome, error, moved)
        self._is_way_blocked = outcome is StepOutcome.BLOCKED and moved < MIN_WAY_M
        if is_ahead and moved >= MIN_WAY_M:
            self._blocked = 0
        if outcome in (StepOutcome.FAILED, StepOutcome.TIMED_OUT):
            self._finish(orders, Fault(DriveStop.MOTION_FAILED, error))
        elif not self._is_way_blocked or self._is_way_left(orders, error):
            self._settle_from(self.ros_ns)

    def _settle_from(self, ros_ns: int) -> None:
        self._settled_ns, self.phase = ros_ns + round(self.config.settle_s * NS_PER_S), DrivePhase.SETTLING

    def _report_end(self, orders: Orders, outcome: StepOutcome, error: str, moved: float) -> None:
        step, self._step = self._step, None
        assert step is not None
        self.num_steps += 1
        self._index += 1
        moved = moved if math.isfinite(moved) else 0.0
        self.traveled_m += moved if step.choice.action.kind == "forward" else 0.0
        self._last = StepReport(step.index, outcome, step.choice, error, step.begin_ns, self.ros_ns, moved)
        orders.reports.append(self._last)

    def _finish(self, orders: Orders, fault: Fault) -> None:
        """End the drive: whatever moves is ordered to stand."""
        if self._step is not None:
            orders.cancels_behavior = self.mover is Mover.NAV2
            moved = self._motion.moved if self._motion is not None else 0.0
            self._report_end(orders, StepOutcome.INTERRUPTED, fault.text, moved)
        self.phase = DrivePhase.ENDED
        orders.velocity = STAND if self.mover is Mover.CMD_VEL else None
        orders.ask = orders.behavior = None
        duration_s = (self.steady_ns - self._began[1]) / NS_PER_S
        orders.ended = DriveEnd(fault.reason, fault.text, self.num_steps, self.traveled_m, duration_s, self._last)


def _explain(outcome: StepOutcome, space: Space) -> str:
    if outcome is StepOutcome.BLOCKED:
        return f"the way ahead is free for {space.ahead_m:.2f} m, the room around for {space.around_m:.2f} m"
    if outcome is StepOutcome.TIMED_OUT:
        return "the robot did not make the step in its time; see odometry and what takes cmd_vel"
    return ""
