"""Pictures that come with a question, in place of the cameras' frames: by service, action, client and shell."""

from __future__ import annotations

import array
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("nvila_ros.msg")

import rclpy
from action_msgs.msg import GoalStatus
from sensor_msgs.msg import CompressedImage

from nvila_ros.client import NvilaClient
from nvila_ros.errors import QueryError
from nvila_ros.msg import Answer
from nvila_ros.standing.query import StandingQuery
from nvila_ros.types import Frame
from tests.ros.robot import ROOT, WAIT_S, Robot, result_of, running

RNG = np.random.default_rng(5)
PIXELS = RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)
JPEG = cv2.imencode(".jpg", PIXELS)[1].tobytes()


@pytest.fixture(scope="module")
def robot() -> Iterator[Robot]:
    """A node whose camera has shown one frame."""
    with running() as (robot, camera):
        robot.show(camera, 100)
        yield robot


def picture(stamp_s: int = 0, content: bytes = JPEG, text: str = "jpeg") -> CompressedImage:
    message = CompressedImage(format=text, data=array.array("B", content))
    message.header.stamp.sec, message.header.frame_id = stamp_s, "hand"
    return message


def told(answer: Answer) -> tuple[Any, ...]:
    return answer.finish_reason, [stamp.sec for stamp in answer.stamps], list(answer.cameras), answer.header.frame_id


def test_pictures_take_the_place_of_the_cameras_frames(robot: Robot) -> None:
    images = [picture(3), picture(3), picture(9)]
    goal = robot.send_goal("what is this", images=images)
    done = result_of(goal.get_result_async())

    for answer in (robot.ask("what is this", images=images), done.result.answer):
        assert told(answer) == (Answer.STOP, [3, 3, 9], ["images"] * 3, "hand"), answer.error
        assert answer.text == "what is this"
    assert done.status == GoalStatus.STATUS_SUCCEEDED


def test_a_picture_without_a_stamp_takes_the_time_of_the_request(robot: Robot) -> None:
    before_s = robot.node.get_clock().now().nanoseconds // 10**9

    answer = robot.ask("what is this", images=[picture(3), picture()])

    assert answer.stamps[0].sec == 3
    assert before_s <= answer.stamps[1].sec <= before_s + WAIT_S


def test_the_bound_of_all_bytes_is_a_parameter_and_a_request_up_to_it_arrives(robot: Robot) -> None:
    large = cv2.imencode(".png", RNG.integers(0, 256, (1500, 2000, 3), dtype=np.uint8))[1].tobytes()  # 9 MB of noise

    assert robot.ask("what is this", images=[picture(1, large, "png")]).finish_reason == Answer.STOP
    refused = robot.ask("what is this", images=[picture(1, large, "png")] * 2)
    assert refused.finish_reason == Answer.INVALID
    assert f"max_images_bytes = 16777216 bytes together, got {2 * len(large)}" in refused.error


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"images": [picture(1), picture(2, JPEG[: len(JPEG) // 2])]}, "images[1]: jpeg file of"),
        ({"images": [picture(1)], "num_frames": 1}, "so leave num_frames out, or the images"),
        ({"images": [picture(2), picture(1)]}, "images must be in capture order, oldest first"),
    ],
)
def test_what_breaks_a_rule_is_refused_by_name(robot: Robot, fields: dict[str, Any], message: str) -> None:
    answer = robot.ask("what is this", **fields)

    assert told(answer)[:3] == (Answer.INVALID, [], [])
    assert message in answer.error


@pytest.fixture
def client() -> Iterator[NvilaClient]:
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("caller", context=context)
    with NvilaClient(node, timeout_s=WAIT_S, discovery_s=WAIT_S) as client:
        yield client
    node.destroy_node()
    rclpy.shutdown(context=context)


def test_client_sends_files_pixels_frames_and_messages(robot: Robot, client: NvilaClient, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(JPEG)

    answer = client.ask("what is this", images=[picture(1), path, str(path), JPEG, PIXELS]).result()
    framed = client.ask("what is this", images=[Frame(image=PIXELS, stamp_ns=k * 10**9) for k in (0, 5)]).result()
    pieces = client.ask_video("one two", images=[PIXELS])

    assert answer.frames[0].stamp_ns == 10**9
    assert [frame.camera for frame in answer.frames] == ["images"] * 5
    assert [frame.stamp_ns for frame in framed.frames] == [1, 5 * 10**9]  # 0 would be no stamp
    assert "".join(pieces) == "one two"
    assert answer.query.images == ()  # an answer does not keep them


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (JPEG, "images must be a list of pictures"),
        (["/nowhere/a.jpg"], r"images\[0\]: /nowhere/a.jpg cannot be read: No such file"),
        ([JPEG, 7], r"images\[1\] must be a file by path or content, .* got 7"),
        ([PIXELS[..., :1]], r"images\[0\] must be .* got \(24, 32, 1\) of uint8"),
        ([JPEG] * 65, "images must be at most 64, got 65"),
    ],
)
def test_client_refuses_what_is_no_picture(robot: Robot, client: NvilaClient, images: Any, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        client.ask("what is this", images=images)


def test_standing_queries_take_no_pictures() -> None:
    with pytest.raises(TypeError, match="images"):
        StandingQuery(name="a", question="what is this", images=[JPEG])  # type: ignore[call-arg]


def test_shell_asks_about_files(robot: Robot, tmp_path: Path) -> None:
    path = tmp_path / "a,b.jpg"
    path.write_bytes(JPEG)
    call = [sys.executable, "-m", "nvila_ros.tools.cli", "call"]

    asked = subprocess.run(
        [*call, "ask", "what is this", "--image", path, "--image", path], cwd=ROOT, capture_output=True, text=True
    )
    standing = subprocess.run(
        [*call, "add-query", "a", "Is it?", "--set", f"images=[{tmp_path}]"], cwd=ROOT, capture_output=True, text=True
    )

    assert (asked.returncode, asked.stdout) == (0, "what is this\n"), asked.stderr
    assert "STOP, 2 frames of images" in asked.stderr
    assert standing.returncode == 2
    assert "unknown parameter 'images'" in standing.stderr
