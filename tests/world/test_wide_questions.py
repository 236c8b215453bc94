"""Questions about wide scenes: true, in many words, and honest about what is not there."""

import re
from collections import Counter

import pytest

from nvila_ros.world.phrasings import CLOSINGS, OPENINGS, SUITE_TEMPLATES, style
from nvila_ros.world.question_kinds import name_of, place_of
from nvila_ros.world.question_templates import TEMPLATES
from nvila_ros.world.scene import COLORS, SHAPES, Scene, scene_rng
from nvila_ros.world.unknown_things import NOUNS, SUITE_NOUNS, UNKNOWN
from nvila_ros.world.wide_questions import CLIP_WEIGHTS, WEIGHTS, ask_wide, draw_wide_turns
from nvila_ros.world.wide_scenes import Look, sample_wide_scene

KINDS = (*WEIGHTS, "describe")


def draw(seed: int, *counts: int) -> Scene:
    return sample_wide_scene(scene_rng(seed), Look(counts=counts or tuple(range(7))), aspect=4 / 3)


def named(scene: Scene, text: str) -> list:
    """Objects that fit every colour and shape word of a text."""
    words = set(re.findall("[a-z]+", text.lower()))
    colors, shapes = words & set(COLORS), {s for s in SHAPES if words & {s, f"{s}s"}}
    return [o for o in scene.objects if colors <= {o.color} and shapes <= {o.shape}]


def truth_of(kind: str, scene: Scene, found: list) -> str:
    """The answer to a question that names what was found."""
    if kind == "count":
        return str(len(scene.objects))
    if kind in ("count-color", "count-shape"):
        return str(len(found))
    if kind in ("exist", "any"):
        return "yes" if (found if kind == "exist" else scene.objects) else "no"
    (only,) = found
    return {"color": only.color, "shape": only.shape, "where": place_of(only.x, only.y)}[kind]


@pytest.mark.parametrize("kind", ["color", "shape", "count", "count-color", "count-shape", "exist", "any", "where"])
def test_answers_are_true(kind: str) -> None:
    asked = 0
    for seed in range(150):
        scene = draw(seed)
        question = ask_wide(scene_rng(seed), scene, kind, t_s=0.0)
        if question is None:
            continue
        asked += 1
        truth = truth_of(kind, scene, named(scene, question.text))
        assert question.answer == truth, question
    assert asked > 30


def test_nothing_is_there_where_nothing_is_there() -> None:
    empty = draw(3, 0)
    asked = {kind: ask_wide(scene_rng(1), empty, kind, t_s=0.0) for kind in KINDS}
    answers = {kind: question.answer for kind, question in asked.items() if question is not None}

    assert answers["count"] == answers["count-color"] == answers["count-shape"] == "0"
    assert answers["exist"] == answers["any"] == "no"
    assert answers["describe"] == "nothing"
    assert answers["absent"] in ("none", "nowhere")
    assert "color" not in answers
    assert ask_wide(scene_rng(1), empty, "vanish", t_s=None).answer == "nothing"


def test_what_is_absent_is_not_there() -> None:
    for seed in range(150):
        scene = draw(seed)
        question = ask_wide(scene_rng(seed), scene, "absent", t_s=0.0)
        assert not named(scene, question.text), question


def test_unknown_things_are_denied_or_not_known() -> None:
    scene = draw(1, 3)
    for seed in range(100):
        answers = [ask_wide(scene_rng(seed), scene, kind, t_s=0.0).answer for kind in WEIGHTS if "unknown" in kind]
        assert answers == ["no", "0", "no", UNKNOWN]


def test_suites_use_nouns_and_words_that_training_does_not() -> None:
    assert len(set(SUITE_NOUNS)) >= 50
    assert not set(SUITE_NOUNS) & set(NOUNS)
    assert not {*SUITE_NOUNS, *NOUNS} & {*COLORS, *SHAPES}
    for kind, templates in SUITE_TEMPLATES.items():
        assert not {t.lower() for t in templates} & {t.lower() for t in TEMPLATES[kind]}


def test_each_kind_is_asked_in_at_least_twelve_ways() -> None:
    kinds = set(TEMPLATES) - {"any", "count-shape"}

    assert all(len(set(TEMPLATES[kind])) >= 12 for kind in kinds)


def test_typing_changes_case_spelling_marks_and_spaces_and_nothing_else() -> None:
    text = "What color is the red circle"
    typed = {style(scene_rng(seed), text) for seed in range(400)}

    bare = {each.strip(" ?").lower().replace("colour", "color") for each in typed}
    allowed = {f"{start}{text}{end}".lower() for start in ("", *OPENINGS) for end in ("", *CLOSINGS)}
    assert {text.lower()} < bare <= allowed
    assert {text, text.lower() + "?", text.upper() + "?", text + " ?", " " + text + "?"} <= typed
    assert any("colour" in each for each in typed)


def test_turns_of_a_scene_differ_and_mix_kinds() -> None:
    kinds: Counter[str] = Counter()
    for seed in range(60):
        scene = draw(seed)
        turns = draw_wide_turns(scene_rng(seed), scene, 0.0, 7, 0.3)
        assert len({turn.text for turn in turns}) == len(turns) >= 7
        kinds.update(turn.kind for turn in turns)

    assert set(kinds) == set(KINDS)
    assert set(CLIP_WEIGHTS) <= {*TEMPLATES, *WEIGHTS}
    assert name_of(draw(0, 1).objects[0])
