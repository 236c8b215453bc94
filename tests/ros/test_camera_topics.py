"""Each camera is read from the topic that its driver publishes on."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("nvila_ros.msg")

from nvila_ros.config import NodeConfig
from nvila_ros.errors import ConfigError
from nvila_ros.msg import Answer
from tests.ros.robot import FAKE_NODE, NodeProcess, Robot

REALSENSE, USB_CAM = "/camera/camera/color/image_raw", "/image_raw"
RELIABLE = ("-p", "image_reliability:=reliable")


def test_topics_of_two_drivers_are_read_as_they_are() -> None:
    topics = f"camera_topics:=['{REALSENSE}', '{USB_CAM}']"
    with Robot(*RELIABLE, "-p", "cameras:=['front', 'rear']", "-p", topics) as robot:
        front, rear = robot.camera(REALSENSE), robot.camera(USB_CAM)
        robot.show(front, 1)
        robot.show(rear, 2)

        answer = robot.ask(num_frames=2)

        assert (answer.finish_reason, list(answer.cameras)) == (Answer.STOP, ["front", "rear"])


def test_an_empty_topic_is_that_of_the_cameras_name_and_remapping_goes_on() -> None:
    topics = ("-p", "cameras:=['front', 'rear']", "-p", "camera_topics:=['', 'back']", "-r", "front/image:=/eye")
    with Robot(*RELIABLE, *topics, "-r", "__ns:=/") as robot:
        robot.show(robot.camera("/eye"), 1)
        robot.show(robot.camera("/back"), 2)

        assert list(robot.ask(num_frames=2).cameras) == ["front", "rear"]


def test_a_topic_that_is_no_name_ends_the_node_with_the_name() -> None:
    node = NodeProcess("-p", "camera_topics:=['a b']", command=FAKE_NODE)

    assert node.wait() == 2
    assert re.search("error: .*a b", node.log)


@pytest.mark.parametrize("cameras", [("camera",), ("front", "rear")])
def test_without_topics_the_names_decide(cameras: tuple[str, ...]) -> None:
    config = NodeConfig(cameras=cameras)

    assert [config.camera_topic(name) for name in cameras] == {1: ["image"], 2: ["front/image", "rear/image"]}[
        len(cameras)
    ]


@pytest.mark.parametrize(
    ("cameras", "topics", "rule"),
    [
        (("a", "b"), ("/x",), "a topic for each of the 2 cameras"),
        (("a",), ("/x", "/y"), "a topic for each of the 1 cameras"),
        (("a", "b"), ("/x", "/x"), "must differ"),
        (("a",), (), "a topic for each"),
    ],
)
def test_topics_that_do_not_fit_the_cameras_are_refused(
    cameras: tuple[str, ...], topics: tuple[str, ...], rule: str
) -> None:
    with pytest.raises(ConfigError, match=rule):
        NodeConfig(cameras=cameras, camera_topics=topics)
