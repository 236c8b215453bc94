"""The topics that carry answers: whole ones, and parts of them in types that other packages understand."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from rclpy.node import Node
from rclpy.publisher import Publisher
from std_msgs.msg import String

from nvila_ros.msg import Answer
from nvila_ros.ros.parameters import PUBLISHER_QOS

ANSWER_DEPTH = 16
ANSWERED = (Answer.STOP, Answer.LENGTH)


class AnswerTopics:
    """Publishes each answer on `~/answer`, its text on `~/answer_text`, and scored choices on `~/classification`.

    The last is there where the package vision_msgs is.

    Attributes:
        publishers: of all these topics.
    """

    def __init__(self, node: Node) -> None:
        qos = {"qos_overriding_options": PUBLISHER_QOS}
        self._answers = node.create_publisher(Answer, "~/answer", ANSWER_DEPTH, **qos)
        self._texts = node.create_publisher(String, "~/answer_text", ANSWER_DEPTH, **qos)
        self.publishers: list[Publisher] = [self._answers, self._texts]
        has_vision = importlib.util.find_spec("vision_msgs") is not None
        self._vision: Any = importlib.import_module("vision_msgs.msg") if has_vision else None
        if self._vision is not None:
            self._scores = node.create_publisher(self._vision.Classification, "~/classification", ANSWER_DEPTH, **qos)
            self.publishers.append(self._scores)

    def publish(self, answer: Answer) -> None:
        """Publish an answer; from any thread."""
        self._answers.publish(answer)
        if answer.finish_reason not in ANSWERED:
            return
        self._texts.publish(String(data=answer.text))
        if self._vision is not None and answer.probabilities:
            self._scores.publish(classification(self._vision, answer))


def classification(vision: Any, answer: Answer) -> Any:
    """Return a scored answer as a Classification, likeliest first; its header is that of the newest frame.

    Args:
        vision: the module vision_msgs.msg.
        answer: with probabilities.
    """
    scored = sorted(zip(answer.choices, answer.probabilities, strict=True), key=lambda pair: -pair[1])
    results = [vision.ObjectHypothesis(class_id=choice, score=float(score)) for choice, score in scored]
    return vision.Classification(header=answer.header, results=results)
