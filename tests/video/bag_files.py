"""Writes real bags for tests: what a robot's recorder would leave behind, by the library's own writer."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

ANSWER_TYPE = "nvila_ros/msg/Answer"
TYPES = get_typestore(Stores.LATEST)
TYPES.register(get_types_from_msg(Path(__file__).parents[2].joinpath("msg/Answer.msg").read_text(), ANSWER_TYPE))
T0_NS = 1_700_000_000_000_000_000
LAG_NS = 5_000_000
"""From capture to the bag."""


@dataclass(frozen=True)
class Written:
    """A message: its topic, type, when the bag got it, and itself."""

    topic: str
    logged_ns: int
    message: Any


def gray_image(value: int) -> np.ndarray:
    """Return a picture whose brightness tells which it is."""
    return np.full((24, 32, 3), value, np.uint8)


def header(stamp_ns: int, frame_id: str = "optical") -> Any:
    time = TYPES.types["builtin_interfaces/msg/Time"](sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return TYPES.types["std_msgs/msg/Header"](stamp=time, frame_id=frame_id)


def image(rgb: np.ndarray, stamp_ns: int, encoding: str = "rgb8", topic: str = "/camera") -> Written:
    """Return an uncompressed image, its pixels as they are given."""
    height, width = rgb.shape[:2]
    message = TYPES.types["sensor_msgs/msg/Image"](
        header=header(stamp_ns),
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=0,
        step=rgb[0].nbytes,
        data=np.ascontiguousarray(rgb).reshape(-1).view(np.uint8),
    )
    return Written(topic, stamp_ns + LAG_NS, message)


def compressed(rgb: np.ndarray, stamp_ns: int, topic: str = "/camera/compressed") -> Written:
    """Return a PNG, as image_transport sends it."""
    _, data = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    kind = TYPES.types["sensor_msgs/msg/CompressedImage"]
    message = kind(header=header(stamp_ns), format="rgb8; png compressed bgr8", data=data.reshape(-1))
    return Written(topic, stamp_ns + LAG_NS, message)


def text(said: str, stamp_ns: int) -> Written:
    """Return a message that is no image."""
    return Written("/chatter", stamp_ns, TYPES.types["std_msgs/msg/String"](data=said))


def answer(question: str, said: str, stamps_ns: Sequence[int], **fields: Any) -> Written:
    """Return an answer of the node about frames with these captures."""
    kind = TYPES.types[ANSWER_TYPE]
    empty = {
        "str": "",
        "int": 0,
        "float": 0.0,
        "list": [],
        "np": np.empty(0, np.float32),
        "std_msgs__msg__Header": None,
    }
    plain = [each for each in dataclasses.fields(kind) if "ClassVar" not in str(each.type)]
    values = {each.name: empty[re.split(r"[.\[]", str(each.type))[0]] for each in plain}
    time = TYPES.types["builtin_interfaces/msg/Time"]
    stamps = [time(sec=each // 10**9, nanosec=each % 10**9) for each in stamps_ns]
    values |= {"question": question, "text": said, "finish_reason": 1, "stamps": stamps, "header": header(0)}
    values |= {"num_frames": len(stamps), "cameras": ["camera"] * len(stamps), "model": "nvila-tiny"}
    return Written("/nvila_ros/answer", max(stamps_ns, default=T0_NS) + 10 * LAG_NS, kind(**values | fields))


def film(num_frames: int = 10, period_s: float = 0.5, topic: str = "/camera") -> list[Written]:
    """Return frames of which number k has brightness 10 k."""
    return [image(gray_image(10 * k), T0_NS + round(k * period_s * 1e9), topic=topic) for k in range(num_frames)]


def write_bag(folder: Path, messages: Sequence[Written], plugin: StoragePlugin = StoragePlugin.MCAP) -> Path:
    """Write a bag as `ros2 bag record` does and return its folder."""
    with Writer(folder, version=9, storage_plugin=plugin) as writer:
        connections: dict[str, Any] = {}
        for each in messages:
            kind = each.message.__msgtype__
            if each.topic not in connections:
                connections[each.topic] = writer.add_connection(each.topic, kind, typestore=TYPES)
            writer.write(connections[each.topic], each.logged_ns, TYPES.serialize_cdr(each.message, kind))
    return folder


def write_mcap(folder: Path, messages: Sequence[Written]) -> Path:
    """Write a bag and return its one mcap file."""
    return next(write_bag(folder, messages).glob("*.mcap"))
