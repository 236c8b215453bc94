"""`~/annotated`: answers and events drawn on the frame that they are about, while somebody looks.

A thread of its own draws, and only the newest answer: neither the model nor a callback waits for a picture.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import cv2
from rclpy.node import Node
from rclpy.publisher import Publisher
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

from nvila_ros.errors import FrameError
from nvila_ros.ros.messages import stamp_from_ns
from nvila_ros.ros.parameters import PUBLISHER_QOS
from nvila_ros.serving.answering import Answering
from nvila_ros.standing.event import Event
from nvila_ros.types import Answer, FrameRef, Piece
from nvila_ros.video.annotation import annotate

LOG = logging.getLogger(__name__)
NUM_EVENTS = 3
QUALITY = 80


class AnnotatedTopic:
    """Publishes pictures on `~/annotated`, and the same words as `~/annotations` where foxglove_msgs is.

    Args:
        node: publishes.
        answering: has the frames.

    Attributes:
        publishers: of these topics.
    """

    def __init__(self, node: Node, answering: Answering) -> None:
        qos = {"qos_overriding_options": PUBLISHER_QOS}
        self._answering = answering
        self._images = node.create_publisher(CompressedImage, "~/annotated", 1, **qos)
        self.publishers: list[Publisher] = [self._images]
        has_foxglove = importlib.util.find_spec("foxglove_msgs") is not None
        self._foxglove: Any = importlib.import_module("foxglove_msgs.msg") if has_foxglove else None
        if self._foxglove is not None:
            self._notes = node.create_publisher(self._foxglove.ImageAnnotations, "~/annotations", 1, **qos)
            self.publishers.append(self._notes)
        self._events: deque[str] = deque(maxlen=NUM_EVENTS)
        self._changed = threading.Condition()
        self._newest: Answer | None = None
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="nvila_annotated", daemon=True)
        self._thread.start()

    def on_answer(self, answer: Answer) -> None:
        """Draw an answer next, in place of one that still waits; from any thread."""
        is_shown = answer.finish_reason.is_answered and answer.frames and not answer.query.is_unstamped
        if is_shown and any(publisher.get_subscription_count() for publisher in self.publishers):
            with self._changed:
                self._newest = answer
                self._changed.notify()

    def on_piece(self, piece: Piece) -> None:
        """Whole answers are drawn."""

    def on_events(self, events: Sequence[Event]) -> None:
        """Remember what is drawn below the answers; from any thread."""
        self._events.extend(f"{event.phase.name} {event.query.name}: {event.answer.text}" for event in events)

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._newest is not None or self._is_closed)
                answer, self._newest = self._newest, None
                if self._is_closed or answer is None:
                    return
            try:
                self._publish(answer)
            except FrameError as error:
                LOG.warning("query_id=%s cannot be drawn: %s", answer.query.query_id, error)

    def _publish(self, answer: Answer) -> None:
        newest, lines = answer.frames[-1], [*lines_of(answer), *self._events]
        header = Header(stamp=stamp_from_ns(newest.stamp_ns), frame_id=newest.frame_id)
        if self._foxglove is not None and self._notes.get_subscription_count():
            self._notes.publish(image_annotations(self._foxglove, header, lines))
        if self._images.get_subscription_count():
            content = self._draw(newest, lines)
            if content is not None:
                self._images.publish(CompressedImage(header=header, format="rgb8; jpeg compressed bgr8", data=content))

    def _draw(self, ref: FrameRef, lines: Sequence[str]) -> bytes | None:
        """Return a JPEG file, or None where the buffer has the frame no more."""
        frames = self._answering.buffer.window([ref.camera], ref.stamp_ns, ref.stamp_ns)[0]
        if not frames:
            return None
        drawn = annotate(self._answering.decode(frames[0]).image, lines)
        options = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
        return bytes(cv2.imencode(".jpg", cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR), options)[1])


def lines_of(answer: Answer) -> list[str]:
    """Return the question, and the answer with its probability."""
    shares = dict(zip(answer.choices, answer.probabilities, strict=True))
    share = f" ({shares[answer.text]:.2f})" if answer.text in shares else ""
    return [answer.query.question, f"{answer.text}{share}"]


def image_annotations(foxglove: Any, header: Header, lines: Sequence[str]) -> Any:
    """Return lines as ImageAnnotations at the top left of the image with that stamp.

    Args:
        foxglove: the module foxglove_msgs.msg.
        header: of the image.
        lines: one below the other.
    """
    color, dark = foxglove.Color(r=1.0, g=1.0, b=1.0, a=1.0), foxglove.Color(r=0.0, g=0.0, b=0.0, a=0.6)
    texts = [
        foxglove.TextAnnotation(
            timestamp=header.stamp,
            position=foxglove.Point2(x=8.0, y=22.0 * place),
            text=line,
            font_size=16.0,
            text_color=color,
            background_color=dark,
        )
        for place, line in enumerate(lines, start=1)
    ]
    return foxglove.ImageAnnotations(texts=texts)
