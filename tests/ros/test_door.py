"""The HTTP door of the real node, beside its topics and services."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("nvila_ros.msg")
pytest.importorskip("aiohttp")
pytest.importorskip("prometheus_client")

from nvila_ros.msg import Answer
from tests.ros.robot import FAKE_NODE, WAIT_S, Camera, NodeProcess, Robot, running, wait_until

SLOW = "word " * 19 + "word"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


PORT = free_port()


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Robot, Camera]]:
    with running("-p", "model:=fake:0.02", "-p", f"http_port:={PORT}", "-p", "buffer_s:=3600.0") as robot_and_camera:
        robot, camera = robot_and_camera
        robot.show(camera, *range(100, 110))
        yield robot_and_camera


@pytest.fixture
def robot(shared: tuple[Robot, Camera]) -> Robot:
    return shared[0]


def request(method: str, path: str, body: Any = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=WAIT_S)
    connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, json.loads(content) if content else None


def ask(question: str, **fields: Any) -> tuple[int, Any]:
    said = [{"role": "user", "content": question}]
    return request("POST", "/v1/chat/completions", {"model": "live", "messages": said, **fields})


def test_an_answer_over_http_is_that_of_the_node_and_is_published(robot: Robot) -> None:
    status, answer = ask("what is this")

    assert status == 200
    assert answer["choices"][0]["message"]["content"] == "what is this"
    assert answer["nvila"]["frames"] == [{"camera": "camera", "stamp_ns": str(109 * 10**9)}]
    wait_until(lambda: any(each.query_id == answer["nvila"]["query_id"] for each in robot.answers), "it is published")
    assert robot.answers[-1].age_s == pytest.approx(answer["nvila"]["age_s"], abs=200)  # a float32


def test_an_answer_of_the_service_is_seen_over_http(robot: Robot) -> None:
    asked = robot.ask("by service")
    wait_until(lambda: request("GET", f"/api/answers/{asked.query_id}")[0] == 200, "it is kept")

    assert request("GET", f"/api/answers/{asked.query_id}")[1]["text"] == "by service"


def test_the_state_is_that_of_the_diagnostics(robot: Robot) -> None:
    told = robot.fresh_diagnostics()
    state = request("GET", "/api/state")[1]

    assert state["name"] == "/nvila"
    assert state["model"]["state"] == told["model_state"] == "READY"
    assert state["cameras"][0]["received"] == int(told["frames_received"])
    assert state["cameras"][0]["source"] == "/image"
    assert request("GET", "/ready")[0] == 200


def test_a_standing_query_added_over_http_asks_and_is_listed(robot: Robot) -> None:
    query = {"name": "h", "question": "x", "answer_type": "choices", "choices": ["yes", "no"], "rate_hz": 10.0}
    assert request("POST", "/api/standing", query)[0] == 201
    wait_until(lambda: any(answer.standing == "h" for answer in robot.answers), "its answers are published")
    assert request("DELETE", "/api/standing/h")[0] == 204


def test_a_signal_lets_answers_in_progress_end(robot: Robot) -> None:
    """The last test of this node: it ends."""
    found: list[tuple[int, Any]] = []
    asking = threading.Thread(target=lambda: found.append(ask(SLOW)))
    asking.start()
    wait_until(lambda: request("GET", "/api/state")[1]["counters"]["queries_running"] == 1, "it runs")
    code = robot.process.stop(signal.SIGTERM)
    asking.join()

    assert code == 0, robot.process.log
    assert found[0][1]["choices"][0]["message"]["content"] == SLOW
    wait_until(lambda: robot.answers[-1].finish_reason == Answer.STOP, "it is published too")


def test_a_door_that_others_reach_needs_a_token() -> None:
    node = NodeProcess(
        "-p", f"http_port:={free_port()}", "-p", "http_host:=0.0.0.0", "-p", "model:=fake", command=FAKE_NODE
    )

    assert node.wait() == 2
    assert "http_host must be a loopback address" in node.log


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        node = NodeProcess("-p", f"http_port:={port}", "-p", "model:=fake", command=FAKE_NODE)

        assert node.wait() == 2
        assert f"the HTTP door cannot listen on 127.0.0.1:{port}" in node.log
