from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("nvila_ros.msg")

from action_msgs.msg import GoalStatus
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import DescribeParameters, SetParameters
from std_msgs.msg import String

from nvila_ros.msg import Answer
from nvila_ros.ros.messages import REQUESTS
from nvila_ros.srv import Ask
from tests.ros.robot import WAIT_S, Camera, Robot, result_of, running, wait_until
from tests.tiny import CRASH

SLOW = "word " * 199 + "word"  # four seconds of answer


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Robot, Camera]]:
    with running("-p", "model:=fake:0.02", "-p", "queue_size:=2", "-p", "buffer_s:=3600.0") as robot_and_camera:
        yield robot_and_camera


@pytest.fixture
def robot(shared: tuple[Robot, Camera]) -> Robot:
    """The shared robot, which sees ten frames, one a second."""
    robot, camera = shared
    if robot.num_buffered() < 10:
        robot.show(camera, *range(100, 110))
    robot.answers.clear()
    robot.tokens.clear()
    return robot


def stamps_s(answer: Answer) -> list[int]:
    return [stamp.sec for stamp in answer.stamps]


def test_service_answers_about_the_frames_asked_for(robot: Robot) -> None:
    answer = robot.ask("how are you", num_frames=3, window_s=4.0)

    assert (answer.text, answer.finish_reason) == ("how are you", Answer.STOP)
    assert stamps_s(answer) == [105, 107, 109]
    assert list(answer.cameras) == ["camera"] * 3
    assert (answer.header.stamp.sec, answer.header.frame_id) == (109, "optical")
    assert (answer.model, answer.backend) == ("fake", "numpy")
    assert answer.age_s > 1e6  # the frames are of 1970
    assert answer.total_s > 0


def test_topic_answers_with_a_stream_and_an_answer(robot: Robot) -> None:
    robot.question.publish(String(data="what is this"))
    wait_until(lambda: bool(robot.answers), "an answer comes")

    (answer,) = robot.answers
    wait_until(lambda: bool(robot.tokens) and robot.tokens[-1].is_final, "the stream ends")
    assert "".join(token.piece for token in robot.tokens) == answer.text == "what is this"
    assert [token.index for token in robot.tokens] == list(range(4))
    assert {token.query_id for token in robot.tokens} == {answer.query_id}
    assert {token.header.stamp.sec for token in robot.tokens} == {109}


def test_action_streams_and_succeeds(robot: Robot) -> None:
    tokens: list[Any] = []

    result = result_of(robot.send_goal("what moves here", on_token=tokens.append).get_result_async())

    assert result.status == GoalStatus.STATUS_SUCCEEDED
    assert result.result.answer.text == "what moves here"
    # rclpy's client drops feedback that comes after the end of the goal, so the last pieces may be missing here.
    told = "".join(token.piece for token in tokens)
    assert told
    assert "what moves here".startswith(told)


def test_every_door_publishes_its_answer(robot: Robot) -> None:
    asked = robot.ask("by service").query_id
    goal = result_of(robot.send_goal("by action").get_result_async()).result.answer.query_id

    wait_until(lambda: len(robot.answers) == 2, "both answers are published")
    assert [answer.query_id for answer in robot.answers] == [asked, goal]


def test_choices_come_with_probabilities(robot: Robot) -> None:
    answer = robot.ask("is it red", choices=["yes", "no"])

    assert (answer.text, list(answer.choices), list(answer.probabilities)) == ("yes", ["yes", "no"], [1.0, 0.0])


def test_max_tokens_cuts_the_answer(robot: Robot) -> None:
    answer = robot.ask("one two three", max_tokens=2)

    assert (answer.text, answer.finish_reason, answer.num_answer_tokens) == ("one two", Answer.LENGTH, 2)


def test_cancel_is_honoured_at_a_token(robot: Robot) -> None:
    tokens: list[Any] = []
    goal = robot.send_goal(SLOW, on_token=tokens.append, max_tokens=200)
    wait_until(lambda: len(tokens) >= 3, "some tokens come")

    result_of(goal.cancel_goal_async())
    result = result_of(goal.get_result_async())

    assert result.status == GoalStatus.STATUS_CANCELED
    assert result.result.answer.finish_reason == Answer.CANCELED
    assert 3 <= result.result.answer.num_answer_tokens < 100
    assert result.result.answer.text.startswith("word word word")


def test_waiting_goal_is_canceled_without_work(robot: Robot) -> None:
    first = robot.send_goal(SLOW, max_tokens=200)
    second = robot.send_goal("never said")

    result_of(second.cancel_goal_async())
    result = result_of(second.get_result_async())

    assert result.status == GoalStatus.STATUS_CANCELED
    assert result.result.answer.text == ""
    result_of(first.cancel_goal_async())
    assert result_of(first.get_result_async()).status == GoalStatus.STATUS_CANCELED


def test_deadline_cuts_the_answer(robot: Robot) -> None:
    answer = robot.ask(SLOW, max_tokens=200, deadline_s=0.5)

    assert answer.finish_reason == Answer.DEADLINE
    assert 0 < len(answer.text.split()) < 200
    assert answer.text.startswith("word")


def test_full_queue_rejects_at_every_door_and_images_go_on(robot: Robot, shared: tuple[Robot, Camera]) -> None:
    running_goal = robot.send_goal(SLOW, max_tokens=200)
    wait_until(lambda: bool(robot.tokens), "the first goal runs")
    waiting = [robot.ask_later("first"), robot.ask_later("second", priority=1)]
    wait_until(lambda: robot.fresh_diagnostics()["queue_depth"] == "2", "two queries wait")

    rejected = robot.ask("third")
    rejected_goal = robot.send_goal("fourth")
    robot.show(shared[1], 110)

    assert rejected.finish_reason == Answer.REJECTED
    assert "queue_size = 2" in rejected.error
    assert not rejected_goal.accepted
    assert not any(future.done() for future in waiting)
    result_of(running_goal.cancel_goal_async())
    assert [result_of(future).answer.text for future in waiting] == ["first", "second"]
    texts = [answer.text for answer in robot.answers if answer.text in ("first", "second")]
    assert texts == ["second", "first"]


def test_every_question_of_a_burst_is_answered(robot: Robot) -> None:
    clients = [robot.node.create_client(Ask, "nvila/ask", qos_profile=REQUESTS) for _ in range(40)]
    for client in clients:
        assert client.wait_for_service(WAIT_S)
    num_answers = len(robot.answers)

    asked = [client.call_async(Ask.Request(question=f"burst {k}")) for k, client in enumerate(clients)]
    for k in range(40):
        robot.question.publish(String(data=f"topic {k}"))

    reasons = {result_of(future).answer.finish_reason for future in asked}
    wait_until(lambda: len(robot.answers) == num_answers + 80, "every question has its answer")
    assert reasons == {Answer.STOP, Answer.REJECTED}
    for client in clients:
        robot.node.destroy_client(client)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"question": ""}, "question must not be empty"),
        ({"question": "x" * 100_000}, "max_question_bytes = 4096 bytes, got 100000"),
        ({"window_s": float("nan")}, "window_s must lie in"),
        ({"cameras": ["side"]}, "unknown cameras ['side']"),
        ({"num_frames": 1000}, "num_frames must lie in [1, 256]"),
        ({"choices": ["a", "a"]}, "choices must be distinct"),
        ({"deadline_s": -1.0}, "deadline_s must be positive"),
    ],
)
def test_bad_question_is_invalid_and_names_the_rule(robot: Robot, fields: dict[str, Any], rule: str) -> None:
    answer = robot.ask(**fields)

    assert answer.finish_reason == Answer.INVALID
    assert rule in answer.error
    assert robot.ask("still there").finish_reason == Answer.STOP


def test_bad_goal_is_aborted_with_the_rule(robot: Robot) -> None:
    result = result_of(robot.send_goal("").get_result_async())

    assert result.status == GoalStatus.STATUS_ABORTED
    assert "question must not be empty" in result.result.answer.error


@pytest.mark.parametrize("question", ["what <|im_end|> is <image> this", "\N{SNOWMAN} \N{PILE OF POO} \x01"])
def test_special_looking_text_is_plain_text(robot: Robot, question: str) -> None:
    answer = robot.ask(question)

    assert (answer.question, answer.text, answer.finish_reason) == (question, question, Answer.STOP)


def test_window_without_frames_says_what_the_buffer_holds(robot: Robot) -> None:
    fields: dict[str, Any] = {"start": answer_time(5), "end": answer_time(6)}

    answer = robot.ask(**fields)

    assert answer.finish_reason == Answer.NO_FRAMES
    assert "no frame of camera in [5.000, 6.000] s; the buffer holds" in answer.error


def test_broken_runtime_fails_one_answer_only(robot: Robot) -> None:
    answer = robot.ask(CRASH)

    assert (answer.finish_reason, answer.error) == (Answer.FAILED, "ZeroDivisionError: the runtime broke")
    assert robot.ask("still there").finish_reason == Answer.STOP


def answer_time(second: int) -> Any:
    return type(Answer().header.stamp)(sec=second)


def set_parameter(robot: Robot, name: str, value: int) -> Any:
    client = robot.node.create_client(SetParameters, "nvila/set_parameters")
    parameter = Parameter(name=name, value=ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=value))
    (result,) = result_of(client.call_async(SetParameters.Request(parameters=[parameter]))).results
    return result


def test_parameter_change_takes_effect(robot: Robot) -> None:
    assert set_parameter(robot, "num_frames", 2).successful

    assert robot.ask(window_s=100.0).num_frames == 2
    assert set_parameter(robot, "num_frames", 1).successful


@pytest.mark.parametrize(("name", "value"), [("num_frames", 0), ("num_frames", 257), ("queue_size", 3)])
def test_parameter_change_against_the_rule_is_refused(robot: Robot, name: str, value: int) -> None:
    result = set_parameter(robot, name, value)

    assert not result.successful
    assert name in result.reason or "read-only" in result.reason


def test_parameters_are_described(robot: Robot) -> None:
    client = robot.node.create_client(DescribeParameters, "nvila/describe_parameters")
    request = DescribeParameters.Request(names=["buffer_s", "queue_size"])

    buffer_s, queue_size = result_of(client.call_async(request)).descriptors

    assert (buffer_s.floating_point_range[0].from_value, buffer_s.read_only) == (0.1, True)
    assert queue_size.integer_range[0].to_value == 4096
