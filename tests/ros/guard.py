"""A client of standing queries beside a running node."""

from __future__ import annotations

import array
import sys
from pathlib import Path
from typing import Any

from rclpy.task import Future

from nvila_ros.msg import Event, StandingQuery, StandingState
from nvila_ros.srv import AddQuery, EnableQuery, ListQueries, RemoveQuery
from tests.ros.robot import WAIT_S, Camera, Robot, result_of, wait_until

LAMP_NODE = (sys.executable, str(Path(__file__).with_name("lamp_node.py")))


class Guard:
    """Asks the node to keep an eye on a lamp, and hears what it tells."""

    def __init__(self, robot: Robot, camera: Camera) -> None:
        self.robot = robot
        self.events: list[Event] = []
        self._camera = camera
        self._stamp_s = 100.0
        node = robot.node
        node.create_subscription(Event, "nvila/event", self.events.append, 64)
        types = {"add": AddQuery, "remove": RemoveQuery, "enable": EnableQuery, "list": ListQueries}
        names = {verb: "nvila/list_queries" if verb == "list" else f"nvila/{verb}_query" for verb in types}
        self._clients = {verb: node.create_client(types[verb], name) for verb, name in names.items()}
        assert all(client.wait_for_service(WAIT_S) for client in self._clients.values())
        wait_until(lambda: node.count_publishers("nvila/event") == 1, "the node publishes events")

    def call(self, verb: str, request: Any) -> Any:
        return result_of(self._clients[verb].call_async(request))

    def add(self, name: str = "lamp", replace: bool = False, **fields: Any) -> AddQuery.Response:
        return result_of(self.add_later(name, replace, **fields))

    def add_later(self, name: str = "lamp", replace: bool = False, **fields: Any) -> Future:
        values = {"question": "Is the lamp on?", "trigger": "rising", "rate_hz": 10.0} | fields
        request = AddQuery.Request(query=StandingQuery(name=name, **values), replace=replace)
        return self._clients["add"].call_async(request)

    def remove(self, name: str = "lamp") -> RemoveQuery.Response:
        return self.call("remove", RemoveQuery.Request(name=name))

    def states(self) -> dict[str, StandingState]:
        return {state.query.name: state for state in self.call("list", ListQueries.Request()).queries}

    def show(self, is_bright: bool, *, seconds_later: float = 1.0) -> int:
        """Show a frame and wait until the standing queries have seen it; returns its stamp in seconds."""
        self._stamp_s += seconds_later
        data = array.array("B", bytes([255 * is_bright]) * 144)
        if seconds_later < 0:  # one frame far behind is held aside; the next one shows that the stamps jumped back
            self._camera.show(self._stamp_s - 0.1, data=data)
        self._camera.show(self._stamp_s, data=data)
        enabled = [name for name, state in self.states().items() if state.query.enabled]
        for name in enabled:
            wait_until(lambda name=name: self._has_seen(name), f"{name} has seen the frame of {self._stamp_s} s")
        return round(self._stamp_s)

    def wait_for(self, num_events: int, name: str = "lamp") -> list[Event]:
        """Wait for events of a query and return them, with those before."""
        wait_until(lambda: len(self.told(name)) >= num_events, f"{num_events} events of {name}: {self.told(name)}")
        return self.told(name)

    def told(self, name: str = "lamp") -> list[Event]:
        return [event for event in self.events if event.name == name]

    def _has_seen(self, name: str) -> bool:
        return self.states()[name].text_stamp.sec == round(self._stamp_s)
