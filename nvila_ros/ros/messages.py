"""Between ROS messages and the flow's own nouns: frames and queries in, answers, pieces and diagnostics out.

Pure functions, so that messages can be tested without a node. Last, what a node sends and takes besides: its log, and
its parameters from the fields of a config. What the flow knows of ROS ends here.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import QoSDurabilityPolicy, QoSLivelinessPolicy, QoSProfile
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from nvila_ros.action import AskVideo
from nvila_ros.config import NodeConfig
from nvila_ros.errors import FrameError
from nvila_ros.msg import Answer as AnswerMessage
from nvila_ros.msg import AnswerToken
from nvila_ros.msg import Status as StatusMessage
from nvila_ros.serving.answering import CLOCK_TOLERANCE_S
from nvila_ros.serving.model_loader import Status
from nvila_ros.srv import Ask
from nvila_ros.types import NS_PER_S, Answer, EncodedImage, Frame, FrameRef, Piece, Query, RawFrame, RawImage
from nvila_ros.video.compressed import read_header
from nvila_ros.video.deferred import decode_raw
from nvila_ros.video.image_decoding import LAYOUT_BY_ENCODING, check_layout, check_size

REQUEST_CAMERA = "images"
"""What an answer names as the camera of pictures that came with the question: the field that they came in."""
REQUESTS = QoSProfile(depth=1024)
"""Of what others ask, reliable: with the usual 10 a burst would lose questions that nobody answers or counts."""
TRANSIENT_LOCAL = QoSProfile(depth=1, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
"""Of topics whose last message is sent to whoever subscribes later, if they subscribe likewise."""
ALIVE_S = 0.15
"""Lease of the status topic's liveliness: whoever asks for it hears so soon that the process has ended."""
STATUS = QoSProfile(
    depth=1,
    durability=QoSDurabilityPolicy.TRANSIENT_LOCAL,
    liveliness=QoSLivelinessPolicy.AUTOMATIC,
    liveliness_lease_duration=Duration(seconds=ALIVE_S),
)

CLOCKS_DISAGREE = (
    "the newest frame is stamped {:.3f} s ahead of the node's clock, so its age is unknown; synchronize the clocks, or "
    "set use_sim_time on both sides or on none"
)


def stamp_to_ns(stamp: Time) -> int:
    """Return a stamp in nanoseconds; 0 is unset."""
    return int(stamp.sec) * NS_PER_S + int(stamp.nanosec)


def stamp_from_ns(stamp_ns: int) -> Time:
    """Return nanoseconds as a stamp."""
    return Time(sec=stamp_ns // NS_PER_S, nanosec=stamp_ns % NS_PER_S)


def raw_frame(message: Image, camera: str, now_ns: int, window: str = "full") -> RawFrame:
    """Take an image in as it is, after a look at its layout.

    Args:
        message: may be of any encoding; its data is shared, not copied.
        camera: name of the camera.
        now_ns: ROS clock; becomes the stamp of an image that has none.
        window: which values of more than eight bits are shown.

    Raises:
        FrameError: sizes and data disagree, or nothing here decodes the encoding.
    """
    raw = RawImage(
        data=np.frombuffer(message.data, np.uint8),
        encoding=message.encoding,
        width=message.width,
        height=message.height,
        step=message.step,
        is_bigendian=bool(message.is_bigendian),
        window=window,
    )
    if raw.encoding in LAYOUT_BY_ENCODING or not _has_cv_bridge():
        check_layout(raw)
    else:
        check_size(raw)
    stamp_ns = stamp_to_ns(message.header.stamp) or now_ns
    return RawFrame(image=raw, stamp_ns=stamp_ns, camera=camera, frame_id=message.header.frame_id)


def compressed_frame(message: CompressedImage, camera: str, now_ns: int, window: str = "file") -> RawFrame:
    """Take a compressed image in as it is, after a look at its header; as `raw_frame`.

    Raises:
        FrameError: it is no file of a picture, is cut off, or is too large.
    """
    data = np.frombuffer(message.data, np.uint8)
    header = read_header(data, message.format)
    image = EncodedImage(data=data, format=message.format, width=header.width, height=header.height, window=window)
    stamp_ns = stamp_to_ns(message.header.stamp) or now_ns
    return RawFrame(image=image, stamp_ns=stamp_ns, camera=camera, frame_id=message.header.frame_id)


def decode_frame(frame: RawFrame) -> Frame:
    """Convert a frame to RGB: a compressed one by its file, others by our own table, else by the robot's cv_bridge.

    Raises:
        FrameError: the image cannot be converted.
    """
    image = frame.image
    if isinstance(image, EncodedImage) or image.encoding in LAYOUT_BY_ENCODING or not _has_cv_bridge():
        return decode_raw(frame)
    pixels = _decode_with_cv_bridge(image)
    return Frame(image=pixels, stamp_ns=frame.stamp_ns, camera=frame.camera, frame_id=frame.frame_id)


@functools.cache
def _has_cv_bridge() -> bool:
    """Whether the compiled cv_bridge of ROS is here; the port on PyPI misreads what our table does not cover."""
    spec = importlib.util.find_spec("cv_bridge")
    folders = spec.submodule_search_locations if spec else None
    return any(any(Path(folder, "boost").glob("cv_bridge_boost*.so")) for folder in folders or ())


def _decode_with_cv_bridge(raw: RawImage) -> np.ndarray:
    from cv_bridge import CvBridge, CvBridgeError

    message = Image(
        width=raw.width, height=raw.height, encoding=raw.encoding, step=raw.step, is_bigendian=int(raw.is_bigendian)
    )
    message.data.frombytes(raw.data.tobytes())
    try:
        return np.ascontiguousarray(CvBridge().imgmsg_to_cv2(message, "rgb8"))
    except (CvBridgeError, ValueError, TypeError) as error:
        raise FrameError(f"cv_bridge cannot convert {raw.encoding!r} to rgb8: {error}") from error


def query_from_text(text: str, config: NodeConfig, query_id: str, accepted_ns: int) -> Query:
    """Return a bare question as a query, all else by the node's parameters."""
    return query_from_request(Ask.Request(question=text), config, query_id, accepted_ns)


def query_from_request(
    request: Ask.Request | AskVideo.Goal, config: NodeConfig, query_id: str, accepted_ns: int, now_ns: int = 0
) -> Query:
    """Return a request or goal as a query; what it leaves at zero is filled in from the node's parameters.

    One with pictures is not about the cameras: what it says of their frames stays as it is, for the rules to refuse.

    Nothing is checked here (see `admission.check_query`): a query that breaks a rule still needs its answer.

    Args:
        request: of the service or the action, which have the same fields.
        config: the parameters as they are now.
        query_id: unique in the life of the node.
        accepted_ns: steady clock.
        now_ns: ROS clock; becomes the stamp of a picture that has none.
    """
    start_ns, end_ns = stamp_to_ns(request.start) or None, stamp_to_ns(request.end) or None
    images = tuple(_request_image(message, now_ns) for message in request.images)
    names_frames = any((start_ns, end_ns, request.ago_start_s, request.window_s, request.num_frames, images))
    return Query(
        query_id=query_id,
        question=request.question,
        **_frames_asked_for(request, config),
        images=images,
        start_ns=start_ns,
        end_ns=end_ns,
        ago_start_s=float(request.ago_start_s),
        ago_end_s=float(request.ago_end_s),
        max_tokens=int(request.max_tokens) or config.max_tokens,
        priority=int(request.priority),
        choices=tuple(request.choices),
        answer_type=request.answer_type,
        minimum=int(request.minimum),
        maximum=int(request.maximum),
        json_schema=request.json_schema,
        conversation=request.conversation,
        is_follow_up=bool(request.conversation) and not names_frames,
        accepted_ns=accepted_ns,
        deadline_ns=_deadline_ns(float(request.deadline_s), accepted_ns),
    )


def _frames_asked_for(request: Ask.Request | AskVideo.Goal, config: NodeConfig) -> dict[str, Any]:
    cameras, num_frames, window_s = tuple(request.cameras), int(request.num_frames), float(request.window_s)
    if request.images:
        return {"cameras": cameras, "num_frames": num_frames, "window_s": window_s, "sampling": request.sampling}
    cameras = cameras or config.cameras
    return {
        "cameras": cameras,
        "num_frames": num_frames or config.num_frames_of(cameras, request.answer_type),
        "window_s": window_s or config.window_s,
        "sampling": request.sampling or "uniform",
    }


def _request_image(message: CompressedImage, now_ns: int) -> RawFrame:
    """Take in a picture that came with a question; even its header is left for the rules to look at."""
    image = EncodedImage(data=np.frombuffer(message.data, np.uint8), format=message.format, width=0, height=0)
    stamp_ns = stamp_to_ns(message.header.stamp) or now_ns
    return RawFrame(image=image, stamp_ns=stamp_ns, camera=REQUEST_CAMERA, frame_id=message.header.frame_id)


def _deadline_ns(deadline_s: float, accepted_ns: int) -> int | None:
    if deadline_s in (0, math.inf):
        return None
    # A time that is no time ends at once, which the rules refuse.
    return accepted_ns + (round(deadline_s * NS_PER_S) if math.isfinite(deadline_s) else 0)


def answer_message(answer: Answer, now_ns: int) -> AnswerMessage:
    """Return an answer for publication at `now_ns` of the ROS clock."""
    newest = answer.newest
    age_s = (now_ns - newest.stamp_ns) / NS_PER_S if newest else 0.0
    is_ahead = age_s < -CLOCK_TOLERANCE_S
    timings, counts = answer.timings, answer.counts
    return AnswerMessage(
        query_id=answer.query.query_id,
        question=answer.query.question,
        standing=answer.query.standing,
        text=answer.text,
        finish_reason=int(answer.finish_reason),
        finish_reason_name=answer.finish_reason.name,
        error=answer.error or (CLOCKS_DISAGREE.format(-age_s) if is_ahead else ""),
        choices=list(answer.choices),
        probabilities=list(answer.probabilities),
        header=_header(newest),
        stamps=[stamp_from_ns(frame.stamp_ns) for frame in answer.frames],
        cameras=[frame.camera for frame in answer.frames],
        age_s=math.inf if is_ahead else age_s,
        queue_s=timings.queue_s,
        preprocess_s=timings.preprocess_s,
        vision_s=timings.vision_s,
        prefill_s=timings.prefill_s,
        decode_s=timings.decode_s,
        ttft_s=timings.ttft_s,
        total_s=timings.total_s,
        num_frames=len(answer.frames),
        num_frames_dropped=counts.num_frames_dropped,
        num_frames_encoded=counts.num_frames_encoded,
        num_visual_tokens=counts.num_visual_tokens,
        num_prompt_tokens=counts.num_prompt_tokens,
        num_reused_tokens=counts.num_reused_tokens,
        num_answer_tokens=counts.num_answer_tokens,
        model=answer.model,
        backend=answer.backend,
        precision=answer.precision,
    )


def token_message(piece: Piece) -> AnswerToken:
    """Return a piece of an answer for publication."""
    return AnswerToken(
        header=_header(piece.newest),
        query_id=piece.query_id,
        index=piece.index,
        piece=piece.text,
        is_final=piece.is_final,
    )


def status_message(status: Status, now_ns: int) -> StatusMessage:
    """Return what the model is doing for publication at `now_ns` of the ROS clock."""
    return StatusMessage(
        header=Header(stamp=stamp_from_ns(now_ns)),
        state=int(status.state),
        progress=status.progress,
        part=status.part,
        text=status.text,
        model=status.model,
        backend=status.backend,
        precision=status.precision,
    )


def _header(frame: FrameRef | None) -> Header:
    if frame is None:
        return Header()
    return Header(stamp=stamp_from_ns(frame.stamp_ns), frame_id=frame.frame_id)


class RosLogHandler(logging.Handler):
    """Hands what the other rooms log to the node's logger."""

    def __init__(self, node: Node) -> None:
        super().__init__(logging.WARNING)
        self._logger = node.get_logger()

    def emit(self, record: logging.LogRecord) -> None:
        """Log one record; rclpy wants a line of its own for each severity."""
        if record.levelno >= logging.ERROR:
            self._logger.error(self.format(record))
        else:
            self._logger.warning(self.format(record))
