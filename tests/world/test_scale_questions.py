"""Questions about small things and quick events are true, balanced, held out, and beyond what few frames tell."""

from collections import Counter

import numpy as np
import pytest

from nvila_ros.world.events import MAX_SMALL, sample_event_scene
from nvila_ros.world.questions import EVAL_KINDS, ask, eval_case, name_of
from nvila_ros.world.scale_questions import (
    CLIP_KINDS,
    EVAL_CLIP_FRAMES,
    EVAL_CLIP_S,
    SCALE_KINDS,
    SMALL_KINDS,
    eval_scale_case,
    event_turns,
)
from nvila_ros.world.scene import DIRECTIONS, Object, scene_rng

CASES = {kind: [eval_scale_case(kind, index) for index in range(200)] for kind in SCALE_KINDS}


def named(objects: tuple[Object, ...], text: str) -> list[Object]:
    return [obj for obj in objects if name_of(obj) in text]


@pytest.mark.parametrize("case", CASES["order"], ids=lambda case: "")
def test_order_is_that_of_the_event_times(case) -> None:
    times = {name_of(obj): obj.appears_s for obj in case.scene.objects}
    pair = sorted((t_s, name) for name, t_s in times.items() if 0 < t_s < EVAL_CLIP_S)

    assert len(pair) == 2
    assert case.question.answer == pair[0][1]
    assert len(named(case.scene.objects, case.question.text)) in (0, 2)


@pytest.mark.parametrize("case", CASES["jump"], ids=lambda case: "")
def test_jump_is_that_of_the_one_named(case) -> None:
    (obj,) = named(case.scene.objects, case.question.text)

    assert case.question.answer == obj.jump_direction


@pytest.mark.parametrize("kind", SCALE_KINDS)
def test_suite_is_fixed_and_balanced(kind: str) -> None:
    counts = Counter(case.question.answer for case in CASES[kind])

    assert CASES[kind][17] == eval_scale_case(kind, 17)
    assert all(case.question.kind == kind for case in CASES[kind])
    if kind == "jump":
        assert set(counts) == set(DIRECTIONS)
    if kind == "small-count":
        assert set(counts) == {str(k) for k in range(1, MAX_SMALL + 1)}
    assert kind == "order" or max(counts.values()) < 2.5 * min(counts.values())


def test_the_pair_is_named_with_the_first_in_front_as_often_as_behind() -> None:
    texts = [case.question for case in CASES["order"] if "first," in case.question.text]

    share = np.mean([text.text.split("first, the ")[1].startswith(text.answer) for text in texts])
    assert share == pytest.approx(0.5, abs=0.15)


def test_no_scene_is_shared_with_another_case() -> None:
    seeds = [case.scene.seed for cases in CASES.values() for case in cases]
    usual = {eval_case(kind, index).scene.seed for kind in EVAL_KINDS for index in range(200)}

    assert len(set(seeds)) == len(seeds)
    assert not usual & set(seeds)


def test_clips_are_long_and_small_things_are_asked_of_one_frame() -> None:
    for kind in CLIP_KINDS:
        times_s = CASES[kind][0].times_s
        assert (len(times_s), times_s[0], times_s[-1]) == (EVAL_CLIP_FRAMES, 0.0, EVAL_CLIP_S)
    assert all(CASES[kind][0].times_s == (0.0,) for kind in SMALL_KINDS)


@pytest.mark.parametrize(
    ("num_frames", "low", "high"), [(4, 0.1, 0.35), (8, 0.4, 0.65), (16, 0.9, 1.0), (32, 1.0, 1.0)]
)
def test_few_frames_seldom_lie_between_two_events(num_frames: int, low: float, high: float) -> None:
    told = []
    for case in CASES["order"]:
        seen = [[obj.is_visible(t) for t in np.linspace(0, EVAL_CLIP_S, num_frames)] for obj in case.scene.objects]
        counts = [sum(row) for row in seen if not all(row)]
        told.append(len(set(counts)) == 2)

    assert low <= np.mean(told) <= high


def test_a_scene_without_a_pair_has_no_order() -> None:
    scene = sample_event_scene(scene_rng(0), aspect=1.0, duration_s=EVAL_CLIP_S, has_pair=False)

    assert ask(scene_rng(0), scene, "order") is None


def test_a_conversation_about_events_asks_the_order_and_each_jump_once() -> None:
    for seed in range(50):
        scene = sample_event_scene(scene_rng(seed), aspect=1.0, duration_s=EVAL_CLIP_S, has_pair=True)
        turns = event_turns(scene_rng(seed), scene)
        kinds = Counter(turn.kind for turn in turns)

        assert len({turn.text for turn in turns}) == len(turns)
        assert kinds["order"] == 1
        assert kinds["jump"] == len(scene.objects) - 2
