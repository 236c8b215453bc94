"""Answers drawn on the frames that they are about, for those who look."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("nvila_ros.msg")

from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

from nvila_ros.ros.annotated import image_annotations
from nvila_ros.ros.messages import stamp_from_ns
from tests.ros.robot import Camera, Robot, running, wait_until


@pytest.fixture(scope="module")
def robot() -> Iterator[tuple[Robot, Camera]]:
    with running() as (robot, camera):
        robot.show(camera, 1)
        yield robot, camera


def test_an_answer_is_drawn_on_its_frame_with_its_stamp(robot: tuple[Robot, Camera]) -> None:
    node, _ = robot
    pictures: list[CompressedImage] = []
    assert node.ask("nobody looks").finish_reason_name == "STOP"
    node.node.create_subscription(CompressedImage, "/nvila/annotated", pictures.append, 10)
    wait_until(lambda: node.node.count_publishers("/nvila/annotated") == 1, "the topic is there")
    node.fresh_diagnostics()

    answer = node.ask("what is there")

    wait_until(lambda: bool(pictures), "a picture comes")
    assert [picture.header for picture in pictures] == [answer.header]
    image = cv2.imdecode(np.frombuffer(pictures[-1].data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None


def test_foxglove_gets_the_same_words_with_the_same_stamp() -> None:
    """The package is not here: its constructors are stood in for by plain records."""
    foxglove: Any = SimpleNamespace(
        **dict.fromkeys(("Color", "ImageAnnotations", "Point2", "TextAnnotation"), SimpleNamespace)
    )
    header = Header(stamp=stamp_from_ns(12_345_678_901))

    texts = image_annotations(foxglove, header, ["Is there a star?", "yes (0.97)"]).texts

    assert [text.text for text in texts] == ["Is there a star?", "yes (0.97)"]
    assert all(text.timestamp == header.stamp for text in texts)
    assert texts[0].position.y < texts[1].position.y
