"""Whatever happens at any turn of a drive, no rule of it is broken; and each way out has its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvila_ros.driving.decision import read_choice
from nvila_ros.driving.driver import DrivePhase, Driver, Goal, Mover, Orders
from nvila_ros.driving.motion import STAND, Pose, Space
from nvila_ros.driving.outcomes import DriveStop, Fault, ScoredStep, StepOutcome
from nvila_ros.driving.settings import DriveConfig
from nvila_ros.driving.watch import Frames, Watch
from nvila_ros.prompt.navila import ACTIONS, SENTENCES
from nvila_ros.types import NS_PER_S

MS = NS_PER_S // 1000
TICK_MS = 50
START_NS = 5_000 * NS_PER_S
GOAL = Goal("Go to the red ball.", max_steps=20, max_s=120.0, max_m=10.0, min_probability=0.3)


def certain(action: int, probability: float = 0.91) -> tuple[float, ...]:
    return tuple(probability if k == action else (1 - probability) / 9 for k in range(10))


@dataclass
class DriveBench:
    """A robot on a plane that obeys at once, a camera, and a model that says what it is told to."""

    mover: Mover = Mover.CMD_VEL
    goal: Goal = GOAL
    config: DriveConfig = field(default_factory=DriveConfig)
    armed: bool = True
    has_camera: bool = True
    is_frozen: bool = False
    is_mute: bool = False
    space: Space | Fault = Space()
    answers: list[tuple[float, ...]] = field(default_factory=list)
    ms: int = 0
    x: float = 0.0
    yaw: float = 0.0
    orders: list[Orders] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.watch = Watch(self.config, Frames(), armed=self.armed)
        self.film()
        self.driver = Driver(self.goal, self.mover, self.config, self.watch, self.ros_ns, self.ms * MS)

    @property
    def ros_ns(self) -> int:
        return START_NS + self.ms * MS

    def film(self) -> None:
        if self.has_camera:
            self.watch.on_frame(self.ros_ns, b"" if self.is_frozen else str(self.ms).encode(), self.ms * MS)

    def tick(self) -> Orders:
        self.ms += TICK_MS
        self.film()
        self.watch.look(self.ros_ns, self.ms * MS)
        pose = Pose(self.x, 0.0, self.yaw)
        orders = self.driver.turn(self.ros_ns, self.ms * MS, pose, self.space)
        self.orders.append(orders)
        if orders.velocity:
            self.x += orders.velocity[0] * TICK_MS / 1000
            self.yaw = math.remainder(self.yaw + orders.velocity[1] * TICK_MS / 1000, 2 * math.pi)
        if orders.ask and not self.is_mute:
            chosen = self.answers.pop(0) if self.answers else certain(0)
            stamps = [self.watch.frames.stamp_ns]
            choice = read_choice(orders.ask.question, SENTENCES, chosen, stamps, "q", self.ros_ns)
            self.driver.on_answer(orders.ask.serial, choice)
        return orders

    def until(self, is_true, most: int = 4000):  # type: ignore[no-untyped-def]
        for _ in range(most):
            orders = self.tick()
            if is_true(orders):
                return orders
        raise AssertionError(f"did not happen; the drive is {self.driver.phase}")

    def end(self):  # type: ignore[no-untyped-def]
        return self.until(lambda orders: orders.ended).ended


def test_steps_are_made_one_after_the_other_until_the_model_says_stop() -> None:
    bench = DriveBench(answers=[certain(3), certain(6), certain(9), certain(1)])
    end = bench.end()

    assert end.reason is DriveStop.STOPPED
    assert (end.num_steps, end.error) == (4, "")
    assert math.isclose(end.traveled_m, 1.0, abs_tol=0.05)
    assert math.isclose(bench.x, 1.0, abs_tol=0.06)
    assert abs(bench.yaw) < math.radians(6)
    told = [step for orders in bench.orders for step in orders.reports]
    assert [step.outcome.name for step in told] == ["BEGUN", "DONE"] * 4 + ["NOT_TAKEN"]
    assert [step.index for step in told] == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    asked = [orders.ask for orders in bench.orders if orders.ask]
    assert [ask.serial for ask in asked] == [1, 2, 3, 4, 5]
    assert 'task is: "Go to the red ball."' in asked[0].question
    assert all(orders.velocity == STAND for orders in bench.orders if orders.ask or orders.ended)


def test_a_question_waits_for_a_frame_from_after_the_step() -> None:
    bench = DriveBench(answers=[certain(3)])
    bench.until(lambda orders: any(step.outcome is StepOutcome.DONE for step in orders.reports))
    done_ms = bench.ms
    bench.until(lambda orders: orders.ask)

    assert bench.ms - done_ms >= bench.config.settle_s * 1000


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        (certain(3, 0.29), DriveStop.UNSURE),
        (certain(0, 0.29), DriveStop.UNSURE),
        (certain(0), DriveStop.STOPPED),
    ],
)
def test_what_is_not_likely_enough_moves_nothing(chosen: tuple[float, ...], reason: DriveStop) -> None:
    bench = DriveBench(answers=[chosen])

    assert bench.end().reason is reason
    assert bench.x == bench.yaw == 0


def test_limits_end_a_drive() -> None:
    ways, steps = [certain(3)] * 40, [certain(4), certain(7)] * 40
    assert DriveBench(answers=ways, goal=Goal("Go.", 30, 120.0, 2.0, 0.3)).end().traveled_m <= 2.0
    assert DriveBench(answers=list(steps), goal=Goal("Go.", 5, 120.0, 2.0, 0.3)).end().num_steps == 5
    end = DriveBench(answers=list(steps), goal=Goal("Go.", 500, 7.0, 2.0, 0.3)).end()
    assert end.reason is DriveStop.LIMIT
    assert end.duration_s < 7.2


def test_what_is_in_the_way_is_not_touched_and_ends_the_drive_in_time() -> None:
    bench = DriveBench(answers=[certain(3)] * 9, space=Space(ahead_m=0.1))
    end = bench.end()

    assert end.reason is DriveStop.BLOCKED
    assert end.num_steps == bench.config.max_blocked - 1
    assert bench.x == 0
    assert "in place of 'The next action is move forward 75 cm.': 0.00 m are free ahead" in end.error
    plain = DriveBench(answers=[certain(3)] * 9, space=bench.space, config=DriveConfig(detours=False, max_blocked=3))
    assert (plain.end().reason, plain.x, plain.yaw) == (DriveStop.BLOCKED, 0, 0)


def test_what_is_in_the_way_is_gone_round() -> None:
    """A thing ahead, and room from 30 degrees to the right on: the robot turns there, goes on, and only then back."""
    bench = DriveBench(answers=[certain(3), certain(6), certain(6), certain(0)])
    bench.space = Space(ahead_m=0.2, turns_m=(0.2, 0.2, 0.2, 0.3, 1.0, 2.0))
    bench.until(lambda orders: any(step.outcome is StepOutcome.DONE for step in orders.reports))
    bench.space = Space(ahead_m=1.0)
    bench.end()

    told = [step for orders in bench.orders for step in orders.reports if step.outcome is not StepOutcome.BEGUN]
    assert [step.choice.action.sentence[19:] for step in told] == [
        "turn right 30 degree.",
        "move forward 50 cm.",
        "turn left 45 degree.",
        "stop.",
    ]
    begun = [step.error for orders in bench.orders for step in orders.reports if step.outcome is StepOutcome.BEGUN]
    assert begun[0] == "in place of 'The next action is move forward 75 cm.': 0.08 m are free ahead"
    assert begun[1] == "in place of 'The next action is turn left 45 degree.': 0.88 m are free ahead"
    assert begun[2] == ""


def test_a_robot_that_turns_back_for_the_second_time_goes_ahead() -> None:
    bench = DriveBench(answers=[*map(certain, (6, 9, 6, 9, 6, 0))], space=Space(ahead_m=1.0))
    bench.end()

    told = [step for orders in bench.orders for step in orders.reports if step.outcome is not StepOutcome.BEGUN]
    assert [step.choice.action.kind for step in told] == ["left", "right", "forward", "right", "left", "stop"]


def test_a_way_round_stays_within_the_goal() -> None:
    """The way back is no way ahead, but what is made in its place is."""
    bench = DriveBench(answers=[certain(3), certain(4)], goal=Goal("Go.", 20, 120.0, 0.3, 0.2), space=Space(0.1))
    bench.until(lambda orders: any(step.outcome is StepOutcome.DONE for step in orders.reports))
    bench.space = Space(ahead_m=2.0)

    assert bench.end().reason is DriveStop.LIMIT
    assert bench.x == 0


@pytest.mark.parametrize(("ahead_m", "made"), [(0.9, 3), (0.7, 2), (0.4, 1), (0.25, 1)])
def test_a_way_ahead_is_as_long_as_there_is_room_for(ahead_m: float, made: int) -> None:
    bench = DriveBench(answers=[certain(3)], space=Space(ahead_m=ahead_m))
    orders = bench.until(lambda orders: orders.reports)

    assert orders.reports[0].choice.action == ACTIONS[made]
    assert orders.reports[0].choice.probability == certain(3)[made]


def test_a_robot_that_does_not_obey_ends_the_drive() -> None:
    bench = DriveBench(answers=[certain(3)])
    bench.until(lambda orders: orders.velocity != STAND)
    for _ in range(400):
        bench.x = 0.0
        orders = bench.tick()
        if orders.ended:
            break

    assert orders.ended is not None
    assert orders.ended.reason is DriveStop.MOTION_FAILED


def drive_into(bench: DriveBench, fault: str) -> None:
    if fault == "camera":
        bench.has_camera = False
    elif fault == "frozen":
        bench.is_frozen = True
    elif fault == "stamps":
        bench.watch.on_frame(START_NS, b"old", bench.ms * MS)
    elif fault == "clock":
        bench.watch.look(bench.ros_ns + 60 * NS_PER_S, bench.ms * MS)
    elif fault == "model":
        bench.watch.is_alive = False
    elif fault == "disarmed":
        bench.watch.armed = False
    elif fault == "standing":
        bench.watch.interrupted_by = "person"
    elif fault == "guard":
        bench.space = Fault(DriveStop.MOTION_FAILED, "scan is lost")
    else:
        bench.driver.end(DriveStop[fault.upper()], "because")


FAULTS = {
    "camera": DriveStop.STALE,
    "frozen": DriveStop.FROZEN,
    "stamps": DriveStop.CLOCK_JUMP,
    "clock": DriveStop.CLOCK_JUMP,
    "model": DriveStop.NO_ANSWER,
    "disarmed": DriveStop.DISARMED,
    "standing": DriveStop.INTERRUPTED,
    "guard": DriveStop.MOTION_FAILED,
    "canceled": DriveStop.CANCELED,
    "shutdown": DriveStop.SHUTDOWN,
}


@pytest.mark.parametrize("mover", [Mover.CMD_VEL, Mover.NAV2])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_amid_a_step_stands_the_robot_within_half_a_second(fault: str, mover: Mover) -> None:
    if fault == "guard" and mover is Mover.NAV2:
        pytest.skip("Nav2 has its own guard")
    bench = DriveBench(answers=[certain(3)] * 3, mover=mover)
    bench.until(lambda orders: any(step.outcome is StepOutcome.BEGUN for step in orders.reports))
    for _ in range(3):
        bench.tick()
    before_ms = bench.ms
    drive_into(bench, fault)
    ended = bench.until(lambda orders: orders.ended)

    assert ended.ended.reason is FAULTS[fault]
    assert bench.ms - before_ms <= 400
    assert ended.reports[-1].outcome is StepOutcome.INTERRUPTED
    assert ended.velocity == (STAND if mover is Mover.CMD_VEL else None)
    assert ended.cancels_behavior == (mover is Mover.NAV2)
    assert bench.tick().velocity == (STAND if mover is Mover.CMD_VEL else None)


def test_nobody_answers() -> None:
    bench = DriveBench(is_mute=True, config=DriveConfig(answer_s=2.0))

    assert bench.end().reason is DriveStop.NO_ANSWER
    assert 2000 <= bench.ms <= 2200


def test_an_answer_to_an_older_question_is_dropped() -> None:
    bench = DriveBench(is_mute=True)
    bench.until(lambda orders: orders.ask)
    choice = read_choice("q", SENTENCES, certain(3), [bench.watch.frames.stamp_ns], "", bench.ros_ns)
    bench.driver.on_answer(0, choice)
    bench.tick()

    assert bench.driver.phase is DrivePhase.ASKING


def test_a_dry_run_moves_nothing_and_needs_no_arming() -> None:
    bench = DriveBench(answers=[certain(3), certain(6)], mover=Mover.DRY_RUN, armed=False)
    end = bench.end()

    assert end.reason is DriveStop.STOPPED
    assert all(orders.velocity is None and orders.behavior is None for orders in bench.orders)
    assert [step.error for orders in bench.orders for step in orders.reports] == ["dry run", "dry run", ""]


def test_nav2_makes_a_step_and_says_how_it_ended() -> None:
    bench = DriveBench(answers=[certain(3), certain(5), certain(2)], mover=Mover.NAV2)
    first = bench.until(lambda orders: orders.behavior)
    assert first.behavior == (ACTIONS[3], 0.75 / 0.3 * 2 + 2)
    bench.driver.on_behavior_end(StepOutcome.DONE, "", 0.74)
    second = bench.until(lambda orders: orders.behavior)
    assert second.behavior[0] == ACTIONS[5]
    bench.driver.on_behavior_end(StepOutcome.BLOCKED, "COLLISION_AHEAD", 0.2)
    bench.until(lambda orders: orders.behavior)
    bench.driver.on_behavior_end(StepOutcome.FAILED, "TF_ERROR", 0.0)
    end = bench.end()

    assert (end.reason, end.error) == (DriveStop.MOTION_FAILED, "TF_ERROR")
    assert end.traveled_m == 0.74


FINITE = st.floats(0, 1)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_no_sequence_of_answers_and_faults_breaks_a_rule(data: st.DataObject) -> None:
    config = DriveConfig()
    bench = DriveBench(config=config, mover=data.draw(st.sampled_from(list(Mover))), armed=data.draw(st.booleans()))
    weights = st.lists(FINITE, min_size=10, max_size=10).filter(lambda found: sum(found) > 0.01)
    bench.answers = [tuple(w / sum(ws) for w in ws) for ws in data.draw(st.lists(weights, max_size=6))]
    when = data.draw(st.integers(0, 60))
    fault = data.draw(st.sampled_from([*FAULTS, ""]))
    bench.space = Space(data.draw(st.floats(0, 3)), data.draw(st.floats(0, 3)))
    begun: list[ScoredStep] = []
    for turn in range(400):
        if turn == when and fault:
            drive_into(bench, fault)
        orders = bench.tick()
        begun += [step.choice for step in orders.reports if step.outcome is StepOutcome.BEGUN]
        if orders.velocity not in (None, STAND):
            assert bench.mover is Mover.CMD_VEL
            assert bench.armed
            assert bench.driver.phase is DrivePhase.MOVING
            assert 0 <= orders.velocity[0] <= config.speed
            assert abs(orders.velocity[1]) <= config.turn_speed
            assert orders.velocity[0] == 0 or bench.space.ahead_m > config.guard_m
        if orders.behavior:
            assert bench.mover is Mover.NAV2
            assert orders.behavior[1] > 0
        if orders.ended:
            break
    for choice in begun:
        assert choice.action in ACTIONS
        assert choice.probability == choice.probabilities[ACTIONS.index(choice.action)]
    if orders.ended:
        for later in (bench.tick() for _ in range(5)):
            assert later.velocity in (None, STAND)
            assert not later.behavior
            assert not later.ask
