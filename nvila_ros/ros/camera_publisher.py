"""`nvila_camera`: a ROS node that publishes the synthetic world or a video file as a camera.

It publishes sensor_msgs/Image (rgb8) on `image`. The stamp is the ROS clock at capture, and what is seen follows from
the stamp alone by the rule in `world/frame_source.py`, so that whoever gets an answer can check whether it is true.
"""

from __future__ import annotations

import array
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import Image

from nvila_ros.config import check_fields, setting
from nvila_ros.errors import ConfigError
from nvila_ros.ros.parameters import declare_parameters
from nvila_ros.ros.spinning_node import run_node
from nvila_ros.world.frame_source import FrameSource, VideoSource, WorldSource

IMAGE_DEPTH = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraConfig:
    """The camera's parameters.

    Raises:
        ConfigError: a value outside its range or choices.
    """

    video: str = setting("", "video file to play in a loop; empty: the synthetic world")
    world: int = setting(0, "seed of the synthetic world", low=0, high=(1 << 31) - 1)
    width: int = setting(640, "width of the synthetic world", "px", low=16, high=7680)
    height: int = setting(480, "height of the synthetic world", "px", low=16, high=4320)
    rate_hz: float = setting(30.0, "frames a second of the synthetic world", "Hz", low=0.1, high=240.0)
    reliability: str = setting("best_effort", "QoS reliability of the images", choices=("best_effort", "reliable"))
    epoch_ns: int = setting(0, "stamp at which world or video begin", "ns", low=0, high=(1 << 63) - 1)
    frame_id: str = setting("camera", "tf frame in the images' headers")
    strict_parameters: bool = setting(False, "end the camera at a parameter that it does not know; false: warn")

    def __post_init__(self) -> None:
        """Check every field against its bound."""
        check_fields(self)


class CameraNode(Node):
    """Publishes one source at its rate.

    Attributes:
        num_published: frames so far.

    Raises:
        ConfigError: a parameter is unknown or breaks its rule.
        FrameError: the video file cannot be read.
        rclpy.exceptions.ParameterException: a parameter has the wrong type or lies outside its range.
    """

    def __init__(self) -> None:
        super().__init__("nvila_camera", automatically_declare_parameters_from_overrides=True)
        self.config: CameraConfig = declare_parameters(self, CameraConfig)
        self.num_published = 0
        self._source, rate_hz = open_source(self.config)
        qos = QoSProfile(depth=IMAGE_DEPTH, reliability=QoSReliabilityPolicy[self.config.reliability.upper()])
        self._images = self.create_publisher(Image, "image", qos)
        self.create_timer(1 / rate_hz, self._capture)
        what = self.config.video or f"world {self.config.world} {self.config.width}x{self.config.height}"
        self.get_logger().info(f"publishing {what} rate_hz={rate_hz:g} topic={self._images.topic_name}")

    def _capture(self) -> None:
        now = self.get_clock().now()
        message = image_message(self._source.frame_at(now.nanoseconds))
        message.header.stamp = now.to_msg()
        message.header.frame_id = self.config.frame_id
        self._images.publish(message)
        self.num_published += 1


def open_source(config: CameraConfig) -> tuple[FrameSource, float]:
    """Return what the camera sees, and its frames a second."""
    if config.video:
        video = VideoSource(Path(config.video).expanduser(), epoch_ns=config.epoch_ns)
        return video, video.fps
    return WorldSource(config.world, config.width, config.height, epoch_ns=config.epoch_ns), config.rate_hz


def image_message(image: np.ndarray) -> Image:
    """Return an (H, W, 3) uint8 RGB image as a message without stamp."""
    height, width, _ = image.shape
    message = Image(height=height, width=width, encoding="rgb8", step=3 * width)
    # Assigning an ndarray or bytes would be checked element by element: 0.7 s for a 1920x1080 frame.
    data = array.array("B")
    data.frombytes(np.ascontiguousarray(image).data.cast("B"))
    message.data = data
    return message


def main(args: list[str] | None = None) -> int:
    """Run the camera until SIGINT or SIGTERM.

    Returns:
        0 after a signal, 2 if a parameter or the video file is not acceptable.
    """
    cv2.setNumThreads(1)  # its share of a small robot is one core, and less
    summary = "Publishes the synthetic world or a video file as a camera."
    return run_node(args, "nvila_camera", summary, CameraConfig, CameraNode, _end)


def _end(node: CameraNode, executor: SingleThreadedExecutor) -> None:
    node.get_logger().info(f"published {node.num_published} frames")


def ros_args(values: dict[str, Any]) -> list[str]:
    """Return parameters as a command line for a node; JSON is the YAML that ROS reads there.

    Raises:
        ConfigError: a text is not UTF-8, which ROS cannot carry.
    """
    for name, value in values.items():
        if isinstance(value, str) and not value.isascii() and value != value.encode(errors="replace").decode():
            raise ConfigError(f"{name} must be UTF-8, as ROS parameters are, got {value!r}; rename the file")
    return [
        "--ros-args",
        # YAML knows no surrogates, by which JSON would escape an emoji.
        *(word for key, value in values.items() for word in ("-p", f"{key}:={json.dumps(value, ensure_ascii=False)}")),
    ]


if __name__ == "__main__":
    sys.exit(main())
