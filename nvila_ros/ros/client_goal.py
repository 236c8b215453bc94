"""One goal of the action `ask_video`: sent, followed by its feedback, canceled where nobody waits for it any more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.action import ActionClient
from rclpy.action.client import ClientGoalHandle

from nvila_ros.action import AskVideo
from nvila_ros.errors import NvilaError, UnansweredError
from nvila_ros.msg import Answer as AnswerMessage
from nvila_ros.ros.client_future import ClientFuture, NodeWaiter
from nvila_ros.ros.client_streams import AnswerStream
from nvila_ros.serving.query_fields import require_answer
from nvila_ros.types import Answer, FinishReason


class GoalCall:
    """A goal and the stream of its answer.

    Args:
        waiter: of the client's node.
        goals: the client of the action.
        goal: what is asked.
        read: the answer's message to its value.
        answer: the future of the whole answer.
        explain_rejection: why the node may have rejected the goal.

    Attributes:
        stream: for the asker.
    """

    def __init__(
        self,
        waiter: NodeWaiter,
        goals: ActionClient,
        goal: AskVideo.Goal,
        read: Callable[[AnswerMessage], Answer],
        answer: ClientFuture[Answer],
        explain_rejection: Callable[[], str],
    ) -> None:
        self._goals, self._goal, self._read, self._answer = goals, goal, read, answer
        self._explain_rejection = explain_rejection
        self._handle: ClientGoalHandle | None = None
        self._is_sent = self._is_canceled = False
        self.stream = AnswerStream(waiter, answer, self._cancel)
        answer.on_cancel = self._cancel
        answer.add_done_callback(self._on_end)

    def send(self) -> None:
        """Send the goal to the server."""
        self._is_sent = True
        sent = self._goals.send_goal_async(self._goal, feedback_callback=self._on_feedback)
        sent.add_done_callback(self._on_response)

    def _cancel(self) -> None:
        self._is_canceled = True
        if self._handle is not None:
            self._handle.cancel_goal_async()
        elif not self._is_sent:
            self._answer.cancel()

    def _on_feedback(self, message: Any) -> None:
        token = message.feedback.token
        self.stream.on_piece(token.index, token.piece)

    def _on_response(self, sent: Any) -> None:
        handle = sent.result()
        if not handle.accepted:
            self._answer.fail(UnansweredError(self._explain_rejection()))
            return
        self._handle = handle
        handle.get_result_async().add_done_callback(self._on_result)
        if self._is_canceled:
            handle.cancel_goal_async()

    def _on_result(self, result: Any) -> None:
        try:
            answer = self._read(result.result().result.answer)
            is_wanted = self._is_canceled and answer.finish_reason is FinishReason.CANCELED
            self._answer.settle(answer if is_wanted else require_answer(answer))
        except NvilaError as error:
            self._answer.fail(error)
        self._handle = None

    def _on_end(self, answer: Any) -> None:
        """Let the node stop where the answer was given up, for instance because it came too late."""
        if self._handle is not None and (answer.cancelled() or answer.exception() is not None):
            self._handle.cancel_goal_async()
