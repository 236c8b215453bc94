"""What is said of an answer that took long."""

import pytest

from nvila_ros.serving.slow_answers import explain
from nvila_ros.types import Answer, Counts, FinishReason, FrameRef, Query, Timings


def answer(num_frames: int, precision: str = "w8a8", **seconds: float) -> Answer:
    return Answer(
        query=Query(query_id="1", question="?"),
        finish_reason=FinishReason.STOP,
        frames=tuple(FrameRef(stamp_ns=i, camera="camera") for i in range(num_frames)),
        timings=Timings(**seconds),
        counts=Counts(num_frames_encoded=num_frames, num_visual_tokens=90, num_prompt_tokens=100, num_answer_tokens=7),
        precision=precision,
    )


@pytest.mark.parametrize(
    ("slow", "said"),
    [
        (answer(1, vision_s=31.2, prefill_s=7), "encoding 1 frames took 31.2 of 38.2 s; shorter with max_tiles 1: one"),
        (answer(8, vision_s=9), "encoding 8 frames took 9.0 of 9.0 s; shorter with a smaller num_frames"),
        (answer(8, prefill_s=6), "reading 100 tokens, 90 of them visual, took 6.0 of 6.0 s"),
        (answer(8, decode_s=6), "writing 7 tokens took 6.0 of 6.0 s; shorter with a smaller max_tokens"),
        (
            answer(8, "fp32", vision_s=9),
            "a smaller num_frames, or a build (nvila build), or backend cpu with precision",
        ),
    ],
)
def test_slow_answer_says_where_its_time_went(slow: Answer, said: str) -> None:
    assert said in explain(slow)


def test_fast_answer_and_one_that_waited_say_nothing() -> None:
    assert explain(answer(8, vision_s=2, prefill_s=1, decode_s=1, queue_s=99, total_s=103)) == ""
