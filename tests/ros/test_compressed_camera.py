"""Compressed images on the real middleware: found where image_transport puts them, answered about, refused by name."""

from __future__ import annotations

import array
import time

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("nvila_ros.msg")

from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import CompressedImage

from nvila_ros.errors import FrameError
from nvila_ros.msg import Answer
from nvila_ros.ros import messages
from tests.ros.robot import NS_PER_S, PACE_S, Robot, wait_until

COMPRESSED = ("-p", "image_transport:=compressed", "-p", "image_reliability:=reliable")


def jpeg(stamp_s: float, text: str = "rgb8; jpeg compressed bgr8", data: bytes | None = None) -> CompressedImage:
    pixels = np.full((24, 32, 3), (40, 30, 200), np.uint8)  # red, as BGR
    message = CompressedImage(format=text)
    message.data = array.array("B", data if data is not None else cv2.imencode(".jpg", pixels)[1].tobytes())
    message.header.frame_id = "optical"
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(round(stamp_s * NS_PER_S), NS_PER_S)
    return message


def publisher(robot: Robot, topic: str) -> Publisher:
    """Return a publisher that the node listens to, and that it knows."""
    reliable = QoSProfile(depth=5, reliability=QoSReliabilityPolicy.RELIABLE)
    images = robot.node.create_publisher(CompressedImage, topic, reliable)
    wait_until(lambda: images.get_subscription_count() == 1, f"the node subscribes to {topic}")
    robot.fresh_diagnostics()
    robot.fresh_diagnostics()
    return images


def test_message_becomes_a_frame_that_shares_its_bytes_and_decodes_to_rgb() -> None:
    message = jpeg(3.5)

    frame = messages.compressed_frame(message, "front", now_ns=9)

    assert (frame.stamp_ns, frame.camera, frame.frame_id) == (3_500_000_000, "front", "optical")
    assert (frame.image.width, frame.image.height, frame.num_bytes) == (32, 24, len(message.data))
    assert np.shares_memory(frame.image.data, np.frombuffer(message.data, np.uint8))
    decoded = messages.decode_frame(frame)
    assert (decoded.stamp_ns, decoded.camera, decoded.frame_id) == (frame.stamp_ns, "front", "optical")
    np.testing.assert_allclose(decoded.image.reshape(-1, 3).mean(axis=0), (200, 30, 40), atol=4)
    assert messages.compressed_frame(jpeg(0), "front", now_ns=9).stamp_ns == 9
    with pytest.raises(FrameError, match="end marker is missing"):
        messages.compressed_frame(jpeg(1, data=bytes(message.data)[:-2]), "front", now_ns=9)


def test_compressed_images_are_kept_as_they_came_and_answered_about() -> None:
    with Robot(*COMPRESSED, "-r", "image:=/front/image_raw") as robot:
        images = publisher(robot, "/front/image_raw/compressed")
        num_bytes = 0
        for stamp in (1.0, 1.5, 2.0):
            images.publish(jpeg(stamp))
            num_bytes += len(jpeg(stamp).data)
            time.sleep(PACE_S)
        wait_until(lambda: robot.num_buffered() == 3, "the frames are buffered")

        answer = robot.ask(num_frames=8)

        assert answer.finish_reason == Answer.STOP
        assert [stamp.sec + stamp.nanosec / NS_PER_S for stamp in answer.stamps] == [1.0, 1.5, 2.0]
        assert answer.header.frame_id == "optical"
        assert robot.fresh_diagnostics()["buffer_bytes"] == str(num_bytes)


def test_what_is_no_picture_is_reported_and_the_node_goes_on() -> None:
    with Robot(*COMPRESSED, "-p", "cameras:=[front, rear]") as robot:
        images = publisher(robot, "front/image/compressed")
        images.publish(jpeg(1, "16UC1; compressedDepth png"))
        robot.process.wait_for_log(
            "image dropped: format '16UC1; compressedDepth png' must be of a picture in colour or mono, got depth"
        )
        images.publish(jpeg(2))
        wait_until(lambda: robot.num_buffered() == 1, "the frame is buffered")

        assert robot.ask(cameras=["front"]).finish_reason == Answer.STOP
        assert robot.fresh_diagnostics()["frames_malformed"] == "1"
        publisher(robot, "rear/image/compressed")


def test_question_is_answered_without_a_picture_that_is_damaged_inside() -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    whole = cv2.imencode(".jpg", cv2.resize(coarse, (256, 192), interpolation=cv2.INTER_CUBIC))[1].tobytes()
    half = whole[: len(whole) // 2] + b"\xff\xd9"  # its end is there, its lower pixels are not
    with Robot(*COMPRESSED, "-p", "num_frames:=8", "-p", "window_s:=100.0") as robot:
        images = publisher(robot, "image/compressed")
        for k in range(4):
            images.publish(jpeg(10 + k, "", half if k in (1, 3) else whole))
            time.sleep(PACE_S)
        wait_until(lambda: robot.fresh_diagnostics()["frames_received"] == "4", "all frames came")

        for _ in range(2):
            answer = robot.ask()
            assert answer.finish_reason == Answer.STOP
            assert [stamp.sec for stamp in answer.stamps] == [10, 12]
        assert robot.fresh_diagnostics()["frames_dropped_damaged"] == "2"


def test_frames_of_the_past_are_thinned_and_counted() -> None:
    arguments = ("-p", "buffer_s:=0.5", "-p", "past_s:=20.0", "-p", "past_hz:=0.5")
    with Robot(*COMPRESSED, *arguments) as robot:
        images = publisher(robot, "image/compressed")
        for i in range(21):
            images.publish(jpeg(10 + i / 4))
            time.sleep(PACE_S)
        wait_until(lambda: robot.fresh_diagnostics()["frames_received"] == "21", "all frames came")

        answer = robot.ask(num_frames=100, window_s=100.0)

        stamps = [stamp.sec + stamp.nanosec / NS_PER_S for stamp in answer.stamps]
        assert stamps == [10, 12, 14, 14.5, 14.75, 15]
        assert robot.fresh_diagnostics()["frames_dropped_thinned"] == "15"
