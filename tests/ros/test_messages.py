from __future__ import annotations

import array
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rclpy")
pytest.importorskip("nvila_ros.msg")

from sensor_msgs.msg import Image

from nvila_ros.action import AskVideo
from nvila_ros.config import NodeConfig, bounds
from nvila_ros.errors import FrameError, QueryError
from nvila_ros.ros import messages
from nvila_ros.ros.parameters import parameter_descriptor
from nvila_ros.serving.admission import check_query
from nvila_ros.serving.model_loader import ModelState, Status
from nvila_ros.srv import Ask
from nvila_ros.types import Answer, Counts, FinishReason, FrameRef, Piece, Query, Timings
from nvila_ros.video.image_decoding import LAYOUT_BY_ENCODING

pytestmark = pytest.mark.ros
S = 1_000_000_000

# Where PyPI's cv-bridge is right: eight bits, without padding. It does not know bayer_grbg8, nor any YUV.
CV_BRIDGE_IS_RIGHT = ("rgb8", "bgr8", "rgba8", "bgra8", "mono8", "bayer_rggb8", "bayer_bggr8", "bayer_gbrg8")


def image(encoding: str = "rgb8", width: int = 6, height: int = 4, seed: int = 0) -> Image:
    layout = LAYOUT_BY_ENCODING[encoding]
    step = width * layout.num_channels * layout.channel_bytes
    message = Image(encoding=encoding, width=width, height=height, step=step)
    size = step * height * layout.rows // 2
    message.data = array.array("B", np.random.default_rng(seed).integers(0, 256, size, np.uint8).tobytes())
    return message


@given(st.integers(0, (1 << 31) * S - 1))
def test_stamp_round_trips(stamp_ns: int) -> None:
    assert messages.stamp_to_ns(messages.stamp_from_ns(stamp_ns)) == stamp_ns


def test_frame_shares_the_message_and_keeps_its_header() -> None:
    message = image()
    message.header.frame_id = "front_optical"
    message.header.stamp.sec, message.header.stamp.nanosec = 3, 7

    frame = messages.raw_frame(message, "front", now_ns=99)

    assert (frame.stamp_ns, frame.camera, frame.frame_id) == (3 * S + 7, "front", "front_optical")
    assert np.shares_memory(frame.image.data, np.frombuffer(message.data, np.uint8))
    assert frame.num_bytes == len(message.data)


def test_frame_of_sixteen_bits_is_shown_by_its_window() -> None:
    message = image("mono16")
    values = np.frombuffer(message.data, "<u2").reshape(4, 6)

    shown = messages.decode_frame(messages.raw_frame(message, "front", 0, "1000:40000")).image

    np.testing.assert_array_equal(shown[..., 1], np.rint(((values - 1000.0) / 39000).clip(0, 1) * 255))


def test_frame_without_a_stamp_takes_the_time_of_arrival() -> None:
    assert messages.raw_frame(image(), "front", now_ns=99).stamp_ns == 99


def test_malformed_image_is_noticed_at_arrival() -> None:
    message = image()
    message.data.pop()

    with pytest.raises(FrameError, match="must have 72 bytes, got 71"):
        messages.raw_frame(message, "front", now_ns=0)


@pytest.mark.parametrize("encoding", CV_BRIDGE_IS_RIGHT)
@pytest.mark.parametrize("size", [(6, 4), (7, 5), (640, 480)])
def test_table_agrees_with_cv_bridge_where_it_is_right(encoding: str, size: tuple[int, int]) -> None:
    cv_bridge = pytest.importorskip("cv_bridge")
    message = image(encoding, *size, seed=3)

    ours = messages.decode_frame(messages.raw_frame(message, "front", now_ns=1)).image

    np.testing.assert_array_equal(ours, cv_bridge.CvBridge().imgmsg_to_cv2(message, "rgb8"))


@pytest.mark.parametrize("request_type", [Ask.Request, AskVideo.Goal])
def test_zeros_are_filled_in_from_the_parameters(request_type: type) -> None:
    config = NodeConfig(cameras=("left", "right"), num_frames=8, window_s=3.0, max_tokens=20)

    query = messages.query_from_request(request_type(question="?"), config, "q1", accepted_ns=5)

    assert query == Query(
        query_id="q1",
        question="?",
        num_frames=8,
        window_s=3.0,
        cameras=("left", "right"),
        max_tokens=20,
        accepted_ns=5,
    )


def test_one_frame_by_parameter_becomes_one_per_camera() -> None:
    config = NodeConfig(cameras=("left", "right"), num_frames=1)

    query = messages.query_from_text("?", config, "q1", accepted_ns=5)

    assert query.num_frames == 2
    check_query(query, config)


def test_every_field_of_a_request_arrives() -> None:
    request = AskVideo.Goal(
        question="is it moving",
        choices=["yes", "no"],
        start=messages.stamp_from_ns(2 * S),
        end=messages.stamp_from_ns(4 * S + 1),
        ago_start_s=3.0,
        ago_end_s=2.0,
        window_s=0.5,
        num_frames=4,
        sampling="change",
        answer_type="integer",
        minimum=-1,
        maximum=7,
        json_schema="{}",
        conversation="c",
        cameras=["left"],
        max_tokens=7,
        deadline_s=1.5,
        priority=9,
    )

    query = messages.query_from_request(request, NodeConfig(cameras=("left", "right")), "q1", accepted_ns=S)

    assert query == Query(
        query_id="q1",
        question="is it moving",
        choices=("yes", "no"),
        start_ns=2 * S,
        end_ns=4 * S + 1,
        ago_start_s=3.0,
        ago_end_s=2.0,
        window_s=0.5,
        num_frames=4,
        sampling="change",
        answer_type="integer",
        minimum=-1,
        maximum=7,
        json_schema="{}",
        conversation="c",
        cameras=("left",),
        max_tokens=7,
        deadline_ns=S + 3 * S // 2,
        priority=9,
        accepted_ns=S,
    )


@pytest.mark.parametrize(
    ("fields", "follows"),
    [
        ({"conversation": "c"}, True),
        ({}, False),
        ({"conversation": "c", "num_frames": 1}, False),
        ({"conversation": "c", "window_s": 1.0}, False),
        ({"conversation": "c", "ago_start_s": 1.0}, False),
        ({"conversation": "c", "end": messages.stamp_from_ns(1)}, False),
    ],
)
def test_conversation_goes_on_about_its_frames_unless_others_are_named(
    fields: dict[str, object], follows: bool
) -> None:
    query = messages.query_from_request(Ask.Request(question="?", **fields), NodeConfig(), "q1", 5)

    assert query.is_follow_up == follows


@pytest.mark.parametrize("deadline_s", [math.nan, -math.inf, -1.0])
def test_deadline_that_is_no_time_is_refused(deadline_s: float) -> None:
    query = messages.query_from_request(Ask.Request(question="?", deadline_s=deadline_s), NodeConfig(), "q1", 5)

    with pytest.raises(QueryError, match="deadline_s"):
        check_query(query, NodeConfig())


@pytest.mark.parametrize("deadline_s", [0.0, math.inf])
def test_no_deadline_is_none(deadline_s: float) -> None:
    request = Ask.Request(question="?", deadline_s=deadline_s)

    assert messages.query_from_request(request, NodeConfig(), "q1", 5).deadline_ns is None


def test_answer_carries_everything() -> None:
    answer = Answer(
        query=Query(query_id="q1", question="?", answer_type="yes_no", standing="door"),
        finish_reason=FinishReason.LENGTH,
        text="yes",
        error="none",
        frames=(
            FrameRef(stamp_ns=1 * S, camera="left", frame_id="l"),
            FrameRef(stamp_ns=2 * S + 5, camera="right", frame_id="r"),
        ),
        choices=("yes", "no"),
        probabilities=(0.75, 0.25),
        timings=Timings(queue_s=1, preprocess_s=2, vision_s=3, prefill_s=4, decode_s=5, ttft_s=6, total_s=7),
        counts=Counts(
            num_frames_dropped=6,
            num_frames_encoded=7,
            num_visual_tokens=8,
            num_prompt_tokens=9,
            num_reused_tokens=10,
            num_answer_tokens=11,
        ),
        model="m",
        backend="b",
        precision="p",
    )

    message = messages.answer_message(answer, now_ns=4 * S + 5)

    assert (message.query_id, message.question, message.text, message.error) == ("q1", "?", "yes", "none")
    assert message.finish_reason == message.LENGTH
    assert (list(message.choices), list(message.probabilities)) == (["yes", "no"], [0.75, 0.25])
    assert (message.header.frame_id, messages.stamp_to_ns(message.header.stamp)) == ("r", 2 * S + 5)
    assert [messages.stamp_to_ns(stamp) for stamp in message.stamps] == [S, 2 * S + 5]
    assert list(message.cameras) == ["left", "right"]
    assert message.age_s == 2.0
    stages = ("queue", "preprocess", "vision", "prefill", "decode", "ttft", "total")
    assert [getattr(message, f"{stage}_s") for stage in stages] == [1, 2, 3, 4, 5, 6, 7]
    kinds = ("visual", "prompt", "reused", "answer")
    assert [getattr(message, f"num_{kind}_tokens") for kind in kinds] == [8, 9, 10, 11]
    assert (message.num_frames, message.num_frames_dropped, message.num_frames_encoded) == (2, 6, 7)
    assert message.standing == "door"
    assert (message.model, message.backend, message.precision) == ("m", "b", "p")


@pytest.mark.parametrize("reason", FinishReason)
def test_finish_reasons_have_the_numbers_of_the_message(reason: FinishReason) -> None:
    answer = Answer(query=Query(query_id="q1", question="?"), finish_reason=reason)

    assert messages.answer_message(answer, 0).finish_reason == getattr(messages.AnswerMessage, reason.name)


@pytest.mark.parametrize("state", ModelState)
def test_model_states_have_the_numbers_of_the_message(state: ModelState) -> None:
    assert messages.status_message(Status(state=state), 0).state == getattr(messages.StatusMessage, state.name)


def test_status_carries_everything() -> None:
    status = Status(
        state=ModelState.BUILDING, progress=0.25, part="llm", text="t", model="m", backend="b", precision="p"
    )

    message = messages.status_message(status, 2 * S + 5)

    assert (message.state, message.progress, message.part, message.text) == (message.BUILDING, 0.25, "llm", "t")
    assert (message.model, message.backend, message.precision) == ("m", "b", "p")
    assert messages.stamp_to_ns(message.header.stamp) == 2 * S + 5


def test_token_carries_its_piece() -> None:
    newest = FrameRef(stamp_ns=3, camera="left", frame_id="l")

    token = messages.token_message(Piece(query_id="q1", index=2, text=" a", is_final=True, newest=newest))

    assert (token.query_id, token.index, token.piece, token.is_final) == ("q1", 2, " a", True)
    assert (token.header.stamp.nanosec, token.header.frame_id) == (3, "l")


@pytest.mark.parametrize("name", bounds(NodeConfig))
def test_parameter_is_described_by_its_bound(name: str) -> None:
    bound = bounds(NodeConfig)[name]

    descriptor = parameter_descriptor(getattr(NodeConfig(), name), bound)

    assert bound.doc in descriptor.description
    assert bound.unit in descriptor.description
    assert descriptor.read_only == bound.read_only
    ranges = [*descriptor.integer_range, *descriptor.floating_point_range]
    assert [(r.from_value, r.to_value) for r in ranges] == ([] if bound.low is None else [(bound.low, bound.high)])
