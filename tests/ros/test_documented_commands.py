"""Every documented `ros2` command does what it is documented for, on the real node."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

pytest.importorskip("rclpy")
pytest.importorskip("nvila_ros.msg")

from rclpy.qos import QoSCompatibility, QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy, qos_check_compatible
from rosidl_parser.definition import AbstractNestedType, NamespacedType

import nvila_ros.action
import nvila_ros.msg
import nvila_ros.srv
from nvila_ros.config import NodeConfig, bounds
from nvila_ros.driving.settings import DriveConfig
from nvila_ros.msg import Answer
from nvila_ros.tools.cli import VERBS
from tests.ros.documented_commands import ROOT, Command, documented, parse
from tests.ros.robot import Robot, result_of, wait_until

COMMANDS = documented()
CAMERA_TOPICS = {"/front/image_raw"}


def named(*names: str) -> list[Any]:
    return [pytest.param(c, id=f"{c.source}:{c.text[:60]}") for c in COMMANDS if c.name in names]


@pytest.fixture(scope="module")
def robot() -> Iterator[Robot]:
    with Robot() as robot:
        yield robot


def test_the_documents_have_commands() -> None:
    assert {"topic echo", "service call", "launch", "run"} <= {command.name for command in COMMANDS}


@pytest.mark.parametrize("command", named("topic echo"))
def test_what_is_echoed_is_published_and_arrives(command: Command, robot: Robot) -> None:
    (topic, *_) = command.words
    infos = robot.node.get_publishers_info_by_topic(topic)
    assert infos, f"the node publishes no {topic}"
    if command.qos() is None:
        return  # ros2 takes the publisher's
    assert echo(robot, topic, infos[0], command) is not None


def test_an_echo_of_a_policy_alone_gets_nothing(robot: Robot) -> None:
    topic = "/nvila/status"
    command = parse("here", f"ros2 topic echo {topic} --qos-durability transient_local")

    assert command.qos() == ("best_effort", "transient_local")
    assert echo(robot, topic, robot.node.get_publishers_info_by_topic(topic)[0], command, within_s=1.0) is None


def echo(robot: Robot, topic: str, info: Any, command: Command, within_s: float = 10.0) -> Any:
    """Subscribe as a command does; return the first message, or None."""
    names = command.qos()
    assert names is not None
    reliability, durability = names
    qos = QoSProfile(
        depth=5,
        reliability=QoSReliabilityPolicy[reliability.upper()],
        durability=QoSDurabilityPolicy[durability.upper()],
    )
    compatibility, reason = qos_check_compatible(info.qos_profile, qos)
    assert compatibility != QoSCompatibility.ERROR, reason
    got: list[Any] = []
    kind = getattr(nvila_ros.msg, info.topic_type.rsplit("/", 1)[1])
    subscription = robot.node.create_subscription(kind, topic, got.append, qos)
    try:
        wait_until(lambda: bool(got), "a message", within_s)
    except AssertionError:
        return None
    finally:
        robot.node.destroy_subscription(subscription)
    return got[0]


@pytest.mark.parametrize("command", named("service call"))
def test_what_is_called_is_served_and_takes_the_request(command: Command, robot: Robot) -> None:
    name, kind, *values = command.words
    assert (name, [kind]) in robot.node.get_service_names_and_types()
    service = getattr(nvila_ros.srv, kind.rsplit("/", 1)[1])
    request = service.Request()
    fill(request, yaml.safe_load(values[0]) if values else {})
    if hasattr(request, "replace"):
        request.replace = True  # several documents add the same query
    client = robot.node.create_client(service, name)
    assert client.wait_for_service(10)

    response = result_of(client.call_async(request))

    if hasattr(response, "answer"):
        assert response.answer.finish_reason != Answer.INVALID, response.answer.error
    else:
        assert response.success, response.error


def fill(message: Any, values: dict[str, Any]) -> None:
    """Set the fields of a message as `ros2` does; an unknown one raises."""
    for name, value in values.items():
        held = getattr(message, name)
        if hasattr(held, "get_fields_and_field_types"):
            fill(held, value)
        else:
            kind = dict(zip(message.get_fields_and_field_types(), message.SLOT_TYPES, strict=True))[name]
            assert not isinstance(kind, NamespacedType | AbstractNestedType) or isinstance(value, list)
            setattr(message, name, value)


@pytest.mark.parametrize("command", named("action send_goal"))
def test_a_goal_has_the_actions_fields(command: Command) -> None:
    _, kind, values = command.words

    fill(getattr(nvila_ros.action, kind.rsplit("/", 1)[1]).Goal(), yaml.safe_load(values))


@pytest.mark.parametrize("command", named("interface show"))
def test_what_is_shown_is_an_interface(command: Command) -> None:
    _, kind, name = command.words[0].split("/")

    assert hasattr({"msg": nvila_ros.msg, "srv": nvila_ros.srv, "action": nvila_ros.action}[kind], name)


@pytest.mark.parametrize("command", named("launch"))
def test_what_is_launched_is_there_and_takes_the_arguments(command: Command) -> None:
    package, file, *arguments = command.words

    assert package == "nvila_ros"
    assert {argument.split(":=")[0] for argument in arguments} <= launch_arguments(file)
    assert all(":=" in argument for argument in arguments)


def launch_arguments(file: str) -> set[str]:
    """Return the arguments of a launch file, and those of the node's where it includes that."""
    text = (ROOT / "launch" / file).read_text()
    tables = (n for n in ast.parse(text).body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "ARGUMENTS")
    names = {row.elts[0].value for table in tables for row in table.value.elts}
    included = "nvila.launch.py"
    return names | (launch_arguments(included) if included in text and file != included else set())


@pytest.mark.parametrize("command", named("run"))
def test_what_is_run_is_installed(command: Command) -> None:
    package, program, *words = command.words
    programs = re.findall(r"(nvila\w*)=[\w.]+", (ROOT / "CMakeLists.txt").read_text())

    assert (package, program in programs) == ("nvila_ros", True)
    assert program != "nvila" or words[0] in {"VERB", *VERBS}


@pytest.mark.parametrize("command", named("param describe", "param get", "param set"))
def test_a_parameter_is_the_nodes(command: Command) -> None:
    node, name = command.words[:2]

    assert name in {"NAME", *bounds({"/nvila": NodeConfig, "/nvila_drive": DriveConfig}[node])}


@pytest.mark.parametrize("command", named("bag record"))
def test_a_recorded_topic_is_a_cameras_or_the_nodes(command: Command, robot: Robot) -> None:
    published = {name for name, _ in robot.node.get_publisher_names_and_types_by_node("nvila", "/")}

    assert set(command.words) <= published | CAMERA_TOPICS
