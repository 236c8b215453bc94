"""Goals in, steps and results out: between the messages of a drive and the values of `nvila_ros.driving`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from sensor_msgs.msg import CompressedImage

from nvila_ros.action import Navigate
from nvila_ros.driving.driver import Goal
from nvila_ros.driving.motion import Pose
from nvila_ros.driving.outcomes import DriveEnd, StepReport
from nvila_ros.driving.settings import DriveConfig
from nvila_ros.errors import QueryError
from nvila_ros.msg import Step
from nvila_ros.prompt.navila import SENTENCES
from nvila_ros.ros.messages import stamp_from_ns

KINDS = {"stop": Step.STOP, "forward": Step.FORWARD, "left": Step.LEFT, "right": Step.RIGHT}


def goal_from_message(message: Navigate.Goal, config: DriveConfig) -> Goal:
    """Return a goal with its limits; none may be laxer than the parameters say.

    Raises:
        QueryError: the instruction is empty, or a limit breaks its rule.
    """
    if not message.instruction.strip():
        raise QueryError("an instruction must hold text, got none")
    for name in ("max_s", "max_m", "min_probability"):
        value = getattr(message, name)
        if not (math.isfinite(value) and value >= 0):
            raise QueryError(f"{name} must be a finite number from 0 on, got {value}; 0 takes the parameter's")
    if message.min_probability > 1:
        raise QueryError(f"min_probability must lie in [0, 1], got {message.min_probability}")
    return Goal(
        instruction=message.instruction.strip(),
        max_steps=min(message.max_steps or config.max_steps, config.max_steps),
        max_s=min(message.max_s or config.max_s, config.max_s),
        max_m=min(message.max_m or config.max_m, config.max_m),
        min_probability=max(message.min_probability, config.min_probability),
    )


def step_message(
    step: StepReport, goal_id: str, instruction: str, pose: Pose | None, picture: CompressedImage | None
) -> Step:
    """Return a step as it is published."""
    choice = step.choice
    message = Step(
        goal_id=goal_id,
        instruction=instruction,
        index=step.index,
        outcome=int(step.outcome),
        error=step.error,
        question=choice.question,
        action=choice.action.sentence,
        kind=KINDS[choice.action.kind],
        amount=choice.action.amount,
        probability=choice.probability,
        choices=list(SENTENCES),
        probabilities=list(choice.probabilities),
        query_id=choice.query_id,
        stamps=[stamp_from_ns(stamp) for stamp in choice.stamps_ns],
        age_s=choice.age_s,
        begin=stamp_from_ns(step.begin_ns),
        end=stamp_from_ns(step.end_ns),
        moved=step.moved,
    )
    message.header.stamp = stamp_from_ns(choice.stamps_ns[-1])
    if pose is not None:
        message.has_pose, message.pose_frame = True, pose.frame
        message.x, message.y, message.yaw = pose.x, pose.y, pose.yaw
    if picture is not None:
        message.header.frame_id, message.picture = picture.header.frame_id, picture
    return message


def result_message(end: DriveEnd, goal_id: str, instruction: str, pose: Pose | None) -> Navigate.Result:
    """Return how a drive ended."""
    last = Step() if end.last is None else step_message(replace(end.last), goal_id, instruction, pose, None)
    return Navigate.Result(
        end_reason=int(end.reason),
        end_reason_name=end.reason.name,
        error=end.error,
        num_steps=end.num_steps,
        traveled_m=end.traveled_m,
        duration_s=end.duration_s,
        last=last,
    )


def behavior_goal(goal_type: Any, forward_m: float, yaw: float, speed: float, allowance_s: float) -> Any:
    """Return a goal of Nav2's `drive_on_heading` or `spin`; what a message has is looked up on it.

    Args:
        goal_type: `DriveOnHeading.Goal` or `Spin.Goal`, of any distribution.
        forward_m: of a way ahead; a spin has none.
        yaw: of a spin, rad, to the left.
        speed: of a way ahead, m/s.
        allowance_s: above 0, since Nav2 takes 0 for no limit.

    Source: navigation2 nav2_msgs/action; `disable_collision_checks` exists from Kilted on and stays false.
    """
    goal = goal_type()
    if hasattr(goal, "target_yaw"):
        goal.target_yaw = yaw
    else:
        goal.target.x, goal.speed = forward_m, speed
    if hasattr(goal, "disable_collision_checks"):
        goal.disable_collision_checks = False
    allowance_ns = round(allowance_s * 1e9)
    goal.time_allowance.sec, goal.time_allowance.nanosec = divmod(allowance_ns, 10**9)
    return goal
