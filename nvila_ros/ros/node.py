"""The ROS node: images and questions in, answers out; it only connects the rooms.

Four threads, and a fifth while a schema is tried. The executor's runs every callback, and each is short: it stores a
frame, queues a request, publishes. The loader's loads or builds the model, and the worker's owns it from then on. The
main one waits for a signal. What takes long is a coroutine that awaits a future which another thread completes, so that
the executor goes on meanwhile; it is in a reentrant group, since it would block its own. The executor is the
single-threaded one: rclpy's EventsExecutor deadlocks when another thread publishes, and the multi-threaded one costs
more and delays more for callbacks as short as these.
"""

from __future__ import annotations

import itertools
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
from rclpy.task import Future
from std_msgs.msg import String

from nvila_ros.action import AskVideo
from nvila_ros.config import NodeConfig, bounds, replace
from nvila_ros.errors import ConfigError, NvilaError
from nvila_ros.msg import AnswerToken
from nvila_ros.request import Request
from nvila_ros.ros import messages, process
from nvila_ros.ros.answer_topics import AnswerTopics
from nvila_ros.ros.cameras import Camera
from nvila_ros.ros.diagnostics import diagnostics_message, namesake_warning
from nvila_ros.ros.feedback import Feedback
from nvila_ros.ros.managed_model import ManagedModel
from nvila_ros.ros.parameters import PUBLISHER_QOS, declare_parameters, help_text, warn_of_unused_qos
from nvila_ros.ros.standing_server import NodeServices, StandingQueryServer
from nvila_ros.serving.admission import Admission
from nvila_ros.serving.pipeline import VisionLanguageModel, load_model
from nvila_ros.serving.scheduler import Scheduler
from nvila_ros.serving.throttle import Throttle
from nvila_ros.serving.worker import LookAhead, Worker
from nvila_ros.srv import Ask
from nvila_ros.types import NS_PER_S, Answer, FinishReason, Piece, Query, RawFrame
from nvila_ros.video.buffer import MAX_DISORDER_NS, FrameBuffer
from nvila_ros.video.selection import Freshness

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
        self.buffer: FrameBuffer[RawFrame] = FrameBuffer(
            self.config.buffer_s, self.config.buffer_bytes, past_s=self.config.past_s, past_hz=self.config.past_hz
        )
        self.scheduler = Scheduler(self.config.queue_size)
        self._query_ids = map("q{:06d}".format, itertools.count(1))
        self._warnings = Throttle(WARN_EVERY_S)
        self._num_unlogged: Counter[FinishReason] = Counter()
        self._answers = AnswerTopics(self)
        self._pieces = self.create_publisher(
            AnswerToken, "~/answer_stream", STREAM_DEPTH, qos_overriding_options=PUBLISHER_QOS
        )
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 1)
        self._cameras = [Camera(self, name, self.config, self.buffer) for name in self.config.cameras]
        self.model = ManagedModel(self, lambda: self.config, self.scheduler, load, self._make_worker)
        self.admission = Admission(self.scheduler, lambda: self.config, lambda: self.model.refusal)
        self._create_endpoints()
        self.standing = StandingQueryServer(self, self._node_services())
        warn_of_unused_qos(self, [*self._answers.publishers, self._pieces], [camera.images for camera in self._cameras])
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._jump_handle = self.get_clock().create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-MAX_DISORDER_NS), on_clock_change=True),
            post_callback=self._on_clock_jump,
        )
        # On the steady clock: a paused simulation is still worth a diagnosis, and deadlines are of its time.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(1.0, self._on_second, clock=steady)
        self.create_timer(DEADLINE_EVERY_S, lambda: self.scheduler.expire(_now_ns()), clock=steady)

    def _make_worker(self, model: VisionLanguageModel) -> Worker:
        return Worker(model, self.scheduler, self.buffer, messages.decode_frame, ahead=self._ahead, fresh=self._fresh)

    def _fresh(self) -> Freshness | None:
        """Return when a camera's newest frame must have been captured, or None where any age will do."""
        max_age_s, now_ns = self.config.max_age_s, self.get_clock().now().nanoseconds
        if not max_age_s:
            return None
        return Freshness(now_ns - round(max_age_s * NS_PER_S), now_ns + round(messages.CLOCK_TOLERANCE_S * NS_PER_S))

    def _ahead(self) -> LookAhead:
        """Return which frames to encode ahead: those of a question that names none, by the parameters as they are."""
        config = self.config
        is_alone = config.num_frames_of(config.cameras) == 1
        return LookAhead(rate_hz=config.encode_hz, cameras=config.cameras, is_alone=is_alone)

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

    def _node_services(self) -> NodeServices:
        return NodeServices(
            config=lambda: self.config,
            admission=self.admission,
            cancel=lambda name: self.scheduler.cancel_standing(name, _now_ns()),
            publish=self._answers.publish,
            new_id=self._query_ids.__next__,
            is_active=lambda: self.model.lifecycle.is_active,
        )

    def _on_question(self, message: String) -> None:
        self._submit(messages.query_from_text(message.data, self.config, next(self._query_ids), _now_ns()))

    async def _on_ask(self, request: Ask.Request, response: Ask.Response) -> Ask.Response:
        response.answer = await self._submit(self._query(request, next(self._query_ids)))
        return response

    def _on_goal_request(self, goal: AskVideo.Goal) -> GoalResponse:
        error = self.model.refusal or self.scheduler.refusal()
        if not error:
            return GoalResponse.ACCEPT
        request = Request(self._query(goal, next(self._query_ids)), lambda answer: self._publish_answer(answer, None))
        self.scheduler.refuse(request, FinishReason.REJECTED, error, _now_ns())
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
        is_canceled = self.scheduler.cancel(_goal_id(goal), _now_ns())
        return CancelResponse.ACCEPT if is_canceled else CancelResponse.REJECT

    def _query(self, request: Ask.Request | AskVideo.Goal, query_id: str) -> Query:
        return messages.query_from_request(
            request, self.config, query_id, _now_ns(), self.get_clock().now().nanoseconds
        )

    def _submit(self, query: Query, on_token: Callable[[AnswerToken], None] | None = None) -> Future:
        """Queue a query, or answer it at once if it breaks a rule; the result of the future is the answer's message."""
        future = Future(executor=self.executor)

        def on_piece(piece: Piece) -> None:
            token = messages.token_message(piece)
            self._pieces.publish(token)
            if on_token is not None:
                on_token(token)

        self.admission.admit([Request(query, lambda answer: self._publish_answer(answer, future), on_piece)])
        return future

    def _publish_answer(self, answer: Answer, future: Future | None) -> None:
        message = messages.answer_message(answer, self.get_clock().now().nanoseconds)
        self._answers.publish(message)
        if not answer.finish_reason.is_answered and answer.finish_reason is not FinishReason.CANCELED:
            self._warn(answer)
        if future is not None:
            future.set_result(message)
            self.executor.wake()  # the waiting coroutine goes on when the executor next turns

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

    def _on_set_parameters(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        known = bounds(NodeConfig)
        try:
            self.config = replace(self.config, {p.name: p.value for p in parameters if p.name in known})
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _on_clock_jump(self, jump: TimeJump) -> None:
        num_frames = self.buffer.clear()
        if num_frames:
            self.get_logger().warning(f"the clock went back or was changed: dropped {num_frames} frames")

    def _on_second(self) -> None:
        checked = [camera.check() for camera in self._cameras]
        faults, is_error = self.model.faults()
        namesake = namesake_warning(self)
        if namesake:
            self.get_logger().warning(namesake, throttle_duration_sec=REPEAT_S)
        warnings = [*filter(None, (warning for warning, _ in checked)), *faults, *filter(None, [namesake])]
        state, queue = self.buffer.state(), self.scheduler.state()
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
            **self.standing.counts(),
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
        print(help_text("nvila_node", "Answers questions about what its cameras see.", NodeConfig))
        return 0
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
        return process.spin(node, signals, node.scheduler, node.model)
    finally:
        node.standing.close()
        node.destroy_node()


def _goal_id(goal: ServerGoalHandle) -> str:
    return bytes(goal.goal_id.uuid).hex()


def _now_ns() -> int:
    return time.monotonic_ns()


if __name__ == "__main__":
    sys.exit(main())
