from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("nvila_ros.msg")

from nvila_ros.msg import Answer
from nvila_ros.ros import process
from tests.ros.robot import REAL_NODE, ROOT, NodeProcess, Robot, result_of, running, wait_until
from tests.tiny import DEADLY

TINY = ROOT / "checkpoints" / "nvila-tiny"
needs_tiny = pytest.mark.skipif(not (TINY / "config.json").is_file(), reason="no embedded checkpoint")
WARMED_UP = 1  # frame that the model was shown before the first question
SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_ends_an_idle_node(number: int) -> None:
    process = NodeProcess()
    process.wait_for_log("ready model=")

    assert process.stop(number) == 0, process.log


@pytest.mark.parametrize("numbers", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGINT] * 3], ids=str)
def test_signal_while_answering_still_answers_everyone(numbers: list[int]) -> None:
    """Launch without a terminal sends SIGINT a second time, 150 ms after the shell has sent the first."""
    with running("-p", "model:=fake:0.02") as (robot, camera):
        robot.show(camera, 1)
        asked = [robot.ask_later("word " * 500, max_tokens=500), robot.ask_later("waiting")]
        goal = robot.send_goal("a goal").get_result_async()
        wait_until(lambda: bool(robot.tokens), "the first answer is being told")
        wait_until(lambda: robot.fresh_diagnostics()["queue_depth"] == "2", "the others have come")

        for number in numbers[:-1]:
            robot.process.send(number)
            time.sleep(0.15)
        assert robot.process.stop(numbers[-1]) == 0, robot.process.log

        answers = [result_of(future).answer for future in asked] + [result_of(goal).result.answer]
        assert {answer.finish_reason for answer in answers} == {Answer.CANCELED}
        assert {answer.error for answer in answers} == {"the node is shutting down"}


def test_second_signal_much_later_ends_a_node_that_is_stuck() -> None:
    with running("-p", "model:=fake:30.0") as (robot, camera):
        robot.show(camera, 1)
        robot.ask_later("word " * 5)
        wait_until(lambda: robot.fresh_diagnostics()["queries_running"] == "1", "the model works")
        robot.process.send(signal.SIGINT)
        time.sleep(process.REPEATED_S + 0.5)

        assert robot.process.stop() == -signal.SIGINT


def test_death_of_the_worker_answers_everyone_and_ends_the_process_for_a_respawn() -> None:
    with running("-p", "model:=fake:0.02") as (robot, camera):
        robot.show(camera, 1)
        asked = [robot.ask_later("word " * 20), robot.ask_later(DEADLY), robot.ask_later("waiting")]

        assert robot.process.wait() == 1

        answers = [result_of(future).answer for future in asked]
        assert [answer.finish_reason for answer in answers] == [Answer.STOP, Answer.FAILED, Answer.FAILED]
        assert {answer.error.split(" (")[0] for answer in answers[1:]} == {"the worker thread has died"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-p", "buffer_s:=0.0"), "buffer_s must lie in [0.1, 3600] s, got 0.0"),
        (
            ("-p", "bufer_s:=1.0", "-p", "strict_parameters:=true"),
            "unknown parameter 'bufer_s'; did you mean one of ['buffer_s'",
        ),
        (("-p", "backend:=gpu"), "backend must be one of"),
        (("-p", "num_frames:=2.5"), "num_frames must be of type int, got 2.5"),
        (("-p", "cameras:=front"), "cameras must be a list of names, got 'front'"),
        (("-p", "cameras:=['no/']"), "a camera's name must be"),
        (("-p", "cameras:=[]"), "empty list"),
        (("--params-file", "/nowhere.yaml"), "ROS arguments are not acceptable"),
        (("-p", "model:=no-such-model"), "no-such-model"),
    ],
)
def test_bad_start_exits_2_with_one_clear_line(arguments: tuple[str, ...], message: str) -> None:
    process = NodeProcess(*arguments, command=REAL_NODE)

    assert process.wait() == 2
    (line,) = [line for line in process.log.splitlines() if line.startswith("nvila_node: error: ")]
    assert message in line
    assert "Traceback" not in process.log


@needs_tiny
def test_frames_encoded_ahead_are_those_of_the_next_question() -> None:
    several = (
        "-p",
        "model:=nvila-tiny-scale",
        "-p",
        "max_age_s:=0.0",
        "-p",
        "encode_hz:=50.0",
        "-p",
        "cameras:=[front, rear]",
    )
    with Robot(*several, command=REAL_NODE) as robot:
        cameras = [robot.camera("front/image"), robot.camera("rear/image")]
        for camera in cameras:
            robot.show(camera, 1)
        wait_until(lambda: int(robot.fresh_diagnostics()["frames_encoded"]) == 2 + WARMED_UP, "both are encoded")

        assert robot.ask("What color is it?", max_tokens=2).num_frames_encoded == 0


@needs_tiny
def test_truncated_checkpoint_exits_2_with_one_clear_line(tmp_path: Path) -> None:
    broken = shutil.copytree(TINY, tmp_path / "broken")
    (weights,) = (broken / "llm").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1000])

    process = NodeProcess("-p", f"model:={broken}", command=REAL_NODE)

    assert process.wait() == 2
    assert "nvila_node: error: " in process.log
    assert "Traceback" not in process.log


@needs_tiny
@pytest.mark.slow
def test_embedded_model_answers_through_service_and_action() -> None:
    with running("-p", "model:=nvila-tiny", command=REAL_NODE) as (robot, camera):
        robot.show(camera, *range(1, 9))

        answer = robot.ask("How many shapes are there?", num_frames=8, window_s=10.0)
        goal = result_of(robot.send_goal("What color is the circle?").get_result_async()).result.answer

        for each in (answer, goal):
            assert each.finish_reason in (Answer.STOP, Answer.LENGTH), each.error
            assert each.text
            assert each.total_s > 0
            assert each.num_prompt_tokens > each.num_visual_tokens > 0
        assert (answer.num_frames, goal.num_frames) == (8, 1)
        assert answer.model == "nvila-tiny"
