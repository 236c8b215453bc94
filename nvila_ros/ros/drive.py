"""`nvila_drive`: the ROS node that lets a model drive a robot, step by step, within limits that no model can change.

Action `~/navigate` takes an instruction. Each step asks the nvila node for a scored choice among ten actions; all that
decides whether and how the robot moves is `nvila_ros.driving`, which knows no ROS. This is the shell: it hears, turns
the drive twenty times a second, and does what it orders. Steps are published on `~/step`.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.task import Future

from nvila_ros.action import Navigate
from nvila_ros.config import from_dict
from nvila_ros.driving.decision import read_choice
from nvila_ros.driving.driver import Ask, Driver, Mover, Orders
from nvila_ros.driving.motion import STAND
from nvila_ros.driving.outcomes import DriveEnd, DriveStop, Fault, ScoredStep, StepOutcome, StepReport
from nvila_ros.driving.settings import DriveConfig
from nvila_ros.errors import ConfigError, NvilaError, QueryError
from nvila_ros.msg import Step
from nvila_ros.prompt.navila import NUM_FRAMES, SENTENCES
from nvila_ros.ros.client import NvilaClient
from nvila_ros.ros.drive_behaviors import Behaviors
from nvila_ros.ros.drive_inputs import DriveInputs
from nvila_ros.ros.drive_messages import goal_from_message, result_message, step_message
from nvila_ros.ros.parameters import declare_parameters
from nvila_ros.ros.spinning_node import run_node
from nvila_ros.ros.velocities import VelocityPublisher
from nvila_ros.types import NS_PER_S

TURN_HZ = 20.0
STAND_TURNS = 10
LEAVING_S = 0.3
"""How long a node that ends goes on turning: a result that is asked for at that moment still leaves."""
"""Turns for which the robot is ordered to stand after a drive; then cmd_vel is left to others."""
STEPS = QoSProfile(depth=64)


class DriveNode(Node):
    """Drives a robot by instructions, one at a time.

    Raises:
        ConfigError: a parameter is unknown or breaks its rule.
    """

    def __init__(self) -> None:
        super().__init__("nvila_drive", automatically_declare_parameters_from_overrides=True)
        self.config: DriveConfig = declare_parameters(self, DriveConfig)
        self._inputs = DriveInputs(self, self.config)
        self._behaviors = Behaviors(self, self.config)
        self._velocity = VelocityPublisher(self, self.config.cmd_vel_topic, self.config.base_frame, self.config.stamped)
        self._client = NvilaClient(self, self.config.node, timeout_s=self.config.answer_s)
        self._steps = self.create_publisher(Step, "~/step", STEPS)
        self._driver: Driver | None = None
        self._goal: Any = None
        self._done: Future | None = None
        self._stands_for = 0
        self.add_on_set_parameters_callback(self._on_parameters)
        self._server = ActionServer(
            self,
            Navigate,
            "~/navigate",
            execute_callback=self._execute,
            goal_callback=self._on_goal,
            handle_accepted_callback=self._on_accepted,
            cancel_callback=self._on_cancel,
        )
        self.create_timer(1 / TURN_HZ, self._turn)
        self.get_logger().info(f"drives by {self.config.node}; armed={self.config.armed} motion={self.config.motion}")

    @property
    def is_driving(self) -> bool:
        """Whether a goal is being followed."""
        return self._goal is not None

    def close(self, text: str = "the node that drives ends") -> None:
        """Let the robot stand, and end the drive."""
        if self._driver is not None:
            self._driver.end(DriveStop.SHUTDOWN, text)
            self._turn()
        self._stand()

    def _on_goal(self, request: Navigate.Goal) -> GoalResponse:
        if self.is_driving:
            self.get_logger().warning("refused a goal: one is being followed; cancel it first")
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    def _on_accepted(self, goal: Any) -> None:
        self._goal, self._done = goal, Future()
        goal.execute()

    def _on_cancel(self, goal: Any) -> CancelResponse:
        if self._driver is not None:
            self._driver.end(DriveStop.CANCELED, "cancelled by the asker")
            if self._driver.mover is Mover.CMD_VEL:
                self._stand()  # before the asker hears of it; the drive ends at its next turn
        return CancelResponse.ACCEPT

    async def _execute(self, goal: Any) -> Navigate.Result:
        try:
            asked = goal_from_message(goal.request, self.config)
        except QueryError as error:
            self._end(DriveEnd(DriveStop.INVALID, str(error), 0, 0.0, 0.0, None))
        else:
            self._driver = Driver(
                asked, self._choose_mover(), self.config, self._inputs.watch, self._ros_ns(), time.monotonic_ns()
            )
        assert self._done is not None
        return await self._done

    def _choose_mover(self) -> Mover:
        """Return what moves the robot, as the parameter says, or for auto as the graph does."""
        if self.config.motion != "auto":
            return Mover(self.config.motion)
        if self._behaviors.are_ready:
            return Mover.NAV2
        return Mover.CMD_VEL if self._velocity.num_listeners else Mover.DRY_RUN

    def _turn(self) -> None:
        steady_ns, driver = time.monotonic_ns(), self._driver
        self._inputs.watch.look(self._ros_ns(), steady_ns)
        if driver is None:
            if self._stands_for:
                self._stand()
            return
        pose = self._inputs.pose(steady_ns)
        self._obey(driver.turn(self._ros_ns(), steady_ns, pose, self._inputs.space(steady_ns)))

    def _obey(self, orders: Orders) -> None:
        """Do what the drive orders; what moves the robot comes first."""
        if orders.velocity is not None:
            self._velocity.publish(*orders.velocity)
        if orders.cancels_behavior:
            self._behaviors.cancel()
        if orders.behavior is not None:
            assert self._driver is not None
            self._behaviors.start(*orders.behavior, self._driver.on_behavior_end)
        for step in orders.reports:
            self._report(step)
        if orders.ask is not None:
            self._ask(orders.ask)
        if orders.ended is not None:
            self._end(orders.ended)

    def _stand(self) -> None:
        self._stands_for = max(self._stands_for - 1, 0)
        self._velocity.publish(*STAND)

    def _ask(self, ask: Ask) -> None:
        driver = self._driver
        assert driver is not None
        future = self._client.ask(
            ask.question,
            choices=SENTENCES,
            num_frames=NUM_FRAMES,
            cameras=(self.config.camera,),
            sampling="uniform",
            start_ns=max(ask.start_ns, 1),
            end_ns=self._ros_ns() + NS_PER_S,
            priority=200,
        )
        future.add_done_callback(lambda done: driver.on_answer(ask.serial, self._read(ask, done)))

    def _read(self, ask: Ask, done: Any) -> ScoredStep | Fault:
        try:
            answer = done.result()
        except NvilaError as error:
            return Fault(DriveStop.NO_ANSWER, str(error))
        stamps_ns = [frame.stamp_ns for frame in answer.frames]
        return read_choice(
            ask.question, answer.choices, answer.probabilities, stamps_ns, answer.query.query_id, self._ros_ns()
        )

    def _report(self, step: StepReport) -> None:
        goal_id, words = self._goal_id(), self._goal.request.instruction
        pose = self._inputs.pose(time.monotonic_ns())
        self._goal.publish_feedback(Navigate.Feedback(step=step_message(step, goal_id, words, pose, None)))
        is_first = step.outcome in (StepOutcome.BEGUN, StepOutcome.NOT_TAKEN)
        self._steps.publish(step_message(step, goal_id, words, pose, self._inputs.picture() if is_first else None))

    def _end(self, end: DriveEnd) -> None:
        goal, done, driver = self._goal, self._done, self._driver
        self._goal = self._done = self._driver = None
        assert done is not None
        if driver is not None and driver.mover is Mover.CMD_VEL:
            self._stands_for = STAND_TURNS
        self.get_logger().info(f"ended {end.reason.name} after {end.num_steps} steps: {end.error}")
        pose = self._inputs.pose(time.monotonic_ns())
        result = result_message(end, bytes(goal.goal_id.uuid).hex(), goal.request.instruction, pose)
        if end.reason is DriveStop.STOPPED:
            goal.succeed()
        elif end.reason is not DriveStop.CANCELED:
            goal.abort()
        elif goal.is_cancel_requested:
            goal.canceled()
        done.set_result(result)

    def _goal_id(self) -> str:
        return bytes(self._goal.goal_id.uuid).hex()

    def _ros_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds)

    def _on_parameters(self, parameters: list[Any]) -> Any:
        from rcl_interfaces.msg import SetParametersResult

        changed = {p.name: p.value for p in parameters if hasattr(self.config, p.name)}
        values = {name: getattr(self.config, name) for name in DriveConfig.__dataclass_fields__} | changed
        try:
            self.config = from_dict(DriveConfig, values)
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        self._inputs.watch.config, self._inputs.watch.armed = self.config, self.config.armed
        if self._driver is not None:
            self._driver.config = self.config
        return SetParametersResult(successful=True)


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; the robot stands when it ends.

    Returns:
        0 after a signal, 2 if a parameter is not acceptable.
    """
    summary = "Lets a model drive a robot by instructions, within limits."
    return run_node(args, "nvila_drive", summary, DriveConfig, DriveNode, _end)


def _end(node: DriveNode, executor: SingleThreadedExecutor) -> None:
    node.close()
    end_s = time.monotonic() + LEAVING_S
    while time.monotonic() < end_s:  # the result and the last velocities leave, whatever else there is to serve
        executor.spin_once(timeout_sec=1 / TURN_HZ)


if __name__ == "__main__":
    sys.exit(main())
