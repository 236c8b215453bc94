"""Clocks that disagree are reported as that, and a frame of the future is never fresh."""

from __future__ import annotations

import math
import time

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("nvila_ros.msg")

from nvila_ros.msg import Answer
from tests.ros.robot import running, wait_until


def test_age_of_a_frame_ahead_of_the_clock_is_infinite_and_told() -> None:
    with running() as (robot, camera):
        robot.show(camera, time.time() + 9)
        answer = robot.ask()
        wait_until(lambda: "ahead of the node's clock" in robot.fresh_diagnostics()["message"], "it is told")

    assert (answer.finish_reason, answer.age_s) == (Answer.STOP, math.inf)
    assert "ahead of the node's clock" in answer.error


def test_question_about_the_present_of_a_camera_ahead_of_the_clock_is_refused() -> None:
    with running("-p", "max_age_s:=5.0") as (robot, camera):
        robot.show(camera, time.time() + 9)
        refused = robot.ask()

    assert refused.finish_reason == Answer.NO_FRAMES
    assert "clocks of camera and of this node disagree" in refused.error
