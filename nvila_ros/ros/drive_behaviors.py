"""Steps made by Nav2's behaviour server: `drive_on_heading` and `spin`, over its costmap and its collision checks."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient
from rclpy.node import Node

from nvila_ros.driving.outcomes import StepOutcome
from nvila_ros.driving.settings import DriveConfig
from nvila_ros.prompt.navila import Action
from nvila_ros.ros.drive_messages import behavior_goal

OnEnd = Callable[[StepOutcome, str, float], None]
"""Called with a step's outcome, its error, and what was made of its amount, m or rad."""
_NAMES = {"forward": "drive_on_heading", "left": "spin", "right": "spin"}
_COLLISION, _TIMEOUT = frozenset({"COLLISION_AHEAD"}), frozenset({"TIMEOUT"})


class Behaviors:
    """Nav2's behaviours as this node uses them; there are none where nav2_msgs is not installed."""

    def __init__(self, node: Node, config: DriveConfig) -> None:
        self._config = config
        self._clients: dict[str, Any] = {}
        self._goal: Any = None
        self._serial, self._moved = 0, 0.0
        if importlib.util.find_spec("nav2_msgs") is not None:
            from nav2_msgs.action import DriveOnHeading, Spin

            self._clients = {
                "drive_on_heading": ActionClient(node, DriveOnHeading, "drive_on_heading"),
                "spin": ActionClient(node, Spin, "spin"),
            }

    @property
    def are_ready(self) -> bool:
        """Whether both servers are there."""
        return bool(self._clients) and all(client.server_is_ready() for client in self._clients.values())

    def start(self, action: Action, allowance_s: float, on_end: OnEnd) -> None:
        """Let Nav2 make a step."""
        client = self._clients[_NAMES[action.kind]]
        self._serial, self._moved, self._goal = self._serial + 1, 0.0, None
        serial, kind = self._serial, client._action_type
        yaw = -action.amount if action.kind == "right" else action.amount
        goal = behavior_goal(kind.Goal, action.amount, yaw, self._config.speed, allowance_s)
        sent = client.send_goal_async(goal, feedback_callback=lambda m: self._on_feedback(serial, m.feedback))
        sent.add_done_callback(lambda done: self._on_accepted(serial, done.result(), kind, on_end))

    def cancel(self) -> None:
        """Cancel the step that is made; one that is accepted later is cancelled then."""
        self._serial += 1
        if self._goal is not None:
            self._goal.cancel_goal_async()
            self._goal = None

    def _on_feedback(self, serial: int, feedback: Any) -> None:
        if serial == self._serial:
            fields = ("distance_traveled", "angular_distance_traveled")
            self._moved = abs(float(next(getattr(feedback, name) for name in fields if hasattr(feedback, name))))

    def _on_accepted(self, serial: int, goal: Any, kind: Any, on_end: OnEnd) -> None:
        if serial != self._serial:
            if goal.accepted:
                goal.cancel_goal_async()
            return
        if not goal.accepted:
            on_end(StepOutcome.FAILED, "Nav2 refused the step; see the log of its behavior_server", 0.0)
            return
        self._goal = goal
        goal.get_result_async().add_done_callback(lambda done: self._on_result(serial, done.result(), kind, on_end))

    def _on_result(self, serial: int, response: Any, kind: Any, on_end: OnEnd) -> None:
        if serial != self._serial:
            return
        self._goal = None
        on_end(*read_result(response.status, response.result, kind.Result), self._moved)


def read_result(status: int, result: Any, result_type: Any) -> tuple[StepOutcome, str]:
    """Return how a behaviour ended, by the names of its error codes, and its error.

    Humble's results have no code: there a step that failed counts as blocked, since its costmap stops most of them.
    """
    if status == GoalStatus.STATUS_SUCCEEDED:
        return StepOutcome.DONE, ""
    if not hasattr(result, "error_code"):
        return StepOutcome.BLOCKED, "Nav2 ended the step early"
    names = {
        getattr(result_type, name): name for name in dir(result_type) if name.isupper() and not name.startswith("_")
    }
    name = names.get(result.error_code, f"code {result.error_code}")
    text = f"Nav2: {name} {getattr(result, 'error_msg', '')}".strip()
    if name in _COLLISION:
        return StepOutcome.BLOCKED, text
    return (StepOutcome.TIMED_OUT if name in _TIMEOUT else StepOutcome.FAILED), text
