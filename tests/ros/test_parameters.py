"""Parameters as robots give them: files that nodes share, and QoS by overrides."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("nvila_ros.msg")

from rclpy.qos import QoSDurabilityPolicy, QoSReliabilityPolicy

from nvila_ros.msg import Answer
from tests.ros.robot import FAKE_NODE, NodeProcess, Robot, running

SHARED = """
/**:
  ros__parameters:
    use_sim_time: false
    robot_radius: 0.3
    planner: {tolerance: 0.1}
    num_frames: 3
"""


def test_foreign_names_of_a_shared_file_are_named_and_ignored(tmp_path: Path) -> None:
    path = tmp_path / "shared.yaml"
    path.write_text(SHARED)

    with running("--params-file", str(path), "-p", "window_s:=9.0") as (robot, camera):
        robot.show(camera, 1, 2, 3, 4)

        assert robot.ask().num_frames == 3
        for name in ("robot_radius", "planner.tolerance"):
            robot.process.wait_for_log(f"unknown parameter '{name}'")
        assert "unknown parameter 'num_frames'" not in robot.process.log


def test_an_override_sets_the_qos_of_images_and_answers() -> None:
    overrides = {
        "/image.subscription.reliability": "reliable",
        "/image.subscription.depth": 9,
        "/nvila/answer.publisher.durability": "transient_local",
        "/nvila/answer.publisher.depth": 3,
    }
    words = [word for name, value in overrides.items() for word in ("-p", f"qos_overrides.{name}:={value}")]

    with Robot(*words, "-p", "qos_overrides./nowhere.subscription.depth:=5") as robot:
        (images,) = robot.node.get_subscriptions_info_by_topic("/image")
        (answers,) = robot.node.get_publishers_info_by_topic("/nvila/answer")

        assert images.qos_profile.reliability == QoSReliabilityPolicy.RELIABLE
        assert answers.qos_profile.durability == QoSDurabilityPolicy.TRANSIENT_LOCAL
        robot.process.wait_for_log("qos_overrides./nowhere.subscription.depth is ignored; taken are")
        assert robot.ask().finish_reason == Answer.NO_FRAMES


@pytest.mark.parametrize(("policy", "value"), [("reliability", "sometimes"), ("reliability", "7"), ("depth", "many")])
def test_an_override_that_is_no_policy_ends_the_node_with_its_name(policy: str, value: str) -> None:
    node = NodeProcess("-p", f"qos_overrides./image.subscription.{policy}:={value}", command=FAKE_NODE)

    assert node.wait() == 2
    assert "Traceback" not in node.log
    assert f"qos_overrides./image.subscription.{policy} must be" in node.log
