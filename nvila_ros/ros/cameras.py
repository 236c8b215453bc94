"""One camera at the edge: its images become frames in the buffer, and what does not arrive is noticed."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.node import Node
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from nvila_ros.config import NodeConfig
from nvila_ros.errors import FrameError
from nvila_ros.http.services import CameraState
from nvila_ros.paths import share_path
from nvila_ros.ros import messages
from nvila_ros.ros.diagnostics import camera_status
from nvila_ros.ros.parameters import SUBSCRIPTION_QOS
from nvila_ros.serving.answering import CLOCK_TOLERANCE_S
from nvila_ros.serving.throttle import Throttle
from nvila_ros.types import NS_PER_S, RawFrame
from nvila_ros.video.buffer import FrameBuffer
from nvila_ros.video.loss_watch import LossWatch, explain
from nvila_ros.video.windowing import parse_window

try:
    from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
except ModuleNotFoundError:  # before ROS 2 Iron
    from rclpy.qos_event import SubscriptionEventCallbacks, UnsupportedEventTypeError

IMAGE_DEPTH = 5
WARN_EVERY_S, REPEAT_S = 5.0, 30.0
FAR_AHEAD_NS = 10_000_000_000
"""How far a single stamp may lie ahead of the clock; where all do, another machine's clock is the one that counts."""


class StampError(FrameError):
    """A frame's stamp does not fit those before it."""


class Camera:
    """One image subscription: it stores frames and watches over what does not arrive.

    Attributes:
        images: the subscription.
        num_received: images that came, malformed ones included.
        num_malformed: images that are no frames.
        num_lost: images that the middleware knows to be lost on the way.
    """

    def __init__(self, node: Node, name: str, config: NodeConfig, buffer: FrameBuffer[RawFrame]) -> None:
        self.num_received = self.num_malformed = self.num_lost = 0
        self._node, self._name, self._buffer = node, name, buffer
        self._watch = LossWatch()
        self._mismatched_at: int | None = None  # images that had come when a publisher did not match
        self._refused, self._num_checked = "", (0, 0)
        self._has_warned_of_stamp = self._is_ahead = False
        self._newest_ns, self._frame_id, self._counted, self._counted_ns = 0, "", 0, time.monotonic_ns()
        self._rate_hz, self._warning = 0.0, ""
        self._errors, self._losses = Throttle(WARN_EVERY_S), Throttle(REPEAT_S)
        topic = config.camera_topic(name)
        kind: type[Image] | type[CompressedImage] = Image
        parse_window(config.window)  # before the first image
        self._take: Callable[[Any, str, int], RawFrame] = partial(messages.raw_frame, window=config.window)
        if config.image_transport == "compressed":
            # As image_transport does: who remaps an image's topic moves its compressed one too.
            topic = f"{node.resolve_topic_name(topic)}/compressed"
            kind, self._take = CompressedImage, partial(messages.compressed_frame, window=config.window)
        reliability = QoSReliabilityPolicy[config.image_reliability.upper()]
        qos = QoSProfile(depth=IMAGE_DEPTH, reliability=reliability)
        callbacks = SubscriptionEventCallbacks(message_lost=self._on_lost, incompatible_qos=self._on_mismatch)
        subscribe = partial(
            node.create_subscription, kind, topic, self._on_image, qos, qos_overriding_options=SUBSCRIPTION_QOS
        )
        try:
            self.images = subscribe(event_callbacks=callbacks)
        except UnsupportedEventTypeError:  # this middleware counts no lost messages: silence is still noticed
            self.images = subscribe()

    def check(self) -> tuple[str, DiagnosticStatus]:
        """Return what is wrong, or an empty text, and the status for diagnostics; called about once a second."""
        now_ns, ros_now_ns = time.monotonic_ns(), self._node.get_clock().now().nanoseconds
        ahead_s = (self._newest_ns - ros_now_ns) / NS_PER_S
        warning = self._check_loss()
        if not warning and ahead_s > CLOCK_TOLERANCE_S:
            warning = f"camera={self._name}: {messages.CLOCKS_DISAGREE.format(ahead_s)}"
        self._rate_hz = (self.num_received - self._counted) / max(now_ns - self._counted_ns, 1) * NS_PER_S
        self._counted, self._counted_ns, self._warning = self.num_received, now_ns, warning
        values = {
            "topic": self.images.topic_name,
            "rate_hz": f"{self._rate_hz:.1f}",
            "age_s": f"{-ahead_s:.3f}" if self._newest_ns else "",
            "received": self.num_received,
            "malformed": self.num_malformed,
            "lost": self.num_lost,
        }
        name = self._node.get_fully_qualified_name()
        return warning, camera_status(name, self._name, warning, self._frame_id, values)

    def state(self) -> CameraState:
        """Return how its frames arrive, as of the last check; from any thread."""
        return CameraState(
            name=self._name,
            source=self.images.topic_name,
            rate_hz=self._rate_hz,
            received=self.num_received,
            malformed=self.num_malformed,
            lost=self.num_lost,
            warning=self._warning,
        )

    def _check_loss(self) -> str:
        """Return why frames are missing, or an empty text; it is logged now and then."""
        now_ns, topic = time.monotonic_ns(), self.images.topic_name
        loss = self._watch.check(
            now_ns,
            num_publishers=self._node.count_publishers(topic),
            num_received=self.num_received,
            num_lost=self.num_lost,
            has_qos_mismatch=self._mismatched_at == self.num_received,
        )
        if loss is None:
            return self._check_refused()
        warning = f"camera={self._name} topic={topic}: {explain(loss, _profile())}"
        if self._losses.is_due(loss, now_ns):
            self._node.get_logger().warning(warning)
        return warning

    def _check_refused(self) -> str:
        """Return why no image since the last check was taken, or an empty text where one was, or none came."""
        before, self._num_checked = self._num_checked, (self.num_received, self.num_malformed)
        received, malformed = (now - then for now, then in zip(self._num_checked, before, strict=True))
        is_blind = 0 < received <= malformed
        return f"camera={self._name}: every image is refused: {self._refused}" if is_blind else ""

    def _on_image(self, message: Image | CompressedImage) -> None:
        self.num_received += 1
        try:
            now_ns = self._node.get_clock().now().nanoseconds
            frame = self._take(message, self._name, now_ns)
            self._check_stamp(frame.stamp_ns, now_ns)
        except FrameError as error:
            self.num_malformed += 1
            self._refused = str(error)
            layout = getattr(message, "encoding", "") or getattr(message, "format", "")
            if self._errors.is_due((layout, type(error)), time.monotonic_ns()):
                self._node.get_logger().error(f"camera={self._name} image dropped: {error}")
            return
        if not messages.stamp_to_ns(message.header.stamp) and not self._has_warned_of_stamp:
            self._has_warned_of_stamp = True
            self._node.get_logger().warning(f"camera={self._name} sends no stamps: the time of arrival is taken")
        self._newest_ns, self._frame_id = frame.stamp_ns, frame.frame_id
        jump_ns = self._buffer.push(frame)
        if jump_ns:
            self._node.get_logger().warning(
                f"camera={self._name} stamps went back by {jump_ns / 1e9:.3f} s: its older frames were dropped",
                throttle_duration_sec=WARN_EVERY_S,
            )

    def _check_stamp(self, stamp_ns: int, now_ns: int) -> None:
        """Refuse a frame whose stamp alone lies far ahead: all older ones would be too old beside it.

        Raises:
            FrameError: it does, and that of the frame before did not.
        """
        was_ahead, self._is_ahead = self._is_ahead, now_ns > 0 and stamp_ns - now_ns > FAR_AHEAD_NS
        if self._is_ahead and not was_ahead:
            raise StampError(
                f"its stamp lies {(stamp_ns - now_ns) / 1e9:.3f} s ahead of the clock; let the clocks agree, or set "
                "use_sim_time"
            )

    def _on_lost(self, event: Any) -> None:
        self.num_lost += event.total_count_change

    def _on_mismatch(self, event: Any) -> None:
        self._mismatched_at = self.num_received


def _profile() -> Path | None:
    """Return the profile that gives Fast DDS room for images, where that is the middleware."""
    has_fastdds = "fastrtps" in rclpy.get_rmw_implementation_identifier()
    return share_path("config", "fastdds_shm.xml") if has_fastdds else None
