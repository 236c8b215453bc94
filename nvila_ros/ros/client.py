"""A client of the node for Python programs: questions, streamed answers, standing queries and their events."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from rclpy.action import ActionClient
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.client import Client
from rclpy.exceptions import NameValidationException
from rclpy.node import Node
from rclpy.qos import QoSProfile

from nvila_ros.action import AskVideo
from nvila_ros.errors import ConfigError, NvilaError, QueryError, UnansweredError, shown
from nvila_ros.msg import Event as EventMessage
from nvila_ros.msg import Status as StatusMessage
from nvila_ros.ros.client_calls import Calls, Endpoint
from nvila_ros.ros.client_future import ClientFuture, NodeWaiter
from nvila_ros.ros.client_goal import GoalCall
from nvila_ros.ros.client_messages import answer_value, ask_message, event_value, require_utf8, status_value
from nvila_ros.ros.client_streams import AnswerStream, EventStream
from nvila_ros.ros.messages import REQUESTS, TRANSIENT_LOCAL
from nvila_ros.ros.standing_messages import query_from_message, query_message
from nvila_ros.serving.model_loader import ModelState, Status
from nvila_ros.serving.query_fields import QueryFields, require_answer
from nvila_ros.srv import AddQuery, Ask, EnableQuery, ListQueries, RemoveQuery
from nvila_ros.standing.query import StandingQuery
from nvila_ros.types import Answer

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")
FEEDBACK = QoSProfile(depth=1024)
"""As many pieces as an answer has tokens at most: a program that is slow to spin loses none."""
EVENTS = QoSProfile(depth=64)


class NvilaClient:
    """Asks a node of nvila_ros.

    Calls return at once, with a future: `result()` waits for it, `await` works in coroutines of rclpy and of asyncio,
    and callbacks run on the thread of the node's executor. Any executor of yours may have the node; where none has it,
    a waiting call turns it. All methods may be called from any thread.

    Args:
        node: yours; the client's subscriptions and clients are created on it.
        name: of the node that is asked; a relative one is resolved in your node's namespace.
        timeout_s: how long a call may take where it names no other.
        discovery_s: how long the node may take to be found.

    Raises:
        ConfigError: the name is none of a node, or a time is not positive.
    """

    def __init__(self, node: Node, name: str = "nvila", *, timeout_s: float = 60.0, discovery_s: float = 5.0) -> None:
        self._node, self._name, self._timeout_s = node, name, _positive("timeout_s", timeout_s)
        self._group = ReentrantCallbackGroup()
        self._waiter = NodeWaiter(node)
        self._calls = Calls(node, self._waiter, self._group, _positive("discovery_s", discovery_s))
        self._clients: dict[str, tuple[Client, Endpoint]] = {}
        self._streams: list[EventStream] = []
        self._goals: ActionClient | None = None
        self._events: Any = None
        self._status: Status | None = None
        self._ready: list[ClientFuture[Status]] = []
        try:
            if not name.strip("/"):  # else the topics of no node would be those of the root
                raise TypeError("the name is empty")
            self._statuses = node.create_subscription(
                StatusMessage, f"{name}/status", self._on_status, TRANSIENT_LOCAL, callback_group=self._group
            )
        except (NameValidationException, TypeError) as error:  # the latter of a text that is no UTF-8
            raise ConfigError(f"{shown(name)} cannot be the name of a node: letters, digits, _ and / alone") from error

    @property
    def status(self) -> Status | None:
        """The last state of the node's model that was received; None before the first."""
        return self._status

    def wait_until_ready(self, timeout_s: float | None = None) -> ClientFuture[Status]:
        """Return a future that is done once the model that the node was started with answers.

        The future raises:
            ServerError: there is no node.
            UnansweredError: the model was not built or not loaded.
        """
        _, endpoint = self._client(Ask, "ask")
        future: ClientFuture[Status] = self._future(f"{self._name} to be ready", timeout_s)
        self._ready = [*(waiting for waiting in self._ready if not waiting.done()), future]
        self._calls.begin(future, endpoint, self._settle_ready, self._timeout(timeout_s))
        return future

    def ask(
        self, question: str, *, timeout_s: float | None = None, **fields: Unpack[QueryFields]
    ) -> ClientFuture[Answer]:
        """Ask one question and return the future of its answer.

        Args:
            question: in plain language.
            timeout_s: of the call; `deadline_s` among the fields is the node's own bound.
            fields: see `QueryFields`.

        Raises:
            QueryError: a field is unknown or of the wrong type.

        The future raises:
            QueryError: the question breaks a rule of the node.
            NoFramesError: the window holds no frame.
            UnansweredError: the question was rejected, came too late, or the model failed.
            ServerError: there is no node, or it left.
            ServerTimeoutError: no response came in time.
        """
        request, query = ask_message(Ask.Request, question, fields)
        return self._call(
            Ask, "ask", request, lambda response: require_answer(answer_value(response.answer, query)), timeout_s
        )

    def ask_video(
        self, question: str, *, timeout_s: float | None = None, **fields: Unpack[QueryFields]
    ) -> AnswerStream:
        """Ask one question and return the pieces of its answer to iterate over; arguments and errors as of `ask`."""
        message, query = ask_message(AskVideo.Goal, question, fields)
        require_utf8(message)
        goals, endpoint = self._action()
        answer: ClientFuture[Answer] = self._future(f"the answer of {endpoint.name}", timeout_s)
        goal = GoalCall(
            self._waiter, goals, message, lambda done: answer_value(done, query), answer, self._explain_rejection
        )
        self._calls.begin(answer, endpoint, goal.send, self._timeout(timeout_s))
        return goal.stream

    def add_query(
        self, query: StandingQuery, *, replace: bool = False, timeout_s: float | None = None
    ) -> ClientFuture[StandingQuery]:
        """Let the node ask a question by itself from now on; the future's result is the query as it stands.

        Open `events` before: what was reported earlier is not repeated.

        The future raises:
            QueryError: the node refuses it.
        """
        request = AddQuery.Request(query=query_message(query), replace=replace)
        return self._call(
            AddQuery, "add_query", request, lambda response: query_from_message(_done(response).query), timeout_s
        )

    def remove_query(self, name: str, *, timeout_s: float | None = None) -> ClientFuture[None]:
        """Stop asking a standing query and forget it; the future raises QueryError where there is none."""
        return self._call(RemoveQuery, "remove_query", RemoveQuery.Request(name=name), _nothing, timeout_s)

    def enable_query(self, name: str, enabled: bool = True, *, timeout_s: float | None = None) -> ClientFuture[None]:
        """Pause a standing query, or ask it again; the future raises QueryError where there is none."""
        request = EnableQuery.Request(name=name, enabled=enabled)
        return self._call(EnableQuery, "enable_query", request, _nothing, timeout_s)

    def list_queries(self, *, timeout_s: float | None = None) -> ClientFuture[tuple[StandingQuery, ...]]:
        """Return the future of all standing queries, in the order in which they were added."""
        return self._call(
            ListQueries,
            "list_queries",
            ListQueries.Request(),
            lambda response: tuple(query_from_message(state.query) for state in response.queries),
            timeout_s,
        )

    def events(self, name: str = "") -> EventStream:
        """Return events of standing queries from now on, of all or of the named one."""
        if self._events is None:
            self._events = self._node.create_subscription(
                EventMessage, f"{self._name}/event", self._on_event, EVENTS, callback_group=self._group
            )
        stream = EventStream(self._waiter, name, self._streams.remove)
        self._streams.append(stream)
        return stream

    def close(self) -> None:
        """Fail open calls, end event streams, and remove what was created on the node."""
        self._calls.close()
        for stream in self._streams.copy():
            stream.close()
        if self._goals is not None:
            self._node.remove_waitable(self._goals)
        self._waiter.let_turn()
        self._calls.destroy()
        for client, _ in self._clients.values():
            self._node.destroy_client(client)
        for subscription in filter(None, (self._statuses, self._events)):
            self._node.destroy_subscription(subscription)
        if self._goals is not None:
            with contextlib.suppress(ValueError):  # it is none of the node's any more
                self._goals.destroy()
        self._waiter.close()

    def __enter__(self) -> NvilaClient:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def _call(
        self, srv_type: Any, verb: str, request: Any, read: Callable[[Any], T], timeout_s: float | None
    ) -> ClientFuture[T]:
        require_utf8(request)
        client, endpoint = self._client(srv_type, verb)
        future: ClientFuture[T] = self._future(f"the response of {endpoint.name}", timeout_s)

        def send() -> None:
            response = client.call_async(request)
            future.on_cancel = lambda: client.remove_pending_request(response)
            future.add_done_callback(lambda _: client.remove_pending_request(response))
            response.add_done_callback(lambda done: _settle(future, lambda: read(done.result())))

        self._calls.begin(future, endpoint, send, self._timeout(timeout_s))
        return future

    def _client(self, srv_type: Any, verb: str) -> tuple[Client, Endpoint]:
        if verb not in self._clients:
            client = self._node.create_client(
                srv_type, f"{self._name}/{verb}", qos_profile=REQUESTS, callback_group=self._group
            )
            name = self._node.resolve_service_name(f"{self._name}/{verb}")
            endpoint = Endpoint("service", name, f"nvila_ros/srv/{srv_type.__name__}", client.service_is_ready)
            self._clients[verb] = client, endpoint
        return self._clients[verb]

    def _action(self) -> tuple[ActionClient, Endpoint]:
        if self._goals is None:
            self._goals = ActionClient(
                self._node,
                AskVideo,
                f"{self._name}/ask_video",
                callback_group=self._group,
                goal_service_qos_profile=REQUESTS,
                result_service_qos_profile=REQUESTS,
                cancel_service_qos_profile=REQUESTS,
                feedback_sub_qos_profile=FEEDBACK,
            )
        name = self._node.resolve_service_name(f"{self._name}/ask_video")
        return self._goals, Endpoint("action", name, "nvila_ros/action/AskVideo", self._goals.server_is_ready)

    def _explain_rejection(self) -> str:
        status = self._status
        if status is not None and status.refusal:
            return f"REJECTED: {status.refusal}"
        return "REJECTED: the node's queue was full when the question came; ask again later, or raise queue_size"

    def _future(self, what: str, timeout_s: float | None) -> ClientFuture[Any]:
        return ClientFuture(self._waiter, what, self._timeout(timeout_s))

    def _timeout(self, timeout_s: float | None) -> float:
        return self._timeout_s if timeout_s is None else _positive("timeout_s", timeout_s)

    def _on_status(self, message: StatusMessage) -> None:
        self._status = status_value(message)
        self._settle_ready()

    def _settle_ready(self) -> None:
        status = self._status
        if status is None or status.state not in (ModelState.READY, ModelState.FAILED):
            return
        ready, self._ready = self._ready, []
        for future in ready:
            if status.state is ModelState.READY:
                future.settle(status)
            else:
                future.fail(UnansweredError(f"the node has not got the model that it was started with: {status.text}"))

    def _on_event(self, message: EventMessage) -> None:
        event = event_value(message)
        for stream in self._streams.copy():
            stream.on_event(event)


def _positive(name: str, seconds: float) -> float:
    if not seconds > 0:  # a NaN is not
        raise ConfigError(f"{name} must be positive, got {seconds}")
    return seconds


def _settle(future: ClientFuture[T], read: Callable[[], T]) -> None:
    try:
        future.settle(read())
    except NvilaError as error:
        future.fail(error)


def _done(response: Any) -> Any:
    """Return a response of success.

    Raises:
        QueryError: the node refused the request.
    """
    if not response.success:
        raise QueryError(response.error)
    return response


def _nothing(response: Any) -> None:
    _done(response)
