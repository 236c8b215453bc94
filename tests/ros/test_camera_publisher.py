"""The camera node in its own process: what it publishes is what its stamps say, and it ends when it is told to."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("nvila_ros.msg")

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import Image

from nvila_ros.ros.camera_publisher import image_message, ros_args
from nvila_ros.world.frame_source import FrameSource, VideoSource, WorldSource, film_world

pytestmark = pytest.mark.ros
ROOT = Path(__file__).parents[2]
WAIT_S = 30.0


@contextlib.contextmanager
def camera(*argv: str) -> Iterator[subprocess.Popen[str]]:
    """A camera as a child process, killed if it is still there at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", *argv], cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def executor() -> Iterator[SingleThreadedExecutor]:
    rclpy.init()
    node = rclpy.create_node("looks_at_images")
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    yield executor
    executor.shutdown()
    node.destroy_node()
    rclpy.try_shutdown()


def take(executor: SingleThreadedExecutor, topic: str, count: int, reliability: str = "BEST_EFFORT") -> list[Image]:
    """Take so many images from a topic."""
    (node,) = executor.get_nodes()
    images: list[Image] = []
    qos = QoSProfile(depth=5, reliability=QoSReliabilityPolicy[reliability])
    subscription = node.create_subscription(Image, topic, images.append, qos)
    end_s = time.monotonic() + WAIT_S
    while len(images) < count and time.monotonic() < end_s:
        executor.spin_once(timeout_sec=0.05)
    node.destroy_subscription(subscription)
    assert len(images) >= count, f"only {len(images)} images came"
    return images


def assert_seen(images: list[Image], source: FrameSource) -> None:
    """Hold images against what their stamps say."""
    for image in images:
        stamp_ns = image.header.stamp.sec * 10**9 + image.header.stamp.nanosec
        pixels = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)
        assert np.array_equal(pixels, source.frame_at(stamp_ns))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_world_is_what_the_stamps_say(executor: SingleThreadedExecutor, number: signal.Signals) -> None:
    topic = f"/{number.name.lower()}/image"
    verb = ("nvila_ros.tools.cli", "camera", "--world", "5", "--size", "160x120", "--rate", "50", "--topic", topic)
    start_ns = time.time_ns()
    with camera(*verb) as process:
        images = take(executor, topic, 10)
        now_ns = time.time_ns()
        process.send_signal(number)
        assert process.wait(WAIT_S) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()

    assert_seen(images, WorldSource(5, 160, 120))
    (first, last) = (images[0].header.stamp.sec, images[-1].header.stamp.sec)
    assert start_ns // 10**9 <= first <= last <= now_ns // 10**9 + 1
    assert (images[0].encoding, images[0].step, images[0].header.frame_id) == ("rgb8", 480, "camera")


def test_video_is_played_from_its_epoch(executor: SingleThreadedExecutor, tmp_path: Path) -> None:
    path = tmp_path / "it's a film \N{VIDEO CAMERA}.mp4"
    film_world(path, 1, 64, 48, fps=20)
    epoch_ns = time.time_ns()
    values = {"video": str(path), "epoch_ns": epoch_ns, "reliability": "reliable"}
    with camera("nvila_ros.ros.camera_publisher", *ros_args(values), "-r", "image:=/film"):
        images = take(executor, "/film", 10, "RELIABLE")

    assert_seen(images, VideoSource(path, epoch_ns=epoch_ns))


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("nvila_ros.tools.cli", "camera", "--video", "/nowhere.mp4"), "no video file at '/nowhere.mp4'"),
        (("nvila_ros.tools.cli", "camera", "--video", "\udce9.mp4"), "video must be UTF-8, as ROS parameters are, got"),
        (("nvila_ros.tools.cli", "camera", "--rate", "0"), "rate_hz"),
        (("nvila_ros.tools.cli", "camera", "--size", "640x100"), "must lie in [0.5, 3]"),
        (
            ("nvila_ros.ros.camera_publisher", "--ros-args", "-p", "worlds:=3", "-p", "strict_parameters:=true"),
            "unknown parameter 'worlds'; did you mean",
        ),
        (("nvila_ros.ros.camera_publisher", "--ros-args", "-p", "reliability:=great"), "must be one of"),
    ],
)
def test_bad_parameter_is_told_in_one_line(argv: tuple[str, ...], told: str) -> None:
    with camera(*argv) as process:
        _, error = process.communicate(timeout=WAIT_S)

    lines = [line for line in error.splitlines() if "error: " in line]
    assert process.returncode == 2
    assert len(lines) == 1
    assert told in lines[0]
    assert "Traceback" not in error


def test_large_message_is_made_without_a_look_at_each_byte() -> None:
    image = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), np.uint8)

    calls: list[str] = []
    sys.setprofile(lambda frame, event, _: calls.append(event))
    try:
        message = image_message(image[:, ::-1])
    finally:
        sys.setprofile(None)

    assert np.array_equal(np.frombuffer(message.data, np.uint8).reshape(image.shape), image[:, ::-1])
    assert len(calls) < 1000  # a look at each byte would be 2,764,800
