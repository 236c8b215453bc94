"""Questions are well defined, their answers true, and the evaluation suite balanced, fixed and held out."""

from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.world.question_kinds import RELATION_MARGIN, RELATIONS
from nvila_ros.world.questions import (
    ANSWERS,
    CLIP_KINDS,
    EVAL_CLIP_FRAMES,
    EVAL_CLIP_S,
    EVAL_KINDS,
    KINDS,
    PHRASINGS,
    STILL_KINDS,
    Question,
    all_texts,
    ask,
    conversation,
    eval_case,
    is_correct,
    name_of,
    place_of,
)
from nvila_ros.world.scene import (
    COLORS,
    CONTOURS,
    SHAPES,
    Object,
    Scene,
    scene_rng,
)
from nvila_ros.world.scene_sampler import sample_scene

SEEDS = st.integers(0, 2**31 - 1)


def draw(seed: int, *, is_moving: bool | None = None) -> Scene:
    return sample_scene(scene_rng(seed), aspect=4 / 3, duration_s=2.0, is_moving=is_moving)


def obj(color: str, shape: str, x: float, y: float, vx: float = 0.0, vy: float = 0.0) -> Object:
    return Object(shape, color, COLORS[color], 0.1, x, y, vx, vy, 0.0)


def scene_of(*objects: Object) -> Scene:
    return replace(draw(0), objects=objects)


def meant(scene: Scene, text: str) -> list[Object]:
    """Objects that fit every colour and shape the text names, of questions that name one."""
    words = set(text.strip("?.").split())
    colors, shapes = words & set(COLORS), words & set(SHAPES)
    return [o for o in scene.objects if colors <= {o.color} and shapes <= {o.shape}]


def check_truth(scene: Scene, question: Question, t_s: float | None) -> None:
    """Answer the question anew from its text alone."""
    if question.kind in ("count-color", "relation", "size", "order", "vanish"):
        check_comparison(scene, question, t_s)
        return
    found = meant(scene, question.text)
    if question.kind == "count":
        assert question.answer == str(len(scene.objects))
    elif question.kind == "exist":
        assert question.answer == ("yes" if found else "no")
    elif question.kind != "describe":
        (only,) = found
        x, y = only.position(t_s or 0.0)
        truths = {
            "color": only.color,
            "shape": only.shape,
            "motion": only.direction,
            "where": place_of(x, y),
        }
        assert question.answer == truths[question.kind]


def check_comparison(scene: Scene, question: Question, t_s: float | None) -> None:
    """Answer a question about several objects anew."""
    names = {name_of(each): each for each in scene.objects}
    if question.kind == "count-color":
        (color,) = set(question.text.strip("?").split()) & set(COLORS)
        assert question.answer == str(sum(each.color == color for each in scene.objects))
    elif question.kind == "relation":
        (relation,) = [each for each in RELATIONS if f" {each} the " in question.text]
        before, behind = question.text.split(f" {relation} the ")
        (first,), (second,) = meant(scene, before), meant(scene, behind)
        (x, y), (other_x, other_y) = first.position(t_s), second.position(t_s)
        beyond = {"left of": other_x - x, "right of": x - other_x, "above": other_y - y, "below": y - other_y}[relation]
        assert abs(beyond) >= RELATION_MARGIN
        assert question.answer == ("yes" if beyond > 0 else "no")
    elif question.kind == "size":
        first, second = (names[name] for name in names if name in question.text)
        larger, smaller = (first, second) if name_of(first) == question.answer else (second, first)
        areas = [cv2.contourArea(np.float32(CONTOURS[each.shape][0] * each.size)) for each in (larger, smaller)]
        assert areas[0] >= 1.49 * areas[1]
    elif question.kind == "order":
        times = sorted((each.appears_s, name) for name, each in names.items() if each.appears_s > 0)
        assert times[0][1] == question.answer
        assert len(times) == 2
    else:
        assert [name for name, each in names.items() if each.vanishes_s < 1e9] == [question.answer]


@given(seed=SEEDS, kind=st.sampled_from(KINDS), t_s=st.none() | st.floats(0, 2))
def test_a_question_names_one_object_and_its_answer_is_true(seed: int, kind: str, t_s: float | None) -> None:
    scene = draw(seed)

    question = ask(scene_rng(seed + 1), scene, kind, t_s=t_s)

    if question is not None:
        assert question.kind == kind
        assert question.answer == question.answer.lower()
        assert kind not in ANSWERS or question.answer in ANSWERS[kind]
        check_truth(scene, question, t_s)


@given(seed=SEEDS, turns=st.integers(1, 12), t_s=st.none() | st.floats(0, 2))
def test_a_conversation_repeats_nothing_and_mixes_kinds(seed: int, turns: int, t_s: float | None) -> None:
    scene = draw(seed)

    questions = conversation(scene_rng(seed), scene, turns, t_s=t_s)

    assert len(questions) <= turns
    assert len({q.text for q in questions}) == len(questions)
    kinds = Counter(q.kind for q in questions)
    assert len(questions) < 4 or len(kinds) >= 2
    assert kinds["describe"] <= 1
    assert kinds["count"] <= 1
    for question in questions:
        check_truth(scene, question, t_s)


def test_a_conversation_keeps_to_the_kinds_asked_for() -> None:
    questions = conversation(scene_rng(0), draw(5), 6, ["exist", "count"])

    assert {q.kind for q in questions} == {"exist", "count"}


def test_colors_and_shapes_are_asked_only_of_a_single_bearer() -> None:
    scene = scene_of(obj("red", "circle", 0.2, 0.2), obj("blue", "circle", 0.8, 0.2), obj("red", "star", 0.5, 0.8))

    colors = {ask(scene_rng(k), scene, "color").answer for k in range(30)}
    shapes = {ask(scene_rng(k), scene, "shape").answer for k in range(30)}

    assert colors == {"red"}  # the star's
    assert shapes == {"circle"}  # the blue one's


def test_half_of_the_absent_things_share_a_color_or_a_shape_with_one_that_is_there() -> None:
    hard, answers = [], []
    for seed in range(1500):
        scene = draw(seed)
        question = ask(scene_rng(seed), scene, "exist")
        answers.append(question.answer)
        words = set(question.text.strip("?").split())
        if question.answer == "no":
            hard.append(any(o.color in words or o.shape in words for o in scene.objects))

    assert Counter(answers)["yes"] / len(answers) == pytest.approx(0.5, abs=0.05)
    assert sum(hard) / len(hard) == pytest.approx(0.5, abs=0.07)


@pytest.mark.parametrize(("x", "y", "place"), [(0.1, 0.1, "top left"), (0.5, 0.5, "center"), (0.9, 0.5, "right")])
def test_place_is_the_ninth_of_the_frame(x: float, y: float, place: str) -> None:
    question = ask(scene_rng(0), scene_of(obj("red", "ring", x, y)), "where")

    assert question is not None
    assert question.answer == place


def test_no_place_is_asked_near_a_border_or_of_a_moving_object_in_a_clip() -> None:
    near = scene_of(obj("red", "ring", 0.36, 0.5))
    moving = scene_of(obj("red", "ring", 0.1, 0.5, vx=0.2))

    assert ask(scene_rng(0), near, "where") is None
    assert ask(scene_rng(0), near, "describe") is None
    assert ask(scene_rng(0), moving, "where") is None
    assert ask(scene_rng(0), moving, "where", t_s=2.0).answer == "center"


def test_one_frame_shows_no_motion() -> None:
    moving = scene_of(obj("red", "ring", 0.1, 0.5, vx=0.2))

    assert ask(scene_rng(0), moving, "motion", t_s=1.0) is None
    assert ask(scene_rng(0), moving, "motion").answer == "right"
    assert ask(scene_rng(0), replace(scene_of(obj("red", "ring", 0.1, 0.5)), duration_s=0.0), "motion") is None


def test_description_goes_from_left_to_right() -> None:
    scene = scene_of(obj("blue", "square", 0.5, 0.5), obj("orange", "circle", 0.2, 0.2))
    moving = replace(scene, objects=(*scene.objects, obj("red", "star", 0.1, 0.7, vy=-0.1)))

    assert (
        ask(scene_rng(0), scene, "describe").answer == "an orange circle at the top left, a blue square at the center."
    )
    assert (
        ask(scene_rng(0), moving, "describe").answer
        == "a red star moving up, an orange circle standing still, a blue square standing still."
    )


def test_wanted_answer_is_given_or_nothing_is_asked() -> None:
    scene = scene_of(obj("red", "circle", 0.2, 0.2), obj("blue", "star", 0.8, 0.2))

    assert ask(scene_rng(0), scene, "color", answer="blue").answer == "blue"
    assert ask(scene_rng(0), scene, "color", answer="green") is None


@pytest.mark.parametrize("kind", EVAL_KINDS)
def test_evaluation_suite_is_balanced_and_true(kind: str) -> None:
    cases = [eval_case(kind, index) for index in range(300)]

    counts = Counter(case.question.answer for case in cases)
    if kind in ANSWERS:
        assert set(counts) == set(ANSWERS[kind])
        assert max(counts.values()) < 2.5 * min(counts.values())
    for case in cases:
        check_truth(case.scene, case.question, None if len(case.times_s) > 1 else case.times_s[0])
    assert cases[17] == eval_case(kind, 17)


def test_evaluation_shows_clips_for_what_happens_and_single_frames_else() -> None:
    for kind in CLIP_KINDS:
        clip = eval_case(kind, 0).times_s
        assert len(clip) == EVAL_CLIP_FRAMES
        assert (clip[0], clip[-1]) == (0.0, EVAL_CLIP_S)
    assert all(len(eval_case(kind, 0).times_s) == 1 for kind in STILL_KINDS)


@pytest.mark.parametrize("kind", ["order", "vanish"])
def test_events_of_the_suite_are_told_by_its_frames(kind: str) -> None:
    for case in (eval_case(kind, index) for index in range(200)):
        seen = {name_of(each): [each.is_visible(t) for t in case.times_s] for each in case.scene.objects}
        if kind == "order":
            starts = {name: track.index(True) for name, track in seen.items() if not track[0]}
            assert len(set(starts.values())) == 2
            assert min(starts, key=starts.__getitem__) == case.question.answer
        else:
            track = seen[case.question.answer]
            assert track == sorted(track, reverse=True)
            assert sum(track) >= 2
            assert len(track) - sum(track) >= 2


def test_the_pair_is_named_with_the_answer_in_front_as_often_as_behind() -> None:
    for kind in ("size", "order"):
        cases = [eval_case(kind, index).question for index in range(300)]
        pairs = [case for case in cases if " or the " in case.text]
        share = np.mean([case.text.index(case.answer) < case.text.index(" or ") for case in pairs])
        assert share == pytest.approx(0.5, abs=0.1)


def test_no_two_evaluation_cases_share_a_scene() -> None:
    seeds = [eval_case(kind, index).scene.seed for kind in KINDS for index in range(100)]

    assert len(set(seeds)) == len(seeds)


def test_all_texts_cover_every_question_and_every_word_of_an_answer() -> None:
    texts = set(all_texts())
    words = {word for text in texts for word in text.replace(",", " ").replace(".", " ").replace("?", " ").split()}

    for seed in range(300):
        for question in conversation(scene_rng(seed), draw(seed), 12):
            is_of_pair = question.kind in ("relation", "size")  # 4,032 pairs: their words alone are there
            assert question.text in texts or (
                is_of_pair and set(question.text.strip("?").replace(",", " ").split()) <= words
            )
            assert set(question.answer.replace(",", " ").replace(".", " ").split()) <= words
    assert {phrasings[0] for phrasings in PHRASINGS.values() if "{}" not in phrasings[0]} <= texts


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [("red", True), (" Red. ", True), ("red..", False), ("reddish", False), ("", False), ("a red", False)],
)
def test_correct_is_the_exact_answer_up_to_case_and_one_period(answer: str, verdict: bool) -> None:
    assert is_correct(Question("color", "What color is the ring?", "red"), answer) is verdict
