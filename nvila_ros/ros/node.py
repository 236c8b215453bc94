"""The ROS node: images and questions in, answers out; it only connects the rooms.

Four threads, and a fifth while a schema is tried. The executor's runs every callback, and each is short: it stores a
frame, queues a request, publishes. The loader's loads or builds the model, and the worker's owns it from then on. The
main one waits for a signal. What takes long is a coroutine that awaits a future which another thread completes, so that
the executor goes on meanwhile; it is in a reentrant group, since it would block its own. The executor is the
single-threaded one: rclpy's EventsExecutor deadlocks when another thread publishes, and the multi-threaded one costs
more and delays more for callbacks as short as these.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType, JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.exceptions import NameValidationException
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.service import Service
from rclpy.task import Future
from std_msgs.msg import String

from nvila_ros.action import AskVideo
from nvila_ros.config import NodeConfig, bounds, replace
from nvila_ros.errors import ConfigError, NvilaError
from nvila_ros.http.services import Services
from nvila_ros.msg import AnswerToken
from nvila_ros.ros import messages, process
from nvila_ros.ros.annotated import AnnotatedTopic
from nvila_ros.ros.answer_topics import AnswerTopics
from nvila_ros.ros.cameras import Camera
from nvila_ros.ros.diagnostics import diagnostics_message, namesake_warning
from nvila_ros.ros.door import open_door
from nvila_ros.ros.feedback import Feedback
from nvila_ros.ros.managed_model import ManagedModel
from nvila_ros.ros.parameters import PUBLISHER_QOS, declare_parameters, print_help, warn_of_unused_qos
from nvila_ros.ros.responses import persistent
from nvila_ros.ros.standing_server import StandingQueryServer
from nvila_ros.serving import slow_answers
from nvila_ros.serving.answering import Answering
from nvila_ros.serving.pipeline import VisionLanguageModel, load_model
from nvila_ros.serving.throttle import Throttle
from nvila_ros.srv import Ask
from nvila_ros.standing.service import StandingService
from nvila_ros.types import Answer, FinishReason, Piece, Query
from nvila_ros.video.buffer import MAX_DISORDER_NS

STREAM_DEPTH = 256
DEADLINE_EVERY_S = 0.1
WARN_EVERY_S, REPEAT_S = 1.0, 30.0
MAX_LOGGED = 1000  # characters of an error


class NvilaNode(Node):
    """Answers questions about what its cameras see.

    Raises:
        ConfigError: a parameter is unknown, or its value has the wrong type or breaks its rule.
    """

    def __init__(self, load: Callable[..., VisionLanguageModel]) -> None:
        try:
            super().__init__("nvila", automatically_declare_parameters_from_overrides=True)
        except ValueError as error:
            raise ConfigError(f"a parameter was given no value, or an empty list: {error}") from error
        self.config: NodeConfig = declare_parameters(self, NodeConfig)
        self.answering = Answering(
            lambda: self.config, lambda: self.model.refusal, self._clock_ns, messages.decode_frame
        )
        self.answering.listeners.append(self)
        self._warnings = Throttle(WARN_EVERY_S)
        self._num_unlogged: Counter[FinishReason] = Counter()
        self._was_slow = False
        self._answers = AnswerTopics(self)
        self._pieces = self.create_publisher(
            AnswerToken, "~/answer_stream", STREAM_DEPTH, qos_overriding_options=PUBLISHER_QOS
        )
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 1)
        self._cameras = [Camera(self, name, self.config, self.answering.buffer) for name in self.config.cameras]
        self.model = ManagedModel(self, lambda: self.config, self.answering.scheduler, load, self.answering.make_worker)
        self._create_endpoints()
        self._standing = StandingService(self.answering, lambda: self.model.lifecycle.is_active)
        self.annotated = AnnotatedTopic(self, self.answering)
        self.answering.listeners.append(self.annotated)
        self._standing.on_events.append(self.annotated.on_events)
        self.standing = StandingQueryServer(self, self._standing)
        self.door = open_door(self.config, self._door_services) if self.config.http_port else None
        warn_of_unused_qos(
            self,
            [*self._answers.publishers, *self.annotated.publishers, self._pieces],
            [camera.images for camera in self._cameras],
        )
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._jump_handle = self.get_clock().create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-MAX_DISORDER_NS), on_clock_change=True),
            post_callback=self._on_clock_jump,
        )
        # On the steady clock: a paused simulation is still worth a diagnosis, and deadlines are of its time.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(1.0, self._on_second, clock=steady)
        self.create_timer(DEADLINE_EVERY_S, self.answering.expire, clock=steady)

    def create_service(self, *args: Any, **kwargs: Any) -> Service:
        """Create a service as rclpy does, whose responses are not lost where discovery is slow."""
        return persistent(super().create_service(*args, **kwargs), self.get_logger().warning)

    def _clock_ns(self) -> int:
        now_ns: int = self.get_clock().now().nanoseconds
        return now_ns

    def _door_services(self) -> Services:
        return Services(
            name=self.get_fully_qualified_name(),
            answering=self.answering,
            standing=self._standing,
            status=lambda: self.model.status,
            refusal=lambda: self.model.refusal,
            cameras=lambda: [camera.state() for camera in self._cameras],
            counters=self.model.host.counters,
            faults=self.model.host.faults,
        )

    def _create_endpoints(self) -> None:
        waiting = ReentrantCallbackGroup()
        self.create_subscription(String, "~/question", self._on_question, messages.REQUESTS)
        self.create_service(Ask, "~/ask", self._on_ask, qos_profile=messages.REQUESTS, callback_group=waiting)
        self._goals = ActionServer(
            self,
            AskVideo,
            "~/ask_video",
            execute_callback=self._on_goal,
            goal_callback=self._on_goal_request,
            cancel_callback=self._on_cancel,
            callback_group=waiting,
            goal_service_qos_profile=messages.REQUESTS,
            result_service_qos_profile=messages.REQUESTS,
            cancel_service_qos_profile=messages.REQUESTS,
        )

    def _on_question(self, message: String) -> None:
        self._submit(messages.query_from_text(message.data, self.config, self.answering.new_id(), _now_ns()))

    async def _on_ask(self, request: Ask.Request, response: Ask.Response) -> Ask.Response:
        response.answer = await self._submit(self._query(request, self.answering.new_id()))
        return response

    def _on_goal_request(self, goal: AskVideo.Goal) -> GoalResponse:
        scheduler = self.answering.scheduler
        error = self.model.refusal or scheduler.refusal()
        if not error:
            return GoalResponse.ACCEPT
        request = self.answering.request(self._query(goal, self.answering.new_id()))
        scheduler.refuse(request, FinishReason.REJECTED, error, _now_ns())
        return GoalResponse.REJECT

    async def _on_goal(self, goal: ServerGoalHandle) -> AskVideo.Result:
        feedback = Feedback(lambda token: goal.publish_feedback(AskVideo.Feedback(token=token)))
        answer = await self._submit(self._query(goal.request, _goal_id(goal)), feedback.add)
        if goal.is_cancel_requested and answer.finish_reason == FinishReason.CANCELED:
            goal.canceled()
        elif FinishReason(answer.finish_reason).is_answered:
            goal.succeed()
        else:
            goal.abort()
        return AskVideo.Result(answer=answer)

    def _on_cancel(self, goal: ServerGoalHandle) -> CancelResponse:
        is_canceled = self.answering.scheduler.cancel(_goal_id(goal), _now_ns())
        return CancelResponse.ACCEPT if is_canceled else CancelResponse.REJECT

    def _query(self, request: Ask.Request | AskVideo.Goal, query_id: str) -> Query:
        return messages.query_from_request(request, self.config, query_id, _now_ns(), self._clock_ns())

    def _submit(self, query: Query, on_token: Callable[[AnswerToken], None] | None = None) -> Future:
        """Queue a query, or answer it at once if it breaks a rule; the result of the future is the answer's message."""
        future = Future(executor=self.executor)

        def on_answer(answer: Answer) -> None:
            future.set_result(messages.answer_message(answer, self._clock_ns()))
            self.executor.wake()  # the waiting coroutine goes on when the executor next turns

        def on_piece(piece: Piece) -> None:
            if on_token is not None:
                on_token(messages.token_message(piece))

        self.answering.submit([self.answering.request(query, on_answer, on_piece)])
        return future

    def on_piece(self, piece: Piece) -> None:
        """Publish a piece of any answer that is streamed."""
        self._pieces.publish(messages.token_message(piece))

    def on_answer(self, answer: Answer) -> None:
        """Publish an answer, whoever asked."""
        self._answers.publish(messages.answer_message(answer, self._clock_ns()))
        is_quiet = answer.finish_reason.is_answered or answer.finish_reason is FinishReason.CANCELED
        if not is_quiet and not answer.query.standing:  # whose service warns by name
            self._warn(answer)
        self._explain_slow(answer)

    def _explain_slow(self, answer: Answer) -> None:
        """Log once where a slow answer's time went: those behind it are slow for the same reason."""
        reason = "" if self._was_slow else slow_answers.explain(answer)
        if reason:
            self._was_slow = True
            self.get_logger().warning(f"query_id={answer.query.query_id} was slow: {reason}")

    def _warn(self, answer: Answer) -> None:
        """Log a query that was not answered, one of each reason a second: a client may ask thousands a second."""
        reason = answer.finish_reason
        if not self._warnings.is_due(reason, _now_ns()):
            self._num_unlogged[reason] += 1
            return
        num_more = self._num_unlogged.pop(reason, 0)
        more = f" ({num_more} more since the last line)" if num_more else ""
        line = f"query_id={answer.query.query_id} finish_reason={reason.name}: {answer.error:.{MAX_LOGGED}}{more}"
        self.get_logger().warning(line)

    def drain(self) -> None:
        """Let the answers in progress over HTTP come to their end, for a bounded time."""
        if self.door is not None:
            self.door.drain()

    def _on_set_parameters(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        known = bounds(NodeConfig)
        try:
            self.config = replace(self.config, {p.name: p.value for p in parameters if p.name in known})
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _on_clock_jump(self, jump: TimeJump) -> None:
        num_frames = self.answering.buffer.clear()
        if num_frames:
            self.get_logger().warning(f"the clock went back or was changed: dropped {num_frames} frames")

    def _on_second(self) -> None:
        checked = [camera.check() for camera in self._cameras]
        faults, is_error = self.model.faults()
        self.model.tell_remark()
        namesake = namesake_warning(self)
        if namesake:
            self.get_logger().warning(namesake, throttle_duration_sec=REPEAT_S)
        warnings = [*filter(None, (warning for warning, _ in checked)), *faults, *filter(None, [namesake])]
        state, queue = self.answering.buffer.state(), self.answering.scheduler.state()
        values: dict[str, Any] = {
            **self.model.values(),
            "frames_received": sum(camera.num_received for camera in self._cameras),
            "frames_malformed": sum(camera.num_malformed for camera in self._cameras),
            "frames_lost": sum(camera.num_lost for camera in self._cameras),
            "frames_buffered": state.num_frames,
            "buffer_bytes": state.num_bytes,
            **{f"frames_dropped_{reason}": count for reason, count in state.num_dropped.items()},
            "queue_depth": queue.num_waiting,
            "queries_running": queue.num_running,
            "queries_given_way": queue.num_preempted,
            **{f"queries_{reason}": count for reason, count in queue.num_ended.items()},
            **self._standing.counts(),
        }
        now_ns = self.get_clock().now().nanoseconds
        name = self.get_fully_qualified_name()
        cameras = [status for _, status in checked]
        self._diagnostics.publish(
            diagnostics_message(name, warnings, values, now_ns, is_error=is_error, cameras=cameras)
        )


def main(args: list[str] | None = None, load: Callable[..., VisionLanguageModel] = load_model) -> int:
    """Run the node until SIGINT or SIGTERM.

    Args:
        args: of the command line; None takes the process's own.
        load: takes `model`, `backend`, `threads` and `overrides` and returns the model.

    Returns:
        0 after a signal, 1 after a fault of its own, 2 if a parameter, the checkpoint or the backend is refused.
    """
    if process.wants_help(args):
        return print_help("nvila_node", "Answers questions about what its cameras see.", NodeConfig)
    try:
        signals = process.init(args)
        code = run(load, signals)
    except KeyboardInterrupt:
        code = 0
    except (NvilaError, NameValidationException) as error:
        print(f"nvila_node: error: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    finally:
        rclpy.try_shutdown()
    return process.leave(code)


def run(load: Callable[..., VisionLanguageModel], signals: process.Signals) -> int:
    """Create the node, give it a model, and answer until a signal comes.

    Returns:
        as `process.spin`.

    Raises:
        NvilaError: what the node was given is not acceptable.
        KeyboardInterrupt: interrupted before it was up.
    """
    node = NvilaNode(load)
    try:
        logging.getLogger("nvila_ros").addHandler(messages.RosLogHandler(node))
        if node.door is not None:
            node.door.start()
            node.get_logger().info(f"the HTTP door is at {node.door.url}")
        return process.spin(node, signals, node.answering.scheduler, node.model, node.drain)
    finally:
        if node.door is not None:
            node.door.close()
        node.standing.close()
        node.annotated.close()
        node.destroy_node()


def _goal_id(goal: ServerGoalHandle) -> str:
    return bytes(goal.goal_id.uuid).hex()


def _now_ns() -> int:
    return time.monotonic_ns()


if __name__ == "__main__":
    sys.exit(main())
