"""What is left out of a clip is near what is shown, and a clip that grows keeps what it showed."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.errors import ConfigError
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.spec import Overrides
from nvila_ros.serving.pipeline import VisionLanguageModel, load_model
from nvila_ros.types import Answer, Frame, Query
from nvila_ros.visual.changes import SHOW_ALL, ChangeRule, choose_changed
from tests.golden_cases import GOLDEN
from tests.strategies import lists_of_all_sizes

RULES = st.builds(ChangeRule, threshold=st.sampled_from([0.01, 0.1, 0.5, 1.5]), key_every=st.integers(1, 9))
STEPS = lists_of_all_sizes(st.integers(0, 3), min_size=1, max_size=20)


def clip(steps: list[int]) -> np.ndarray:
    """Frames of three tokens on a circle; each is turned by so many tenths of a radian from the one before."""
    angle_F = np.cumsum(steps) / 10
    angle_FG = np.stack([np.zeros(len(steps)), angle_F, np.ones(len(steps))], axis=1)
    scale_F11 = np.linspace(1, 5, len(steps))[:, None, None]  # lengths mean nothing
    return (np.stack([np.cos(angle_FG), np.sin(angle_FG)], axis=-1) * scale_F11).astype(np.float32)


def distance(one: np.ndarray, two: np.ndarray) -> float:
    cosines = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in zip(one, two, strict=True)]
    return 1 - min(cosines)


@given(steps=STEPS, rule=RULES)
def test_frames_are_left_out_exactly_where_they_are_near_the_last_one_shown(steps: list[int], rule: ChangeRule) -> None:
    visual_FGD = clip(steps)

    shown = choose_changed(visual_FGD, rule)

    for index in range(len(steps)):
        before = max((each for each in shown if each < index), default=index)
        is_near = distance(visual_FGD[index], visual_FGD[before]) <= rule.threshold + 1e-6
        if index % rule.key_every == 0 or index == len(steps) - 1:
            assert index in shown
        elif index in shown:
            assert distance(visual_FGD[index], visual_FGD[before]) > rule.threshold - 1e-6
        else:
            assert is_near
    assert shown == sorted(set(shown))


@given(steps=STEPS, more=STEPS, rule=RULES)
def test_clip_that_grows_keeps_what_it_showed_but_for_its_newest_frame(
    steps: list[int], more: list[int], rule: ChangeRule
) -> None:
    grown = clip([*steps, *more])
    before, after = choose_changed(grown[: len(steps)], rule), choose_changed(grown, rule)

    assert after[: len(before) - 1] == before[:-1]


def test_nothing_is_left_out_by_default() -> None:
    assert choose_changed(clip([0] * 5), SHOW_ALL) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("threshold", "key_every", "rule"),
    [
        (-0.1, 8, r"change_threshold must lie in \[0, 2\], got -0.1"),
        (float("nan"), 8, r"change_threshold must lie in \[0, 2\], got nan"),
        (0.1, 0, "key_every must be at least 1 frame, got 0"),
    ],
)
def test_values_out_of_range_are_refused(threshold: float, key_every: int, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        ChangeRule(threshold, key_every)


@functools.cache
def vlm(name: str, threshold: float) -> VisionLanguageModel:
    overrides = Overrides(change_threshold=threshold, key_every=100)
    return load_model(str(GOLDEN / name / "ckpt"), backend="onnxruntime", overrides=overrides)


def ask(name: str, threshold: float, greys: list[int], cameras: tuple[str, ...] = ("camera",)) -> Answer:
    frames = [
        Frame(image=picture(grey), stamp_ns=stamp, camera=cameras[stamp % len(cameras)])
        for stamp, grey in enumerate(greys)
    ]
    return vlm(name, threshold).answer(Query(query_id="q", question="What is it?", max_tokens=2), frames)


@functools.cache
def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)


@pytest.mark.parametrize(
    ("name", "pictures", "shown"),
    [
        ("lite", [1, 1, 1, 2, 2, 1, 1], [0, 3, 5, 6]),
        ("video", [1] * 16 + [2] * 8 + [2] * 8, [*range(8), *range(16, 24), *range(24, 32)]),
    ],
)
def test_answer_names_the_frames_that_were_shown_and_counts_the_others(
    name: str, pictures: list[int], shown: list[int]
) -> None:
    spec = open_checkpoint(GOLDEN / name / "ckpt").spec
    answer, whole = ask(name, 1e-6, pictures), ask(name, 0.0, pictures)

    assert [frame.stamp_ns for frame in answer.frames] == shown
    assert answer.counts.num_frames_dropped == len(pictures) - len(shown)
    assert answer.counts.num_visual_tokens * len(pictures) == whole.counts.num_visual_tokens * len(shown)
    assert len(whole.frames) == len(pictures)
    assert spec.video_mode == "video"


def test_answer_is_that_about_the_shown_frames_alone() -> None:
    kept: Any = ask("lite", 1e-6, [1, 1, 1, 2, 2, 2])
    frames = [Frame(image=picture(number), stamp_ns=number) for number in (1, 2, 2)]
    want = vlm("lite", 0.0).answer(Query(query_id="q", question="What is it?", max_tokens=2), frames)

    assert (kept.text, kept.counts.num_prompt_tokens) == (want.text, want.counts.num_prompt_tokens)


def test_anchored_clip_leaves_out_the_same_groups_and_grows_behind_them() -> None:
    model = vlm("video", 1e-6)
    numbers = [1] * 16 + [2] * 16 + [3] * 8

    def ask_of(num_frames: int, sampling: str) -> Answer:
        frames = [Frame(image=picture(number), stamp_ns=stamp) for stamp, number in enumerate(numbers[:num_frames])]
        asked = Query(query_id="q", question="What is it?", max_tokens=2, sampling=sampling)
        return model.answer(asked, frames)

    plain, anchored = ask_of(40, "uniform"), ask_of(40, "anchored")
    assert [frame.stamp_ns for frame in anchored.frames] == [*range(8), *range(16, 24), *range(32, 40)]
    assert (anchored.text, anchored.frames) == (plain.text, plain.frames)

    model = load_model(
        str(GOLDEN / "video" / "ckpt"),
        backend="onnxruntime",
        overrides=Overrides(change_threshold=1e-6, key_every=100),
    )
    ask_of(24, "anchored")
    grown = ask_of(32, "anchored")
    assert grown.counts.num_reused_tokens > 16  # of the first group at least


def test_frames_of_several_cameras_are_all_shown() -> None:
    assert ask("lite", 1e-6, [1] * 6, ("left", "right")).counts.num_frames_dropped == 0
