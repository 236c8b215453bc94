"""A response that the middleware drops, since it has not discovered where it goes, is sent again."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("rclpy")

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from std_srvs.srv import Trigger

from nvila_ros.ros.responses import NUM_TRIES, TEXT, persistent
from tests.ros.robot import WAIT_S


@pytest.fixture
def node() -> Iterator[Node]:
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("server", context=context)
    yield node
    node.destroy_node()
    rclpy.shutdown(context=context)


def warned(response: Any, header: Any) -> None:
    warnings.warn(f"{TEXT}: client will not receive response", RuntimeWarning, stacklevel=1)


def serve(node: Node, num_failures: int, told: list[str]) -> list[int]:
    """Offer a service whose first responses are dropped; the list grows by each try."""
    service = node.create_service(Trigger, "go", lambda request, response: Trigger.Response(message="came"))
    send, tries = service.send_response, []

    def send_response(response: Any, header: Any) -> None:
        tries.append(1)
        (warned if len(tries) <= num_failures else send)(response, header)

    service.send_response = send_response
    persistent(service, told.append)
    return tries


def test_a_response_that_was_dropped_is_sent_again(node: Node) -> None:
    told: list[str] = []
    tries = serve(node, 3, told)
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    client = node.create_client(Trigger, "go")
    assert client.wait_for_service(WAIT_S)
    future = client.call_async(Trigger.Request())
    executor.spin_until_future_complete(future, WAIT_S)

    assert future.result().message == "came"
    assert (len(tries), told) == (4, [])


def test_one_that_nobody_can_get_is_told(node: Node) -> None:
    told: list[str] = []
    service = node.create_service(Trigger, "go", lambda request, response: response)
    service.send_response = warned
    persistent(service, told.append)

    service.send_response(Trigger.Response(), None)

    assert told == [f"go: a response was lost, since its asker was not discovered within {NUM_TRIES / 10:g} s"]


def test_other_warnings_are_shown_as_before(node: Node) -> None:
    persistent(node.create_service(Trigger, "go", lambda request, response: response), print)

    with pytest.warns(RuntimeWarning, match="another"):
        warnings.warn("another", RuntimeWarning, stacklevel=1)
    with pytest.warns(RuntimeWarning, match="failed to send response"):
        warned(None, None)  # of an action, say, whose responses are not sent again
