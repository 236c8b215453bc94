"""What people should know of the answers is told once: in the log, and in the status that late subscribers get too."""

from __future__ import annotations

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("nvila_ros.msg")

from nvila_ros.msg import Status
from tests.ros.robot import running, wait_until
from tests.tiny import UNLIKE


def test_remark_is_told_once_in_log_and_status() -> None:
    with running() as (robot, camera):
        robot.show(camera, 1)
        assert robot.statuses[-1].text != UNLIKE
        robot.ask(UNLIKE)
        wait_until(lambda: robot.statuses[-1].text == UNLIKE, "the status has it")
        robot.ask(UNLIKE)
        robot.fresh_diagnostics()
        robot.fresh_diagnostics()

        assert (robot.statuses[-1].state, robot.statuses[-1].model) == (Status.READY, "fake")
        assert [status.text for status in robot.statuses].count(UNLIKE) == 1
        assert robot.process.log.count(UNLIKE) == 1
