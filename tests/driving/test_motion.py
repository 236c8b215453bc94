"""A step made with velocities: it makes its amount, whatever the direction."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.driving.motion import Pose, Space, StepMotion
from nvila_ros.driving.outcomes import StepOutcome
from nvila_ros.driving.settings import DriveConfig
from nvila_ros.prompt.navila import ACTIONS
from nvila_ros.types import NS_PER_S

MS = NS_PER_S // 1000


@given(action=st.sampled_from(ACTIONS[1:]), yaw=st.floats(-3.1, 3.1))
def test_a_step_by_odometry_makes_its_amount(action, yaw: float) -> None:  # type: ignore[no-untyped-def]
    config = DriveConfig()
    x = y = 0.0
    motion = StepMotion(action, config, 0, Pose(0.0, 0.0, yaw))
    start = yaw
    for ms in range(0, 20_000, 20):
        found = motion.velocity(ms * MS, Pose(x, y, yaw), Space())
        if isinstance(found, StepOutcome):
            break
        x, y = x + found[0] * 0.02 * math.cos(yaw), y + found[0] * 0.02 * math.sin(yaw)
        yaw = math.remainder(yaw + found[1] * 0.02, 2 * math.pi)

    assert found is StepOutcome.DONE
    turned = math.remainder(yaw - start, 2 * math.pi)
    wanted = {"left": action.amount, "right": -action.amount}.get(action.kind, 0.0)
    assert abs(turned - wanted) < math.radians(2.5)
    assert abs(math.hypot(x, y) - (action.amount if action.kind == "forward" else 0)) < 0.02
