"""Standing queries over ROS: services that change them, a timer that asks what is due, and the event topic."""

from __future__ import annotations

from collections.abc import Sequence

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from rclpy.task import Future

from nvila_ros.errors import NvilaError
from nvila_ros.msg import Event as EventMessage
from nvila_ros.ros.messages import REQUESTS
from nvila_ros.ros.standing_messages import event_message, query_from_message, query_message, state_message
from nvila_ros.srv import AddQuery, EnableQuery, ListQueries, RemoveQuery
from nvila_ros.standing.event import Event
from nvila_ros.standing.query import TICK_NS
from nvila_ros.standing.service import StandingService
from nvila_ros.types import NS_PER_S

EVENT_QOS = QoSProfile(depth=64, reliability=QoSReliabilityPolicy.RELIABLE)
FLUSH_S = 2.0


class StandingQueryServer:
    """The endpoints of a node's standing queries; service callbacks and the timer run on the executor's thread."""

    def __init__(self, node: Node, service: StandingService) -> None:
        self._node, self._service = node, service
        self._events = node.create_publisher(EventMessage, "~/event", EVENT_QOS)
        service.on_events.append(self._publish)
        waiting = ReentrantCallbackGroup()
        node.create_service(AddQuery, "~/add_query", self._on_add, qos_profile=REQUESTS, callback_group=waiting)
        node.create_service(RemoveQuery, "~/remove_query", self._on_remove, qos_profile=REQUESTS)
        node.create_service(EnableQuery, "~/enable_query", self._on_enable, qos_profile=REQUESTS)
        node.create_service(ListQueries, "~/list_queries", self._on_list, qos_profile=REQUESTS)
        node.create_timer(TICK_NS / NS_PER_S, service.tick)

    def close(self) -> None:
        """End every open event, and wait until subscribers have received it."""
        self._service.close()
        self._events.wait_for_all_acked(Duration(seconds=FLUSH_S))

    async def _on_add(self, request: AddQuery.Request, response: AddQuery.Response) -> AddQuery.Response:
        executor = self._node.executor
        done = Future(executor=executor)

        def on_done(error: str) -> None:
            done.set_result(error)
            executor.wake()

        try:
            given = query_from_message(request.query)
            query = self._service.add(given, on_done, is_replacing=request.replace)
            response.error = str(await done)
        except NvilaError as error:
            response.error = str(error)
            return response
        except Exception as error:  # raised from a callback it would end the node for everybody
            self._node.get_logger().error(f"standing={request.query.name} cannot be checked: {error!r}")
            response.error = f"it cannot be checked: {error!r}"
            return response
        response.success = not response.error
        if response.success:
            response.query = query_message(query)
        return response

    def _on_remove(self, request: RemoveQuery.Request, response: RemoveQuery.Response) -> RemoveQuery.Response:
        response.error = self._service.remove(request.name)
        response.success = not response.error
        return response

    def _on_enable(self, request: EnableQuery.Request, response: EnableQuery.Response) -> EnableQuery.Response:
        response.error = self._service.enable(request.name, request.enabled)
        response.success = not response.error
        return response

    def _on_list(self, _: ListQueries.Request, response: ListQueries.Response) -> ListQueries.Response:
        response.queries = [state_message(state) for state in self._service.states()]
        return response

    def _publish(self, events: Sequence[Event]) -> None:
        for event in events:
            self._events.publish(event_message(event))
