"""The real node whose model is behind another node's door: services are the same, and the key is no parameter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("nvila_ros.msg")
pytest.importorskip("aiohttp")
pytest.importorskip("prometheus_client")

from rcl_interfaces.srv import GetParameters, ListParameters

from nvila_ros.msg import Answer
from nvila_ros.remote.settings import KEY_VARIABLE
from tests.http.serving import Served, serving
from tests.ros.robot import REAL_NODE, WAIT_S, Camera, NodeProcess, Robot, result_of, running
from tests.tiny import load_fake

KEY = "key-of-the-server-0123456789"


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "key"
    path.write_text(KEY)
    return path


@pytest.fixture(scope="module")
def far(key_file: Path) -> Iterator[Served]:
    with serving(load_fake, max_age_s=0.0, http_token_file=str(key_file)) as served:
        yield served


@pytest.fixture(scope="module")
def shared(far: Served, key_file: Path) -> Iterator[tuple[Robot, Camera]]:
    arguments = ("-p", "backend:=remote", "-p", f"remote_url:={far.url}", "-p", f"remote_key_file:={key_file}")
    with running(*arguments, "-p", "max_age_s:=0.0", command=REAL_NODE) as robot_and_camera:
        robot, camera = robot_and_camera
        robot.show(camera, *range(100, 104))
        yield robot_and_camera


def test_a_question_is_answered_about_this_robots_frames_by_the_far_model(shared: tuple[Robot, Camera]) -> None:
    answer = shared[0].ask("one two three")

    assert (answer.text, answer.finish_reason) == ("one two three", Answer.STOP)
    assert (answer.model, answer.backend) == ("fake", "remote")
    assert [stamp.sec for stamp in answer.stamps] == [103]


def call(robot: Robot, kind: Any, name: str, **fields: Any) -> Any:
    client = robot.node.create_client(kind, f"/nvila/{name}")
    assert client.wait_for_service(WAIT_S)
    return result_of(client.call_async(kind.Request(**fields)))


def test_the_key_is_in_no_parameter(shared: tuple[Robot, Camera]) -> None:
    names = call(shared[0], ListParameters, "list_parameters").result.names
    values = call(shared[0], GetParameters, "get_parameters", names=names).values

    assert "remote_key_file" in names
    assert KEY not in str(values)


def test_a_node_without_a_server_says_which_parameter_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    process = NodeProcess("-p", "backend:=remote", command=REAL_NODE)

    assert process.wait() == 2
    assert "name it by remote_url" in process.log
