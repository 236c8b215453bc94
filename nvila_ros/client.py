"""The client of the node for Python programs that use ROS; needs rclpy."""

try:
    from nvila_ros.ros.client import NvilaClient
except ModuleNotFoundError as error:
    missing = error.name or "rclpy"
    if not missing.startswith("nvila_ros"):
        missing = missing.partition(".")[0]
    raise ModuleNotFoundError(
        f"nvila_ros.client needs {missing}: source a ROS 2 workspace with nvila_ros, or pip install 'nvila_ros[ros]'",
        name=missing,
    ) from error
from nvila_ros.ros.client_future import ClientFuture
from nvila_ros.ros.client_messages import StandingEvent
from nvila_ros.ros.client_streams import AnswerStream, EventStream
from nvila_ros.ros.messages import stamp_to_ns
from nvila_ros.serving.model_loader import ModelState, Status
from nvila_ros.serving.query_fields import QueryFields
from nvila_ros.standing.event import EndReason, Phase
from nvila_ros.standing.query import StandingQuery
from nvila_ros.types import Answer, FinishReason

__all__ = [
    "Answer",
    "AnswerStream",
    "ClientFuture",
    "EndReason",
    "EventStream",
    "FinishReason",
    "ModelState",
    "NvilaClient",
    "Phase",
    "QueryFields",
    "StandingEvent",
    "StandingQuery",
    "Status",
    "stamp_to_ns",
]
