"""What the abuse throws at the node is of the right types, and the same for the same seed."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("nvila_ros.msg")

from rclpy.serialization import serialize_message

from benchmarks.abuse import STEPS
from benchmarks.abusing import values
from benchmarks.abusing.robot import AbuseFault, check_answer
from nvila_ros.action import AskVideo
from nvila_ros.msg import Answer
from nvila_ros.srv import AddQuery, Ask

pytestmark = pytest.mark.ros


@pytest.mark.parametrize("kind", [Ask.Request, AskVideo.Goal, AddQuery.Request])
def test_messages_can_be_sent_and_are_those_of_their_seed(kind: type) -> None:
    for seed in range(40):
        sent = values.message(random.Random(seed), kind)

        assert serialize_message(sent)
        assert repr(sent) == repr(values.message(random.Random(seed), kind))


def test_images_and_files_are_spoiled_in_many_ways() -> None:
    rng = random.Random(0)
    assert len({(image.encoding, image.width, image.step) for image in (values.image(rng) for _ in range(60))}) > 40
    assert len({values.spoiled(rng, b"0123456789") for _ in range(60)}) > 40


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (Answer(finish_reason=Answer.FAILED, error="it broke"), "ended FAILED: it broke"),
        (Answer(finish_reason=Answer.INVALID), "names no rule"),
        (Answer(finish_reason=Answer.REJECTED, error="x" * 5000), "has 5000 characters"),
    ],
)
def test_answer_that_explains_nothing_is_a_fault(answer: Answer, fault: str) -> None:
    with pytest.raises(AbuseFault, match=fault):
        check_answer(answer)


def test_answers_and_refusals_are_none() -> None:
    check_answer(Answer(finish_reason=Answer.STOP))
    check_answer(Answer(finish_reason=Answer.INVALID, error="question must not be empty"))


def test_every_step_is_drawn() -> None:
    assert all(weight > 0 for weight in STEPS.values())
    assert all(step.__doc__ for step in STEPS)
