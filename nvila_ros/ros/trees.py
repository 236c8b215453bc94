"""A condition and an action for py_trees: an answer of the node that answers, and a drive of the one that drives.

Both take the `rclpy` node of the tree in `setup(node=...)`, as py_trees_ros gives it, and block no tick: they are
RUNNING until what they asked for has come. They need py_trees (`pip install nvila_ros[py_trees]`).
"""

from __future__ import annotations

from typing import Any

from py_trees.behaviour import Behaviour
from py_trees.common import Status
from rclpy.action import ActionClient

from nvila_ros.action import Navigate
from nvila_ros.driving.outcomes import DriveStop
from nvila_ros.errors import NvilaError, QueryError
from nvila_ros.ros.client import NvilaClient
from nvila_ros.ros.client_future import ClientFuture
from nvila_ros.types import Answer


class IsAnswered(Behaviour):
    """Asks a question each time that it is entered; SUCCESS where the answer is the expected one, and likely enough.

    Args:
        name: of the behaviour.
        question: in plain language.
        expected: the answer that succeeds, one of `choices`.
        choices: the only answers allowed.
        min_probability: of the expected answer, 0 to 1.
        node_name: of the node that answers.
        fields: others of `QueryFields`, such as `cameras` or `window_s`.

    Attributes:
        answer: the last; None before the first, and where the node gave none.

    Raises:
        QueryError: the expected answer is not among the choices.
    """

    def __init__(
        self,
        name: str,
        question: str,
        *,
        expected: str = "yes",
        choices: tuple[str, ...] = ("yes", "no"),
        min_probability: float = 0.5,
        node_name: str = "nvila",
        **fields: Any,
    ) -> None:
        super().__init__(name)
        if expected not in choices:
            raise QueryError(f"expected must be one of the choices {list(choices)}, got {expected!r}")
        self._question, self._expected, self._choices = question, expected, choices
        self._min_probability, self._node_name, self._fields = min_probability, node_name, fields
        self._client: NvilaClient | None = None
        self._future: ClientFuture[Answer] | None = None
        self.answer: Answer | None = None

    def setup(self, **kwargs: Any) -> None:
        """Take the tree's node."""
        self._client = NvilaClient(kwargs["node"], self._node_name)

    def initialise(self) -> None:
        """Ask."""
        assert self._client is not None, "setup(node=...) comes first"
        self.answer = None
        self._future = self._client.ask(self._question, choices=self._choices, **self._fields)

    def update(self) -> Status:
        """Return RUNNING until there is an answer, then what it says."""
        future = self._future
        if future is None or not future.done():
            return Status.RUNNING
        try:
            self.answer = future.result()
        except NvilaError as error:
            self.feedback_message = str(error)
            return Status.FAILURE
        probability = self.answer.probabilities[self._choices.index(self._expected)]
        self.feedback_message = f"{self.answer.text} ({self._expected}: {probability:.3f})"
        return Status.SUCCESS if probability >= self._min_probability else Status.FAILURE

    def terminate(self, new_status: Status) -> None:
        """Let go of a question that nobody waits for any more."""
        if new_status == Status.INVALID and self._future is not None and not self._future.done():
            self._future.cancel()

    def shutdown(self) -> None:
        """Remove what was created on the tree's node."""
        if self._client is not None:
            self._client.close()


class NavigateByInstruction(Behaviour):
    """Lets the drive node follow an instruction; SUCCESS where the model said that it has arrived, else FAILURE.

    Left before its end, it cancels the drive.

    Args:
        name: of the behaviour.
        instruction: in plain language.
        action_name: of the drive node's action.
        limits: of the goal, such as `max_steps`.

    Attributes:
        result: of the last drive; None before its end.
    """

    def __init__(
        self, name: str, instruction: str, *, action_name: str = "nvila_drive/navigate", **limits: float
    ) -> None:
        super().__init__(name)
        self._goal, self._action_name = Navigate.Goal(instruction=instruction, **limits), action_name
        self._client: ActionClient | None = None
        self._sent: Any = None
        self._ended: Any = None
        self.result: Navigate.Result | None = None

    def setup(self, **kwargs: Any) -> None:
        """Take the tree's node."""
        self._client = ActionClient(kwargs["node"], Navigate, self._action_name)

    def initialise(self) -> None:
        """Send the goal, once the server is found."""
        self._sent = self._ended = self.result = None

    def update(self) -> Status:
        """Return RUNNING until the drive has ended, then how."""
        assert self._client is not None, "setup(node=...) comes first"
        if self._sent is None:
            if self._client.server_is_ready():
                self._sent = self._client.send_goal_async(self._goal, feedback_callback=self._on_feedback)
            return Status.RUNNING
        if not self._sent.done():
            return Status.RUNNING
        if not self._sent.result().accepted:
            self.feedback_message = "the drive node refused the goal: it follows another one"
            return Status.FAILURE
        if self._ended is None:
            self._ended = self._sent.result().get_result_async()
        if not self._ended.done():
            return Status.RUNNING
        self.result = self._ended.result().result
        self.feedback_message = f"{self.result.end_reason_name} {self.result.error}".strip()
        return Status.SUCCESS if self.result.end_reason == DriveStop.STOPPED else Status.FAILURE

    def terminate(self, new_status: Status) -> None:
        """Cancel a drive that is left; one that is accepted later is cancelled then."""
        if new_status != Status.INVALID or self._sent is None or self.result is not None:
            return
        self._sent.add_done_callback(_cancel)

    def shutdown(self) -> None:
        """Remove what was created on the tree's node."""
        if self._client is not None:
            self._client.destroy()

    def _on_feedback(self, message: Any) -> None:
        step = message.feedback.step
        self.feedback_message = f"step {step.index}: {step.action}"


def _cancel(sent: Any) -> None:
    if sent.result().accepted:
        sent.result().cancel_goal_async()
