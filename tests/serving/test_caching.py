"""What is kept between questions changes no answer: caches on against caches off, token for token."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvila_ros.errors import QueryError
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.request import Request, StopWork
from nvila_ros.runtime.onnxruntime.engine import load
from nvila_ros.serving.pipeline import CacheLimits, VisionLanguageModel
from nvila_ros.types import Answer, FinishReason, Frame, Query
from nvila_ros.visual.frame_cache import ENTRY_BYTES
from tests.golden_cases import GOLDEN

QUESTIONS = ("What is it?", "What is it", "How many are there?", "Describe the image.", "stop")
SCHEMA = (
    '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": false}'
)
KINDS: dict[str, dict[str, Any]] = {
    "text": {},
    "choices": {"choices": ("left", "right", "in the middle of it")},
    "yes_no": {"answer_type": "yes_no"},
    "integer": {"answer_type": "integer", "minimum": -3, "maximum": 5},
    "json": {"answer_type": "json", "json_schema": SCHEMA},
}
ALL, NONE = CacheLimits(), CacheLimits(frame_bytes=0, num_prefixes=0)
NUM_FRAMES = 6
FRAME_BYTES = ENTRY_BYTES + 13 * 9 * 64 * 4  # of one image that is cut into twelve tiles and a thumbnail


@functools.cache
def engine(name: str) -> Any:
    source = open_checkpoint(GOLDEN / name / "ckpt")
    return load(source, threads=1)


def make(name: str = "lite", limits: CacheLimits = ALL) -> VisionLanguageModel:
    tokenizer = ChatTokenizer.from_folder(GOLDEN / name / "ckpt" / "llm")
    return VisionLanguageModel(engine(name), tokenizer, backend="onnxruntime", limits=limits)


@functools.cache
def keeps_nothing(name: str) -> VisionLanguageModel:
    return make(name, NONE)


def frame(number: int) -> Frame:
    """Frames 0 and 1 differ in a single pixel, by one."""
    image = np.random.default_rng(max(number, 1)).integers(1, 256, (48, 64, 3), np.uint8)
    if number == 0:
        image[0, 0, 0] -= 1
    return Frame(image=image, stamp_ns=number)


def query(question: str, query_id: str = "q", **fields: Any) -> Query:
    return Query(**{"query_id": query_id, "question": question, "max_tokens": 6, **fields})


@functools.cache
def cold(name: str, numbers: tuple[int, ...], question: str, kind: str) -> Answer:
    """The answer of a model that keeps nothing."""
    asked = query(question, **KINDS[kind])
    return keeps_nothing(name).answer(asked, [frame(number) for number in numbers])


def ask_all(
    vlm: VisionLanguageModel, queries: Sequence[Query], numbers: Sequence[int], stop: Callable[[], FinishReason | None]
) -> dict[str, Answer]:
    answers: list[Answer] = []
    asks = [Request(asked, answers.append, should_stop=stop) for asked in queries]
    vlm.answer_all(asks, [frame(number) for number in numbers])
    assert len(answers) == len(queries)
    return {answer.query.query_id: answer for answer in answers}


@dataclass(frozen=True)
class Step:
    """Questions asked together about some frames, and how many looks later they are canceled."""

    numbers: tuple[int, ...]
    asked: tuple[tuple[str, str], ...]
    cancel_after: int | None


STEPS = st.builds(
    Step,
    numbers=st.lists(st.integers(0, NUM_FRAMES - 1), max_size=3, unique=True).map(lambda n: tuple(sorted(n))),
    asked=st.lists(
        st.tuples(st.sampled_from(QUESTIONS), st.sampled_from([kind for kind in KINDS if kind != "json"])),
        min_size=1,
        max_size=3,
    ).map(tuple),
    cancel_after=st.none() | st.integers(0, 12),
)
LIMITS = st.builds(
    CacheLimits,
    frame_bytes=st.sampled_from([0, FRAME_BYTES, 3 * FRAME_BYTES, 1 << 30]),
    num_prefixes=st.integers(0, 3),
)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(name=st.sampled_from(["lite", "video"]), limits=LIMITS, steps=st.lists(STEPS, min_size=2, max_size=5))
def test_answers_are_those_of_a_model_that_keeps_nothing(name: str, limits: CacheLimits, steps: list[Step]) -> None:
    vlm = make(name, limits)
    for step in steps:
        queries = [query(text, str(i), **KINDS[kind]) for i, (text, kind) in enumerate(step.asked)]
        looks = itertools.count()

        answers = ask_all(vlm, queries, step.numbers, functools.partial(canceled, looks, step.cancel_after))

        for asked, (text, kind) in zip(queries, step.asked, strict=True):
            got, want = answers[asked.query_id], cold(name, step.numbers, text, kind)
            if got.finish_reason is FinishReason.CANCELED:
                assert want.text.startswith(got.text.rstrip("\ufffd"))  # half a character
                continue
            assert (got.text, got.finish_reason, got.frames) == (want.text, want.finish_reason, want.frames)
            assert got.choices == want.choices
            assert got.probabilities == pytest.approx(want.probabilities, abs=1e-4)
            assert got.counts.num_prompt_tokens == want.counts.num_prompt_tokens


def test_json_beside_other_answers_is_what_it_is_alone() -> None:
    kinds = ("json", "text", "yes_no", "json")
    queries = [query("How many are there?", str(i), **KINDS[kind]) for i, kind in enumerate(kinds)]

    answers = ask_all(make(), queries, [1], lambda: None)

    for i, kind in enumerate(kinds):
        assert answers[str(i)].text == cold("lite", (1,), "How many are there?", kind).text


def canceled(looks: itertools.count[int], after: int | None) -> FinishReason | None:
    return FinishReason.CANCELED if after is not None and next(looks) >= after else None


def test_second_question_reads_only_what_is_new() -> None:
    vlm = make()
    first = vlm.answer(query("What is it?"), [frame(1)])

    second = vlm.answer(query("How many are there?"), [frame(1)])

    assert (first.counts.num_frames_encoded, second.counts.num_frames_encoded) == (1, 0)
    assert first.counts.num_reused_tokens == 0
    assert second.counts.num_reused_tokens > second.counts.num_visual_tokens
    assert second.counts.num_prompt_tokens - second.counts.num_reused_tokens < 25


def test_one_other_pixel_reuses_nothing_of_the_picture() -> None:
    vlm = make()
    vlm.answer(query("What is it?"), [frame(1)])

    answer = vlm.answer(query("What is it?"), [frame(0)])

    assert answer.counts.num_frames_encoded == 1
    assert answer.counts.num_reused_tokens < 40  # what stands before the picture
    assert answer.text == cold("lite", (0,), "What is it?", "text").text


def test_new_frame_in_a_window_costs_one_tower_pass() -> None:
    vlm = make("video")
    vlm.answer(query("What is it?"), [frame(number) for number in range(8)])

    answer = vlm.answer(query("What is it?"), [frame(number) for number in range(1, 9)])

    assert answer.counts.num_frames_encoded == 1


def test_frame_looked_at_ahead_is_known_when_it_is_asked_about() -> None:
    vlm = make()
    vlm.prefetch(frame(2), is_alone=True)

    answer = vlm.answer(query("What is it?"), [frame(2)])

    assert answer.counts.num_frames_encoded == 0
    assert answer.text == cold("lite", (2,), "What is it?", "text").text


def test_tiles_are_encoded_as_many_at_once_as_the_engine_says(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    vision = engine("lite").vision

    def count(tile_NCHW: np.ndarray) -> np.ndarray:
        sizes.append(len(tile_NCHW))
        return vision(tile_NCHW)

    monkeypatch.setattr(engine("lite"), "batch_tiles", 5)
    monkeypatch.setattr(engine("lite"), "vision", count)
    answer = make(limits=NONE).answer(query("What is it?"), [frame(2)])

    assert sizes == [5, 5, 3]
    assert answer.text == cold("lite", (2,), "What is it?", "text").text


def test_looking_ahead_stops_between_tiles() -> None:
    vlm = make()

    with pytest.raises(StopWork):
        vlm.prefetch(frame(2), is_alone=True, should_stop=lambda: True)

    assert vlm.counters()["frames_encoded"] == 0


def test_conversation_goes_on_about_its_frames_and_reuses_what_was_said() -> None:
    vlm = make()
    first = vlm.answer(query("What is it?", conversation="c"), [frame(1)])
    follow = query("How many are there?", conversation="c", is_follow_up=True)
    assert vlm.has_conversation(follow)

    second = vlm.answer(follow, [])

    assert second.frames == first.frames
    assert second.counts.num_visual_tokens == first.counts.num_visual_tokens
    assert second.counts.num_reused_tokens >= first.counts.num_prompt_tokens
    other = make(limits=NONE)
    other.answer(query("What is it?", conversation="x"), [frame(1)])
    assert other.answer(query("How many are there?", conversation="x", is_follow_up=True), []).text == second.text


def test_canceled_turn_is_not_part_of_its_conversation() -> None:
    vlm = make()
    vlm.answer(query("What is it?", conversation="c"), [frame(1)], should_stop=lambda: FinishReason.CANCELED)

    assert not vlm.has_conversation(query("And?", conversation="c", is_follow_up=True))


def test_conversations_are_forgotten_in_order_and_bounded() -> None:
    vlm = make()
    for i in range(20):
        vlm.answer(query("Hi", conversation=str(i)), [])

    known = [i for i in range(20) if vlm.has_conversation(query("?", conversation=str(i), is_follow_up=True))]

    assert known == list(range(4, 20))


def test_conversation_tells_its_frames_in_the_order_of_their_capture() -> None:
    vlm = make()
    vlm.answer(query("What is it?", conversation="c"), [frame(5)])

    back = vlm.answer(query("And before?", conversation="c"), [frame(2)])

    assert [each.stamp_ns for each in back.frames] == [2, 5]


def test_conversation_beyond_its_bytes_takes_no_more_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = make()
    vlm.answer(query("What is it?", conversation="c"), [frame(1)])
    monkeypatch.setattr("nvila_ros.serving.conversations.MAX_BYTES", vlm._conversations.num_bytes * 3 // 2)

    with pytest.raises(QueryError, match="these frames are too many; ask on about those that it has"):
        vlm.answer(query("What is it?", conversation="c"), [frame(2)])
    assert vlm.answer(query("And?", conversation="c", is_follow_up=True), []).finish_reason.is_answered


def test_one_bad_question_among_several_is_refused_alone() -> None:
    vlm = make()
    queries = [query("What is it?", "good"), query(" ", "empty"), query("What is it?", "long", max_tokens=32760)]

    answers = ask_all(vlm, queries, [1], lambda: None)

    assert answers["good"].text == cold("lite", (1,), "What is it?", "text").text
    assert {answers[name].finish_reason for name in ("empty", "long")} == {FinishReason.INVALID}
    assert "begin a new conversation" in answers["long"].error


def test_near_repeats_share_tokens_only_where_a_threshold_allows_it() -> None:
    still = [Frame(image=np.full((48, 64, 3), 100 + k, np.uint8), stamp_ns=k) for k in range(3)]
    never, shares = make(), make(limits=CacheLimits(repeat_threshold=0.02))
    encoded = [
        [vlm.answer(query("What is it?"), [frame]).counts.num_frames_encoded for frame in still]
        for vlm in (never, shares)
    ]

    assert encoded == [[1, 1, 1], [1, 0, 0]]


def test_frames_of_two_cameras_are_two_though_stamps_and_pixels_are_the_same() -> None:
    vlm = make("video")
    pair = [dataclasses.replace(frame(1), camera=camera) for camera in ("left", "right")]

    answers = [vlm.answer(query("What is it?"), frames) for frames in (pair, pair, pair[1:], pair[:1])]

    assert [answer.counts.num_frames_encoded for answer in answers] == [2, 0, 0, 0]


def test_near_repeat_never_takes_the_tokens_of_another_camera() -> None:
    vlm = make(limits=CacheLimits(repeat_threshold=0.02))
    image = frame(1).image
    for number, (camera, num_encoded) in enumerate([("left", 1), ("right", 1), ("left", 0), ("right", 0)]):
        asked = [Frame(image=image, stamp_ns=number, camera=camera)]
        assert vlm.answer(query("What is it?"), asked).counts.num_frames_encoded == num_encoded, (number, camera)
    assert vlm.counters()["frames_encoded"] == 2


class TopOnly:
    """The engine, as one on a device is: the likeliest tokens come first, all logits where they are fetched."""

    def __init__(self, engine: Any, num_top: int) -> None:
        self._engine, self._num_top = engine, num_top
        self._logits_V = np.empty(0, np.float32)
        self.num_fetched = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def embed(self, ids_L: np.ndarray) -> np.ndarray:
        return self._engine.embed(ids_L)

    def forward_top(self, embeds_LD: np.ndarray, cache: Any) -> tuple[np.ndarray, np.ndarray]:
        self._logits_V = self._engine.forward(embeds_LD, cache)
        ids = np.argsort(-self._logits_V, kind="stable")[: self._num_top]
        return ids, self._logits_V[ids]

    def fetch_logits(self) -> np.ndarray:
        self.num_fetched += 1
        return self._logits_V


@pytest.mark.parametrize(("num_top", "never", "is_fetched"), [(64, False, False), (1, True, True), (400, True, False)])
def test_likeliest_tokens_of_a_device_tell_the_same_text(num_top: int, never: bool, is_fetched: bool) -> None:
    tokenizer = ChatTokenizer.from_folder(GOLDEN / "lite" / "ckpt" / "llm")
    top = TopOnly(engine("lite"), num_top)
    vlms = [VisionLanguageModel(each, tokenizer, backend="any") for each in (engine("lite"), top)]
    if never:  # most of what the model would say
        for vlm in vlms:
            vlm._generator._never_untimed = np.arange(250)

    want, got = (vlm.answer(query("What is it?"), [frame(1)]) for vlm in vlms)

    assert (got.text, got.finish_reason) == (want.text, want.finish_reason)
    assert (top.num_fetched > 0) == is_fetched
