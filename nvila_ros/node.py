"""The ROS node: images and questions in, answers out; it only wires the rooms together.

Three threads. The executor's runs every callback, and none of them works: they store a frame, queue a query, publish.
The worker's owns the model. The main one waits for a signal. Service and action are coroutines that wait for a future
which the worker completes, so that the executor goes on meanwhile; both are in a reentrant group, since a waiting
coroutine would hold up its own group. The executor is the single-threaded one: rclpy's EventsExecutor deadlocks when
another thread publishes, and the multi-threaded one costs more and delays more for callbacks as short as these.
"""

from __future__ import annotations

import itertools
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
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
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future
from sensor_msgs.msg import Image
from std_msgs.msg import String

from nvila_ros import messages
from nvila_ros.action import AskVideo
from nvila_ros.admission import check_query
from nvila_ros.config import NodeConfig, bounds, replace
from nvila_ros.errors import ConfigError, FrameError, NvilaError, QueryError
from nvila_ros.models.spec import Overrides
from nvila_ros.msg import Answer as AnswerMessage
from nvila_ros.msg import AnswerToken
from nvila_ros.paths import share_path
from nvila_ros.pipeline import Perceiver, load_perceiver
from nvila_ros.scheduler import Scheduler, Ticket
from nvila_ros.srv import Ask
from nvila_ros.types import Answer, FinishReason, Piece, Query, RawFrame
from nvila_ros.video.buffer import FrameBuffer
from nvila_ros.video.loss_watch import LossWatch, explain
from nvila_ros.worker import Worker

try:
    from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
except ModuleNotFoundError:  # before ROS 2 Iron
    from rclpy.qos_event import SubscriptionEventCallbacks, UnsupportedEventTypeError

IMAGE_DEPTH = 5
ANSWER_DEPTH = 16
STREAM_DEPTH = 256
WARN_EVERY_S = 5.0
FLUSH_S = 2.0
SIGNAL_POLL_S = 0.1


class NvilaNode(Node):
    """Answers questions about what its cameras see.

    Raises:
        ConfigError: a parameter is unknown, or its value has the wrong type or breaks its rule.
    """

    def __init__(self) -> None:
        try:
            super().__init__("nvila", automatically_declare_parameters_from_overrides=True)
        except ValueError as error:
            raise ConfigError(f"a parameter was given no value, or an empty list: {error}") from error
        self.config: NodeConfig = messages.declare_parameters(self, NodeConfig)
        self.buffer: FrameBuffer[RawFrame] = FrameBuffer(self.config.buffer_s, self.config.buffer_bytes)
        self.scheduler = Scheduler(self.config.queue_size)
        self._query_ids = map("q{:06d}".format, itertools.count(1))
        self._answers = self.create_publisher(AnswerMessage, "~/answer", ANSWER_DEPTH)
        self._pieces = self.create_publisher(AnswerToken, "~/answer_stream", STREAM_DEPTH)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 1)
        self._cameras = [Camera(self, name) for name in self.config.cameras]
        self._open_doors()
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._jump_handle = self.get_clock().create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True),
            post_callback=self._on_clock_jump,
        )
        # On the steady clock: a paused simulation is still worth a diagnosis.
        self.create_timer(1.0, self._on_second, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _open_doors(self) -> None:
        waiting = ReentrantCallbackGroup()
        self.create_subscription(String, "~/question", self._on_question, ANSWER_DEPTH)
        self.create_service(Ask, "~/ask", self._on_ask, callback_group=waiting)
        self._goals = ActionServer(
            self,
            AskVideo,
            "~/ask_video",
            execute_callback=self._on_goal,
            goal_callback=self._on_goal_request,
            cancel_callback=self._on_cancel,
            callback_group=waiting,
        )

    def _on_question(self, message: String) -> None:
        self._submit(messages.query_from_text(message.data, self.config, next(self._query_ids), _now_ns()))

    async def _on_ask(self, request: Ask.Request, response: Ask.Response) -> Ask.Response:
        query = messages.query_from_request(request, self.config, next(self._query_ids), _now_ns())
        response.answer = await self._submit(query)
        return response

    def _on_goal_request(self, goal: AskVideo.Goal) -> GoalResponse:
        error = self.scheduler.refusal()
        if not error:
            return GoalResponse.ACCEPT
        query = messages.query_from_request(goal, self.config, next(self._query_ids), _now_ns())
        ticket = Ticket(query=query, on_answer=lambda answer: self._publish_answer(answer, None))
        self.scheduler.refuse(ticket, FinishReason.REJECTED, error, _now_ns())
        return GoalResponse.REJECT

    async def _on_goal(self, goal: ServerGoalHandle) -> AskVideo.Result:
        query = messages.query_from_request(goal.request, self.config, _goal_id(goal), _now_ns())
        answer = await self._submit(query, lambda token: goal.publish_feedback(AskVideo.Feedback(token=token)))
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

    def _submit(self, query: Query, on_token: Callable[[AnswerToken], None] | None = None) -> Future:
        """Queue a query, or answer it at once if it breaks a rule; the future's result is the answer's message."""
        future = Future(executor=self.executor)

        def on_piece(piece: Piece) -> None:
            token = messages.token_message(piece)
            self._pieces.publish(token)
            if on_token is not None:
                on_token(token)

        ticket = Ticket(query=query, on_answer=lambda answer: self._publish_answer(answer, future), on_piece=on_piece)
        try:
            check_query(query, self.config)
        except QueryError as error:
            self.scheduler.refuse(ticket, FinishReason.INVALID, str(error), _now_ns())
        else:
            self.scheduler.submit(ticket, _now_ns())
        return future

    def _publish_answer(self, answer: Answer, future: Future | None) -> None:
        message = messages.answer_message(answer, self.get_clock().now().nanoseconds)
        self._answers.publish(message)
        if not answer.finish_reason.is_answered and answer.finish_reason is not FinishReason.CANCELED:
            name = answer.finish_reason.name
            self.get_logger().warning(f"query_id={answer.query.query_id} finish_reason={name}: {answer.error}")
        if future is not None:
            future.set_result(message)
            self.executor.wake()  # the waiting coroutine goes on when the executor next turns

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
        losses = [warning for camera in self._cameras if (warning := camera.check_loss())]
        state, queue = self.buffer.state(), self.scheduler.state()
        values: dict[str, Any] = {
            "frames_received": sum(camera.num_received for camera in self._cameras),
            "frames_malformed": sum(camera.num_malformed for camera in self._cameras),
            "frames_lost": sum(camera.num_lost for camera in self._cameras),
            "frames_buffered": state.num_frames,
            "buffer_bytes": state.num_bytes,
            **{f"frames_dropped_{reason}": count for reason, count in state.num_dropped.items()},
            "queue_depth": queue.num_waiting,
            "is_answering": queue.is_running,
            **{f"queries_{reason}": count for reason, count in queue.num_ended.items()},
        }
        now_ns = self.get_clock().now().nanoseconds
        name = self.get_fully_qualified_name()
        self._diagnostics.publish(messages.diagnostics_message(name, "; ".join(losses), values, now_ns))


class Camera:
    """One image subscription: it stores frames and watches over what does not arrive.

    Attributes:
        num_received: images that came, malformed ones included.
        num_malformed: images that are no frames.
        num_lost: images that the middleware knows to be lost on the way.
    """

    def __init__(self, node: NvilaNode, name: str) -> None:
        self.num_received = self.num_malformed = self.num_lost = 0
        self._node, self._name = node, name
        self._watch = LossWatch()
        self._num_mismatched = 0
        self._has_warned_of_stamp = False
        topic = "image" if len(node.config.cameras) == 1 else f"{name}/image"
        reliability = QoSReliabilityPolicy[node.config.image_reliability.upper()]
        qos = QoSProfile(depth=IMAGE_DEPTH, reliability=reliability)
        callbacks = SubscriptionEventCallbacks(message_lost=self._on_lost, incompatible_qos=self._on_mismatch)
        try:
            self._images = node.create_subscription(Image, topic, self._on_image, qos, event_callbacks=callbacks)
        except UnsupportedEventTypeError:  # this middleware counts no lost messages: silence is still noticed
            self._images = node.create_subscription(Image, topic, self._on_image, qos)

    def check_loss(self) -> str:
        """Return why frames are missing, or an empty text; it is logged now and then."""
        now_ns, topic = _now_ns(), self._images.topic_name
        loss = self._watch.check(
            now_ns,
            num_publishers=self._node.count_publishers(topic),
            num_received=self.num_received,
            num_lost=self.num_lost,
            has_qos_mismatch=self._num_mismatched > 0,
        )
        if loss is None:
            return ""
        warning = f"camera={self._name} topic={topic}: {explain(loss, _profile())}"
        if self._watch.is_due(now_ns):
            self._node.get_logger().warning(warning)
        return warning

    def _on_image(self, message: Image) -> None:
        self.num_received += 1
        try:
            frame = messages.raw_frame(message, self._name, self._node.get_clock().now().nanoseconds)
        except FrameError as error:
            self.num_malformed += 1
            self._node.get_logger().error(
                f"camera={self._name} image dropped: {error}", throttle_duration_sec=WARN_EVERY_S
            )
            return
        if not messages.stamp_to_ns(message.header.stamp) and not self._has_warned_of_stamp:
            self._has_warned_of_stamp = True
            self._node.get_logger().warning(f"camera={self._name} sends no stamps: the time of arrival is taken")
        jump_ns = self._node.buffer.push(frame)
        if jump_ns:
            self._node.get_logger().warning(
                f"camera={self._name} stamps went back by {jump_ns / 1e9:.3f} s: its older frames were dropped",
                throttle_duration_sec=WARN_EVERY_S,
            )

    def _on_lost(self, event: Any) -> None:
        self.num_lost += event.total_count_change

    def _on_mismatch(self, event: Any) -> None:
        self._num_mismatched += event.total_count_change


def main(args: list[str] | None = None, load: Callable[..., Perceiver] = load_perceiver) -> int:
    """Run the node until SIGINT or SIGTERM.

    Args:
        args: of the command line; None takes the process's own.
        load: takes `model`, `backend`, `threads` and `overrides` and returns the model.

    Returns:
        0 after a signal, 1 after a fault of its own, 2 if a parameter, the checkpoint or the backend is refused.
    """
    _on_signals(_interrupt)
    try:
        _init(args)
        return run(load)
    except KeyboardInterrupt:
        return 0
    except (NvilaError, NameValidationException) as error:
        print(f"nvila_node: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    finally:
        rclpy.try_shutdown()


def _init(args: list[str] | None) -> None:
    try:
        # rclpy's own handlers would end its context before the last answers are out.
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:  # the base of all that rclpy raises here
        raise ConfigError(f"ROS arguments are not acceptable: {error}") from error


def run(load: Callable[..., Perceiver]) -> int:
    """Create the node, load the model, and answer until a signal comes.

    Returns:
        as `spin`.

    Raises:
        NvilaError: what the node was given is not acceptable.
        KeyboardInterrupt: interrupted before it could answer.
    """
    node = NvilaNode()
    try:
        config = node.config
        overrides = Overrides(video_mode=config.video_mode, max_tiles=config.max_tiles, pixel_dtype=config.pixel_dtype)
        perceiver = load(config.model, backend=config.backend, threads=config.threads, overrides=overrides)
        if config.warmup:
            perceiver.warm_up()
        logging.getLogger("nvila_ros").addHandler(messages.RosLogHandler(node))
        node.get_logger().info(
            f"ready model={perceiver.model} backend={perceiver.backend} precision={perceiver.precision} "
            f"cameras={','.join(config.cameras)}"
        )
        return spin(node, Worker(perceiver, node.scheduler, node.buffer, messages.decode_frame))
    finally:
        node.destroy_node()


def spin(node: NvilaNode, worker: Worker) -> int:
    """Run executor and worker until a signal comes; then answer what is open, and end both in order.

    Returns:
        0 after a signal, 1 if the executor ended by itself.
    """
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    signals: list[int] = []
    # From here on a signal is only noted: an exception between any two lines would leave a thread behind.
    _on_signals(lambda number, _: signals.append(number))
    thread = threading.Thread(target=executor.spin, name="nvila_executor")
    worker.start()
    thread.start()
    while thread.is_alive() and not signals:
        thread.join(SIGNAL_POLL_S)
    _on_signals(signal.SIG_DFL)  # a second one ends the process at once
    node.get_logger().info("shutting down")
    node.scheduler.close(_now_ns())
    worker.join()
    if thread.is_alive():
        _flush(executor)
    executor.shutdown(timeout_sec=FLUSH_S)
    thread.join()
    return 0 if signals else 1


def _flush(executor: SingleThreadedExecutor) -> None:
    """Let the executor turn until the last answers are sent: the coroutine, its result, the result's response."""
    for _ in range(3):
        turned = threading.Event()
        executor.create_task(turned.set)
        turned.wait(FLUSH_S)


def _on_signals(handler: Callable[[int, FrameType | None], Any] | signal.Handlers) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _on_signals(signal.SIG_DFL)
    raise KeyboardInterrupt


def _profile() -> Path | None:
    """Return the profile that gives Fast DDS room for images, where that is the middleware."""
    has_fastdds = "fastrtps" in rclpy.get_rmw_implementation_identifier()
    return share_path("config", "fastdds_shm.xml") if has_fastdds else None


def _goal_id(goal: ServerGoalHandle) -> str:
    return bytes(goal.goal_id.uuid).hex()


def _now_ns() -> int:
    return time.monotonic_ns()


if __name__ == "__main__":
    sys.exit(main())
