from __future__ import annotations

import itertools
from pathlib import Path

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("nvila_ros.msg")

from builtin_interfaces.msg import Time
from rosgraph_msgs.msg import Clock

from nvila_ros.msg import Event
from tests.ros.guard import LAMP_NODE, Guard
from tests.ros.robot import NodeProcess, running, wait_until


def test_clock_that_goes_back_ends_the_event() -> None:
    with running("-p", "use_sim_time:=true", command=LAMP_NODE) as (robot, camera):
        clock = robot.node.create_publisher(Clock, "/clock", 10)
        wait_until(lambda: clock.get_subscription_count() > 0, "the node follows the clock")
        guard = Guard(robot, camera)
        now_s = itertools.count(1000)
        ticks = robot.node.create_timer(0.05, lambda: clock.publish(Clock(clock=Time(sec=next(now_s)))))
        guard.add(stale_s=86400.0)
        guard.show(True)
        guard.wait_for(1)

        now_s = itertools.count(5)

        end = guard.wait_for(2)[1]
        assert (end.end_reason, end.event_id) == (Event.TIME_JUMP, guard.told()[0].event_id)
        robot.node.destroy_timer(ticks)


def test_open_event_ends_with_the_node() -> None:
    with running(command=LAMP_NODE) as (robot, camera):
        guard = Guard(robot, camera)
        guard.add()
        guard.show(True)
        guard.wait_for(1)

        assert robot.process.stop() == 0

        end = guard.wait_for(2)[1]
        assert (end.phase, end.end_reason) == (Event.END, Event.REMOVED)


def test_node_with_a_faulty_file_does_not_start_and_names_the_fault(tmp_path: Path) -> None:
    path = tmp_path / "standing.yaml"
    path.write_text("- {name: lamp, question: Is it on, trigger: up}")

    process = NodeProcess("-p", f"standing_queries:={path}", command=LAMP_NODE)

    assert process.wait() == 2
    assert "query 1 (lamp): trigger must be one of" in process.log
