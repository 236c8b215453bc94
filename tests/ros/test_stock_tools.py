"""What tools that know nothing of this package show: texts, names, diagnostics of cameras, pieces of a goal."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("nvila_ros.msg")

from std_msgs.msg import String

from nvila_ros.msg import Answer, AnswerToken
from nvila_ros.ros.answer_topics import classification
from nvila_ros.ros.feedback import EVERY_S, Feedback
from tests.ros.robot import Camera, NodeProcess, Robot, result_of, running, wait_until


@pytest.fixture(scope="module")
def robot() -> Iterator[tuple[Robot, Camera]]:
    with running() as (robot, camera):
        robot.show(camera, 1)
        yield robot, camera


def test_text_of_an_answer_is_a_string_on_a_topic_of_its_own(robot: tuple[Robot, Camera]) -> None:
    texts: list[str] = []
    node, _ = robot
    node.node.create_subscription(String, "/nvila/answer_text", lambda message: texts.append(message.data), 10)
    wait_until(lambda: node.node.count_publishers("/nvila/answer_text") == 1, "the topic is there")
    node.fresh_diagnostics()
    node.ask("")  # refused: no text
    node.ask("hello there")

    wait_until(lambda: bool(texts), "the text comes")
    assert texts == ["hello there"]


def test_finish_reason_has_a_name(robot: tuple[Robot, Camera]) -> None:
    node, _ = robot
    assert [node.ask(question).finish_reason_name for question in ("what", "")] == ["STOP", "INVALID"]


def test_endless_deadline_is_none(robot: tuple[Robot, Camera]) -> None:
    node, _ = robot
    assert node.ask(deadline_s=math.inf).finish_reason == Answer.STOP
    assert node.ask(deadline_s=-math.inf).finish_reason == Answer.INVALID


def test_each_camera_has_a_status_with_its_rate_and_hardware(robot: tuple[Robot, Camera]) -> None:
    node, camera = robot
    for index in range(25):
        camera.show(2 + index / 10)
        time.sleep(0.1)
    node.fresh_diagnostics()

    status = node.camera_statuses["/nvila: camera camera"]
    values = {pair.key: pair.value for pair in status.values}
    assert (status.hardware_id, values["topic"]) == ("optical", "/image")
    assert 3 < float(values["rate_hz"]) < 15
    assert int(values["received"]) >= 25


def test_nodes_of_one_name_warn_each_other(robot: tuple[Robot, Camera]) -> None:
    node, _ = robot
    other = NodeProcess()
    other.wait_for_log("another node is called /nvila too")
    wait_until(lambda: "another node is called /nvila too" in node.fresh_diagnostics()["message"], "both know")

    assert other.stop() == 0
    wait_until(lambda: "another node" not in node.fresh_diagnostics()["message"], "it is gone")


def test_pieces_of_a_goal_joined_by_index_are_its_text(robot: tuple[Robot, Camera]) -> None:
    """The client has the queue of 10 that every client of an action has, and reads slowly."""
    tokens: list[AnswerToken] = []
    node, _ = robot

    def read(token: AnswerToken) -> None:
        tokens.append(token)
        time.sleep(0.02)

    text = "one two three " * 20
    result = result_of(node.send_goal(text, on_token=read, max_tokens=200).get_result_async()).result
    wait_until(lambda: bool(tokens) and tokens[-1].is_final, "the last piece comes")

    assert [token.index for token in tokens] == list(range(len(tokens)))
    assert "".join(token.piece for token in tokens) == result.answer.text == text


def test_pieces_that_come_slowly_are_sent_one_by_one_and_fast_ones_together() -> None:
    now_s, sent = [0.0], []
    feedback = Feedback(sent.append, lambda: now_s[0])
    for index in range(6):
        feedback.add(AnswerToken(index=index, piece=f"{index} ", is_final=index == 5))
        now_s[0] += EVERY_S if index < 2 else EVERY_S / 10

    assert [token.piece for token in sent] == ["0 ", "1 ", "2 ", "3 4 5 "]
    assert [(token.index, token.is_final) for token in sent] == [(0, False), (1, False), (2, False), (3, True)]


def test_scored_answer_is_a_classification_with_the_likeliest_first() -> None:
    def hypothesis(class_id: str, score: float) -> Any:
        return class_id, score

    vision = SimpleNamespace(ObjectHypothesis=hypothesis, Classification=lambda **fields: fields)
    answer = Answer(choices=["yes", "no"], probabilities=[0.25, 0.75])
    answer.header.frame_id = "optical"

    message = classification(vision, answer)

    assert message["results"] == [("no", 0.75), ("yes", 0.25)]
    assert message["header"].frame_id == "optical"
