from __future__ import annotations

import array
import time
from typing import Any

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("nvila_ros.msg")

from rclpy.qos import qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image

try:
    from rclpy.event_handler import PublisherEventCallbacks
except ModuleNotFoundError:  # before ROS 2 Iron
    from rclpy.qos_event import PublisherEventCallbacks

from nvila_ros.msg import Answer
from tests.ros.robot import PACE_S, Robot, running, wait_until

BROKEN: list[dict[str, Any]] = [
    {"data": array.array("B", bytes(143))},
    {"width": 0},
    {"step": 23},
    {"encoding": "32FC1"},
]


def test_broken_images_are_reported_and_the_node_goes_on() -> None:
    with running() as (robot, camera):
        for fields in BROKEN:
            camera.show(1, **fields)
            time.sleep(PACE_S)
        robot.process.wait_for_log("image dropped: data of 8x6 rgb8 with step 24 must have 144 bytes, got 143")
        robot.show(camera, 2)

        assert robot.ask().finish_reason == Answer.STOP
        assert robot.fresh_diagnostics()["frames_malformed"] == str(len(BROKEN))


def test_camera_whose_every_image_is_refused_is_told_in_the_diagnostics() -> None:
    with running() as (robot, camera):

        def is_told() -> bool:
            camera.show(1, encoding="32FC1")
            message = robot.diagnostics[-1]["message"]
            return "every image is refused" in message and "32FC1" in message

        wait_until(is_told, "the node says that it is blind")
        robot.show(camera, 2)
        wait_until(lambda: robot.fresh_diagnostics()["message"] == "ok", "the camera is seen")


def test_stamps_that_go_back_start_the_window_anew() -> None:
    with running("-p", "num_frames:=8", "-p", "window_s:=100.0") as (robot, camera):
        robot.show(camera, 50, 51, 52)
        camera.show(10)
        camera.show(11)
        robot.process.wait_for_log("stamps went back by 42.000 s")
        wait_until(lambda: robot.num_buffered() == 2, "the older frames are gone")

        assert [stamp.sec for stamp in robot.ask().stamps] == [10, 11]
        assert robot.fresh_diagnostics()["frames_dropped_time_jump"] == "3"


def test_single_stamp_far_ahead_voids_nothing_and_all_of_them_count() -> None:
    with running("-p", "num_frames:=8", "-p", "window_s:=100.0") as (robot, camera):
        now_s = time.time()
        robot.show(camera, now_s, now_s + 0.1)
        camera.show(now_s + 3600)
        robot.process.wait_for_log("ahead of the clock; let the clocks agree")
        robot.show(camera, now_s + 0.2)
        assert robot.ask().num_frames == 3
        camera.show(now_s + 3600)
        time.sleep(PACE_S)
        camera.show(now_s + 3600.1)
        wait_until(lambda: robot.num_buffered() == 1, "the clock of the camera counts")

        assert robot.fresh_diagnostics()["frames_malformed"] == "2"


def test_answer_about_a_camera_that_stalled_is_refused_where_the_node_is_told_to() -> None:
    with running("-p", "max_age_s:=40.0", "-p", "buffer_s:=100.0") as (robot, camera):
        robot.show(camera, time.time() - 60)

        stale = robot.ask()
        assert (stale.finish_reason, "camera has stalled" in stale.error) == (Answer.NO_FRAMES, True)
        robot.show(camera, time.time())
        assert robot.ask().finish_reason == Answer.STOP


def test_faults_of_different_kinds_do_not_hide_each_other() -> None:
    with running() as (robot, camera):
        for encoding in ("32FC1", "8UC7", "32FC1"):
            camera.show(1, encoding=encoding)
            time.sleep(PACE_S)

        for encoding in ("32FC1", "8UC7"):
            robot.process.wait_for_log(f"'{encoding}'")
            assert robot.process.log.count(f"'{encoding}'") == 1


def test_camera_that_nobody_started_is_told() -> None:
    with Robot("-p", "cameras:=[front, rear]") as robot:
        robot.camera("front/image")

        robot.process.wait_for_log("camera=rear topic=/rear/image: nobody publishes there")
        assert "rear" in robot.fresh_diagnostics()["message"]


def test_images_without_stamps_are_taken_at_arrival_with_one_warning() -> None:
    with running() as (robot, camera):
        before = time.time()
        camera.show(0)
        wait_until(lambda: robot.num_buffered() == 1, "the frame is buffered")
        camera.show(0)

        answer = robot.ask()
        now = time.time()
        assert before - 1 < answer.header.stamp.sec < now + 1
        assert -1 < answer.age_s < now - before + 1
        assert robot.process.log.count("sends no stamps") == 1


def test_several_cameras_have_a_topic_each() -> None:
    with Robot("-p", "cameras:=[front, rear]") as robot:
        front, rear = robot.camera("front/image"), robot.camera("rear/image", reliable=False)
        robot.show(front, 1)
        robot.show(rear, 1.5)

        assert list(robot.ask().cameras) == ["front", "rear"]
        assert list(robot.ask(cameras=["rear"]).cameras) == ["rear"]
        refused = robot.ask(num_frames=1)
        assert (refused.finish_reason, "one per camera" in refused.error) == (Answer.INVALID, True)


def test_sim_time_that_jumps_back_clears_the_buffer() -> None:
    with running("-p", "use_sim_time:=true") as (robot, camera):
        clock = robot.node.create_publisher(Clock, "/clock", 10)
        tell_time(robot, clock, 100)
        robot.show(camera, 99)
        assert robot.ask().age_s == pytest.approx(1.0)

        tell_time(robot, clock, 5)

        robot.process.wait_for_log("the clock went back")
        assert robot.ask().finish_reason == Answer.NO_FRAMES


def tell_time(robot: Robot, clock: Any, second: int) -> None:
    """Publish a time until the node has it: it may not know a new publisher yet when the first message is sent."""
    message = Clock()
    message.clock.sec = second

    def has_come() -> bool:
        clock.publish(message)
        return bool(robot.diagnostics) and robot.diagnostics[-1]["stamp_s"] == str(second)

    wait_until(has_come, f"the node's clock shows {second} s")


def test_publisher_that_is_silent_is_reported_with_the_fix() -> None:
    with running() as (robot, _):
        robot.process.wait_for_log("a publisher is there, but no image came")

        assert "config/fastdds_shm.xml" in robot.process.log
        assert "FASTDDS_DEFAULT_PROFILES_FILE" in robot.fresh_diagnostics()["message"]


def test_best_effort_camera_and_reliable_node_are_reported_as_a_mismatch() -> None:
    with Robot("-p", "image_reliability:=reliable") as robot:
        # `robot.camera` would wait in vain; rclpy's own report of the mismatch uses a deprecated logger.
        silent = PublisherEventCallbacks(use_default_callbacks=False)
        robot.node.create_publisher(Image, "image", qos_profile_sensor_data, event_callbacks=silent)

        robot.process.wait_for_log("quality of service does not match")


def test_every_drop_is_counted() -> None:
    with running("-p", "buffer_s:=2.0", "-p", "past_s:=0.0", "-p", "buffer_bytes:=500") as (robot, camera):
        for stamp in (10.0, 10.1, 10.2, 10.3, 10.3, 12.25):
            camera.show(stamp)
            time.sleep(PACE_S)
        wait_until(lambda: robot.fresh_diagnostics()["frames_received"] == "6", "all frames came")

        diagnosis = robot.fresh_diagnostics()
        reasons = ("aged", "bytes", "repeated", "too_large", "time_jump")
        dropped = {reason: int(diagnosis[f"frames_dropped_{reason}"]) for reason in reasons}
        assert dropped == {"aged": 2, "bytes": 1, "repeated": 1, "too_large": 0, "time_jump": 0}
        assert (diagnosis["frames_buffered"], diagnosis["buffer_bytes"]) == ("2", "288")


def test_a_thousand_frames_with_questions_between() -> None:
    with running("-p", "buffer_s:=1.0", "-p", "past_s:=0.0", "-p", "num_frames:=8") as (robot, camera):
        newest = []
        for i in range(1000):
            camera.show(100 + i / 30)
            time.sleep(0.005)
            if i % 100 == 99:
                answer = robot.ask()
                assert answer.finish_reason == Answer.STOP
                newest.append(answer.header.stamp.sec * 10**9 + answer.header.stamp.nanosec)

        assert newest == sorted(newest)
        assert robot.num_buffered() <= 31
