"""A long window that slides: what is kept of its groups and its prompt changes no answer, and spares what it says."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.runtime.onnxruntime.engine import load
from nvila_ros.serving.pipeline import CacheLimits, VisionLanguageModel
from nvila_ros.types import NS_PER_S, Answer, Query, RawFrame, RawImage
from nvila_ros.video.buffer import FrameBuffer
from nvila_ros.video.deferred import decode_raw, select_whole
from nvila_ros.visual.frame_cache import ENTRY_BYTES
from tests.golden_cases import GOLDEN

GROUP, NUM_FRAMES, WINDOW_S = 8, 32, 24.0  # three groups of ticks of one second, and one as the stride
TOKEN_BYTES = 16 * 64 * 4
ROOM = GROUP * (ENTRY_BYTES + TOKEN_BYTES)
KINDS: dict[str, dict[str, Any]] = {
    "text": {},
    "choices": {"choices": ("left", "right", "in the middle of it")},
    "yes_no": {"answer_type": "yes_no"},
}
ALL, NONE = CacheLimits(), CacheLimits(frame_bytes=0, num_prefixes=0)


@functools.cache
def engine(name: str) -> Any:
    return load(open_checkpoint(GOLDEN / name / "ckpt"), threads=1)


def make(limits: CacheLimits = ALL, name: str = "video") -> VisionLanguageModel:
    tokenizer = ChatTokenizer.from_folder(GOLDEN / name / "ckpt" / "llm")
    return VisionLanguageModel(engine(name), tokenizer, backend="onnxruntime", limits=limits)


@functools.cache
def frame(tick: int) -> RawFrame:
    """One of two frames a second, no two alike."""
    pixels = np.random.default_rng(tick).integers(0, 256, 48 * 64 * 3, np.uint8)
    image = RawImage(data=pixels, encoding="rgb8", width=64, height=48, step=3 * 64)
    return RawFrame(image=image, stamp_ns=tick * NS_PER_S // 2)


def filmed(first: int, end: int) -> FrameBuffer[RawFrame]:
    buffer: FrameBuffer[RawFrame] = FrameBuffer(1000.0, 1 << 30)
    for tick in range(first, end):
        buffer.push(frame(tick))
    return buffer


def query(question: str = "What is it?", **fields: Any) -> Query:
    asked = {"window_s": WINDOW_S, "num_frames": NUM_FRAMES, "sampling": "anchored", "max_tokens": 4}
    return Query(**{"query_id": "q", "question": question, "cameras": ("camera",)} | asked | fields)


def ask(vlm: VisionLanguageModel, buffer: FrameBuffer[RawFrame], asked: Query) -> Answer:
    return vlm.answer(asked, select_whole(buffer, asked, decode_raw, frames_per_group=vlm.frames_per_group))


@functools.cache
def cold(name: str, end: int, question: str, kind: str, sampling: str) -> Answer:
    """The answer of a model that keeps nothing."""
    return ask(make(NONE, name), filmed(0, end), query(question, sampling=sampling, **KINDS[kind]))


STEPS = st.tuples(
    st.integers(0, 40), st.sampled_from(["What is it?", "stop"]), st.sampled_from(list(KINDS)), st.booleans()
)


@settings(max_examples=10, deadline=None)
@given(
    name=st.sampled_from(["video", "lite"]),  # eight frames are averaged, none are
    frame_bytes=st.sampled_from([0, ROOM, 4 * ROOM, 1 << 30]),
    num_prefixes=st.integers(0, 3),
    steps=st.lists(STEPS, min_size=2, max_size=5),
)
@example(
    name="video",
    frame_bytes=1 << 30,
    num_prefixes=2,
    steps=[(20, "stop", "text", True), (1, "stop", "yes_no", True)] * 3,
)
def test_answers_are_those_of_a_model_that_keeps_nothing(
    name: str, frame_bytes: int, num_prefixes: int, steps: list[tuple[int, str, str, bool]]
) -> None:
    vlm = make(CacheLimits(frame_bytes=frame_bytes, num_prefixes=num_prefixes), name)
    end = 1
    for step, question, kind, is_anchored in steps:
        end += step
        sampling = "anchored" if is_anchored else "uniform"

        got = ask(vlm, filmed(0, end), query(question, sampling=sampling, **KINDS[kind]))

        want = cold(name, end, question, kind, sampling)
        assert (got.text, got.finish_reason, got.frames) == (want.text, want.finish_reason, want.frames)
        assert got.probabilities == pytest.approx(want.probabilities, abs=1e-4)
        assert got.counts.num_prompt_tokens == want.counts.num_prompt_tokens
        assert got.counts.num_frames_dropped == want.counts.num_frames_dropped
        assert vlm.counters()["frame_cache_bytes"] <= frame_bytes


def test_each_frame_passes_the_tower_once_and_only_the_newest_group_is_read_anew() -> None:
    vlm, buffer = make(), filmed(0, 63)
    first = ask(vlm, buffer, query())
    tokens_per_group = first.counts.num_visual_tokens // (len(first.frames) // GROUP)
    encoded, read = [], []
    for tick in range(63, 111):
        buffer.push(frame(tick))
        answer = ask(vlm, buffer, query("How many are there?"))
        encoded.append(answer.counts.num_frames_encoded)
        has_moved = answer.frames[0] != first.frames[0]
        first = answer
        if not has_moved:
            read.append(answer.counts.num_prompt_tokens - answer.counts.num_reused_tokens)

    assert max(encoded) == 1, "a new frame is all that the tower sees"
    assert len(read) == 48 - 3, "a stride of eight seconds begins three times in 24 s"
    assert sum(n <= tokens_per_group + 40 for n in read) >= len(read) - 3, "one group and the question"
    assert max(read) <= 2 * (tokens_per_group + 40), "two where a new group has begun"


def test_frames_of_groups_that_have_passed_make_room_first() -> None:
    """Eight frames and a few averages fit; 32 frames do not."""
    limits = CacheLimits(frame_bytes=ROOM + NUM_FRAMES // GROUP * (ENTRY_BYTES + TOKEN_BYTES))
    anchored, uniform = make(limits), make(limits)
    for vlm, sampling in ((anchored, "anchored"), (uniform, "uniform")):
        counts = [
            ask(vlm, filmed(0, end), query(sampling=sampling, window_s=WINDOW_S)).counts.num_frames_encoded
            for end in (63, 64, 65)
        ]
        assert counts[0] >= 24
        assert counts[1:] == [1, 1] if sampling == "anchored" else min(counts[1:]) >= 24
    assert anchored.remark() == ""
    assert f"a question about {NUM_FRAMES} frames needs {4 * ROOM} bytes of visual tokens" in uniform.remark()
    assert f"more than frame_cache_bytes = {limits.frame_bytes}" in uniform.remark()


def test_frames_that_are_not_averaged_stay_a_prefix_too() -> None:
    vlm, buffer = make(name="lite"), filmed(0, 63)
    before = ask(vlm, buffer, query())
    for tick in range(63, 70):
        buffer.push(frame(tick))
        answer = ask(vlm, buffer, query())
        assert answer.counts.num_frames_encoded == 1
        if answer.frames[0] == before.frames[0]:
            num_read = answer.counts.num_prompt_tokens - answer.counts.num_reused_tokens
            assert num_read <= 2 * (9 + 1) + 40, "two frames and the question"
        before = answer


def test_when_is_asked_about_groups_that_are_known() -> None:
    vlm, buffer = make(CacheLimits(frame_bytes=2 * ROOM)), filmed(0, 63)
    ask(vlm, buffer, query())
    num_encoded = vlm.counters()["frames_encoded"]

    asked = query("Is there a person?", answer_type="when")  # to which this model says no

    answer, want = (ask(each, buffer, asked) for each in (vlm, make(NONE)))

    assert vlm.counters()["frames_encoded"] == num_encoded
    assert answer.text == want.text
    assert answer.frames == want.frames


def test_no_cache_of_frames_is_a_choice_and_not_remarked() -> None:
    vlm = make(NONE)
    ask(vlm, filmed(0, 64), query())
    assert vlm.remark() == ""


def test_answer_names_the_frames_that_it_was_shown_and_the_window_is_among_them() -> None:
    for end in itertools.chain(range(60, 70), range(100, 110)):
        answer = ask(make(NONE), filmed(0, end), query(max_tokens=1))
        stamps = [each.stamp_ns for each in answer.frames]
        assert len(stamps) <= NUM_FRAMES
        assert stamps[-1] == (end - 1) * NS_PER_S // 2
        assert stamps[-1] - stamps[0] >= (WINDOW_S - 1) * NS_PER_S
        assert stamps[-1] - stamps[0] < 4 / 3 * WINDOW_S * NS_PER_S
