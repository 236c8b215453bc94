"""Stands in for the node that answers: it chooses actions by a script, about the frames that it has really seen.

Parameters: `script` holds the numbers of the actions, one a question; the last is chosen ever after.
"""

from __future__ import annotations

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import Image

from nvila_ros.msg import Answer, Event, Status
from nvila_ros.prompt.navila import SENTENCES
from nvila_ros.ros import process
from nvila_ros.ros.messages import STATUS
from nvila_ros.srv import Ask


class ScriptedAnswers(Node):
    def __init__(self) -> None:
        super().__init__("nvila")
        self.script = list(self.declare_parameter("script", [0]).value)
        self._stamp = None
        self._status = self.create_publisher(Status, "~/status", STATUS)
        self.create_publisher(Event, "~/event", 16)
        self.create_subscription(
            Image, "image", self._on_image, QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT)
        )
        self.create_service(Ask, "~/ask", self._answer)
        self._status.publish(Status(state=Status.READY))
        self.add_on_set_parameters_callback(self._on_parameters)

    def _on_image(self, message: Image) -> None:
        self._stamp = message.header.stamp

    def _on_parameters(self, parameters):  # type: ignore[no-untyped-def]
        from rcl_interfaces.msg import SetParametersResult

        self.script = list(parameters[0].value)
        return SetParametersResult(successful=True)

    def _answer(self, request: Ask.Request, response: Ask.Response) -> Ask.Response:
        assert tuple(request.choices) == SENTENCES
        assert request.num_frames == 8
        chosen = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        probabilities = [0.91 if k == chosen else 0.01 for k in range(10)]
        response.answer = Answer(
            query_id="scripted",
            question=request.question,
            finish_reason=Answer.STOP,
            finish_reason_name="STOP",
            text=SENTENCES[chosen],
            choices=list(SENTENCES),
            probabilities=probabilities,
            stamps=[self._stamp],
            cameras=["camera"],
        )
        return response


def main() -> None:
    signals = process.init(None)
    signals.raises = False
    executor = SingleThreadedExecutor()
    executor.add_node(ScriptedAnswers())
    while not signals.received:
        executor.spin_once(timeout_sec=0.1)
    rclpy.shutdown()


if __name__ == "__main__":
    main()
