"""Settings of all tests: profiles of hypothesis, and the ladder's markers applied where a folder needs ROS."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from hypothesis import settings

from nvila_ros.ros.domain import free_domain

settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile("ci", max_examples=200, derandomize=True, deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

# Before rclpy starts: nothing outside this machine, and no other run on it, may take part in a test.
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ["ROS_LOCALHOST_ONLY"] = "1"
os.environ["ROS_DOMAIN_ID"] = str(free_domain())
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
for name in ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"):
    os.environ.pop(name, None)

HAS_ROS = all(importlib.util.find_spec(name) for name in ("rclpy", "sensor_msgs"))


def pytest_configure(config: pytest.Config) -> None:
    """Let pass the one warning that ROS causes at import: its parser of interface files is older than Python's re."""
    config.addinivalue_line("filterwarnings", "ignore:module 'sre_:DeprecationWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in `tests/ros` as needing ROS, and skip what does where there is none."""
    for item in items:
        if Path(__file__).with_name("ros") in item.path.parents:
            item.add_marker(pytest.mark.ros)
        if item.get_closest_marker("ros") and not HAS_ROS:
            item.add_marker(pytest.mark.skip(reason="needs rclpy; install nvila_ros[ros] or source ROS 2"))
