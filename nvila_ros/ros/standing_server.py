"""Standing queries over ROS: services that change the registry, a timer that asks what is due, and the event topic.

Service and timer callbacks run on the executor's thread, answers come on the worker's. One lock is held around each
call of the registry together with the publication of its events, so that events leave in the order in which they were
made. The clock is read under it too, so that for the registry time goes back only when the clock does. Nothing is
submitted or canceled under it, since the scheduler may answer on the same thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from rclpy.task import Future

from nvila_ros.config import NodeConfig
from nvila_ros.errors import ConfigError, NvilaError, QueryError
from nvila_ros.msg import Answer as AnswerMessage
from nvila_ros.msg import Event as EventMessage
from nvila_ros.prompt.answer_kinds import Constrained, parse_kind, schema_error
from nvila_ros.request import Request
from nvila_ros.ros.messages import REQUESTS, answer_message
from nvila_ros.ros.standing_messages import event_message, query_from_message, query_message, state_message
from nvila_ros.serving.admission import Admission
from nvila_ros.serving.throttle import Throttle
from nvila_ros.srv import AddQuery, EnableQuery, ListQueries, RemoveQuery
from nvila_ros.standing.event import Event
from nvila_ros.standing.listing import read_queries
from nvila_ros.standing.query import TICK_NS, StandingQuery, check_schema, complete, to_query
from nvila_ros.standing.registry import Evaluation, EvaluationCounts, QueryRegistry
from nvila_ros.types import NS_PER_S, Answer, FinishReason

EVENT_QOS = QoSProfile(depth=64, reliability=QoSReliabilityPolicy.RELIABLE)
WARN_EVERY_S = 5.0
FLUSH_S = 2.0
QUIET = (FinishReason.CANCELED, FinishReason.REPLACED)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeServices:
    """What the server needs of the node.

    Attributes:
        config: returns the parameters as they are now.
        admission: takes requests.
        cancel: ends what a standing query asks, given its name.
        publish: publishes an answer.
        new_id: returns a query id that was never used.
        is_active: returns whether the node answers; while it does not, nothing is asked.
    """

    config: Callable[[], NodeConfig]
    admission: Admission
    cancel: Callable[[str], object]
    publish: Callable[[AnswerMessage], None]
    new_id: Callable[[], str]
    is_active: Callable[[], bool]


class StandingQueryServer:
    """Asks the node's standing queries and publishes their events.

    Raises:
        ConfigError: the file of the parameter `standing_queries` is not acceptable.
    """

    def __init__(self, node: Node, services: NodeServices) -> None:
        self._node, self._services = node, services
        config = services.config()
        self._registry = QueryRegistry(config.max_standing)
        self._lock = threading.Lock()
        self._last_trials: dict[str, object] = {}  # the last request to add each name whose schema is being tried
        self._warnings = Throttle(WARN_EVERY_S)
        self._events = node.create_publisher(EventMessage, "~/event", EVENT_QOS)
        if config.standing_queries:
            self._load(Path(config.standing_queries).expanduser())
        waiting = ReentrantCallbackGroup()
        node.create_service(AddQuery, "~/add_query", self._on_add, qos_profile=REQUESTS, callback_group=waiting)
        node.create_service(RemoveQuery, "~/remove_query", self._on_remove, qos_profile=REQUESTS)
        node.create_service(EnableQuery, "~/enable_query", self._on_enable, qos_profile=REQUESTS)
        node.create_service(ListQueries, "~/list_queries", self._on_list, qos_profile=REQUESTS)
        node.create_timer(TICK_NS / NS_PER_S, self._on_tick)

    def counts(self) -> dict[str, int]:
        """Return how many queries stand, and the sum of what is counted of them."""
        with self._lock:
            states = self._registry.states()
        sums = {field.name: sum(getattr(s.counts, field.name) for s in states) for field in fields(EvaluationCounts)}
        return {"standing_queries": len(states)} | {f"standing_{name}": count for name, count in sums.items()}

    def close(self) -> None:
        """End every open event, since nothing is asked any more, and wait until subscribers have received it."""
        with self._lock:
            for state in self._registry.states():
                self._publish(self._registry.remove(state.query.name))
        self._events.wait_for_all_acked(Duration(seconds=FLUSH_S))

    def _load(self, path: Path) -> None:
        for query in read_queries(path):
            try:
                query = complete(query, self._services.config())
                check_schema(query)
                self._registry.add(query)
            except NvilaError as error:
                raise ConfigError(f"{path}: {query.name}: {error}") from error

    async def _on_add(self, request: AddQuery.Request, response: AddQuery.Response) -> AddQuery.Response:
        try:
            query = complete(query_from_message(request.query), self._services.config())
            self._last_trials.pop(query.name, None)
            if query.answer_type == "json":
                await self._try_schema(query)
        except NvilaError as error:
            response.error = str(error)
            return response
        except Exception as error:  # raised from a callback it would end the node for everybody
            self._node.get_logger().error(f"standing={request.query.name} cannot be checked: {error!r}")
            response.error = f"it cannot be checked: {error!r}"
            return response
        response.error = self._change(lambda: self._registry.add(query, is_replacing=request.replace))
        response.success = not response.error
        if response.success:
            self._services.cancel(query.name)  # what the query that it replaces still asks
            response.query = query_message(query)
        return response

    async def _try_schema(self, query: StandingQuery) -> None:
        """Check a schema on another thread: it takes seconds, and frames have to be taken meanwhile.

        Raises:
            QueryError: no grammar can be made of it, or a later request was about the same name.
        """
        executor = self._node.executor
        tried = Future(executor=executor)

        def on_tried(fault: str) -> None:
            tried.set_result(fault)
            executor.wake()

        trial = self._last_trials[query.name] = object()
        kind = parse_kind(query.answer_type, json_schema=query.json_schema)
        assert isinstance(kind, Constrained), "JSON is constrained"
        self._services.admission.trials.submit(kind.schema, on_tried)
        fault = await tried
        if self._last_trials.get(query.name) is not trial:
            raise QueryError(f"{query.name!r} was added anew or removed while its schema was tried; add it again")
        del self._last_trials[query.name]
        if fault:
            raise schema_error(fault)

    def _on_remove(self, request: RemoveQuery.Request, response: RemoveQuery.Response) -> RemoveQuery.Response:
        self._last_trials.pop(request.name, None)
        response.error = self._change(lambda: self._registry.remove(request.name))
        response.success = not response.error
        if response.success:
            self._services.cancel(request.name)
        return response

    def _on_enable(self, request: EnableQuery.Request, response: EnableQuery.Response) -> EnableQuery.Response:
        response.error = self._change(lambda: self._registry.enable(request.name, request.enabled))
        response.success = not response.error
        if response.success and not request.enabled:
            self._services.cancel(request.name)
        return response

    def _on_list(self, _: ListQueries.Request, response: ListQueries.Response) -> ListQueries.Response:
        with self._lock:
            response.queries = [state_message(state) for state in self._registry.states()]
        return response

    def _change(self, act: Callable[[], list[Event]]) -> str:
        """Change the registry; return why it cannot be, or an empty text."""
        try:
            with self._lock:
                self._publish(act())
        except NvilaError as error:
            return str(error)
        return ""

    def _on_tick(self) -> None:
        with self._lock:
            now_ns = self._now_ns()
            self._publish(self._registry.expire(now_ns))
            groups = self._registry.due(now_ns) if self._services.is_active() else []
        # All at once: a worker that waits would take the first by itself.
        self._services.admission.admit([self._request(evaluation) for group in groups for evaluation in group])

    def _request(self, evaluation: Evaluation) -> Request:
        query = to_query(evaluation.query, self._services.new_id(), time.monotonic_ns())
        return Request(query, lambda answer: self._on_answer(evaluation, answer))

    def _on_answer(self, evaluation: Evaluation, answer: Answer) -> None:
        self._services.publish(answer_message(answer, self._now_ns()))
        reason = answer.finish_reason
        is_odd = not reason.is_answered and reason not in QUIET
        if is_odd and self._warnings.is_due((evaluation.query.name, reason), time.monotonic_ns()):
            self._node.get_logger().warning(
                f"standing={evaluation.query.name} finish_reason={reason.name}: {answer.error}"
            )
        with self._lock:
            self._publish(self._registry.observe(evaluation, answer, self._now_ns()))

    def _publish(self, events: list[Event]) -> None:
        for event in events:
            self._events.publish(event_message(event))

    def _now_ns(self) -> int:
        now_ns: int = self._node.get_clock().now().nanoseconds
        return now_ns
