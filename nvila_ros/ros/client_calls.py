"""Calls of services and actions on their way: sent once a server is there, failed where none comes or answers.

One timer of the node serves all of them and runs only while there are any.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import rclpy
from rclpy.action import get_action_names_and_types
from rclpy.callback_groups import CallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from nvila_ros.errors import ServerError, ServerTimeoutError
from nvila_ros.ros.client_future import ClientFuture, NodeWaiter

TICK_S = 0.02
SETTLE_S = 0.15
"""How long after a server was found it is asked: it has to find us too, else its response has nowhere to go."""
GONE_S = 1.0
"""A server that has not been there for this long has left; discovery may flicker."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A service or action of the node: what is asked for, by name and type, and whether a server of it is there.

    Attributes:
        kind: `service` or `action`.
        name: resolved.
        type_name: as in `nvila_ros/srv/Ask`.
    """

    kind: str
    name: str
    type_name: str
    is_ready: Callable[[], bool]


@dataclass(slots=True, eq=False)
class Call:
    """One call that has not ended.

    Attributes:
        send: sends it to the server that is there.
        found_by_s: when a server must have been found, `time.monotonic`.
        seen_s: when the server was last there, after it was sent.
    """

    future: ClientFuture[Any]
    endpoint: Endpoint
    send: Callable[[], None]
    found_by_s: float
    timeout_s: float
    is_sent: bool = False
    seen_s: float = 0.0


class Calls:
    """All calls of a client that have not ended.

    Args:
        node: whose timer serves them.
        waiter: of the node.
        group: of the timer.
        discovery_s: how long a server may take to be found.
    """

    def __init__(self, node: Node, waiter: NodeWaiter, group: CallbackGroup, discovery_s: float) -> None:
        self._node, self._waiter, self._discovery_s = node, waiter, discovery_s
        self._lock = threading.RLock()
        self._calls: list[Call] = []
        self._found_s: dict[str, float] = {}  # when the server of each endpoint was found, `time.monotonic`
        # On the steady clock: a paused simulation does not pause a timeout.
        clock = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = node.create_timer(TICK_S, self._tick, callback_group=group, clock=clock)
        self._timer.cancel()

    def begin(self, future: ClientFuture[Any], endpoint: Endpoint, send: Callable[[], None], timeout_s: float) -> None:
        """Send a call as soon as its server is there, and watch over it until its future is done."""
        call = Call(future, endpoint, send, time.monotonic() + self._discovery_s, timeout_s)
        with self._lock:
            self._calls.append(call)
            self._advance(call)
            self._timer.reset()
        self._waiter.notify()  # the executor has to see the timer

    def close(self) -> None:
        """Fail what is open and stop the timer."""
        with self._lock:
            calls, self._calls = self._calls, []
            self._timer.cancel()
        for call in calls:
            call.future.fail(ServerError("the client was closed before the answer came"))

    def destroy(self) -> None:
        """Remove the timer, once no executor has it among those that are ready."""
        self._node.destroy_timer(self._timer)

    def _tick(self) -> None:
        with self._lock:
            for call in self._calls.copy():
                self._advance(call)
            self._calls = [call for call in self._calls if not call.future.done()]
            if not self._calls:
                self._timer.cancel()

    def _advance(self, call: Call) -> None:
        now_s = time.monotonic()
        if call.future.done():
            return
        is_ready = call.endpoint.is_ready()
        if is_ready:
            call.seen_s = now_s
            self._found_s.setdefault(call.endpoint.name, now_s)
        else:
            self._found_s.pop(call.endpoint.name, None)
        if is_ready and not call.is_sent:
            if now_s - self._found_s[call.endpoint.name] < SETTLE_S:
                return
            call.is_sent = True
            call.send()
        elif not call.is_sent and now_s >= min(call.found_by_s, call.future.expires_s):
            call.future.fail(ServerError(self._explain_absence(call)))
        elif now_s >= call.future.expires_s:
            call.future.fail(ServerTimeoutError(self._explain_silence(call)))
        elif call.is_sent and now_s - call.seen_s > GONE_S:
            call.future.fail(
                ServerError(f"the server of {call.endpoint.name} left before it answered; is the node up?")
            )

    def _explain_silence(self, call: Call) -> str:
        return (
            f"{call.endpoint.name} did not respond within {call.timeout_s:g} s; look at the node's ~/status and "
            "/diagnostics, or give a longer timeout_s"
        )

    def _explain_absence(self, call: Call) -> str:
        endpoint, waited_s = call.endpoint, min(call.timeout_s, self._discovery_s)
        domain, rmw = self._node.context.get_domain_id(), rclpy.get_rmw_implementation_identifier()
        others = self._same_type(endpoint)
        hint = f"; of that type there are {others}: give NvilaClient the node's name" if others else ""
        return (
            f"no server of the {endpoint.kind} {endpoint.name} ({endpoint.type_name}) was found within "
            f"{waited_s:g} s in ROS domain {domain} ({rmw}){hint}; start nvila_node, and compare "
            "ROS_DOMAIN_ID, ROS_AUTOMATIC_DISCOVERY_RANGE and RMW_IMPLEMENTATION of both processes"
        )

    def _same_type(self, endpoint: Endpoint) -> list[str]:
        """Return what else in the graph has the endpoint's type: most often the node under another name."""
        if endpoint.kind == "action":
            found = get_action_names_and_types(self._node)
        else:
            found = self._node.get_service_names_and_types()
        return sorted(name for name, types in found if endpoint.type_name in types and name != endpoint.name)
