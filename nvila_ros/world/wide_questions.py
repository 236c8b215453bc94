"""Questions about wide scenes: the usual kinds in many words, and those that only "no", "none" or `UNKNOWN` answers.

In: a `Scene` and the time of a frame, or None for a clip. Out: `Question`s, of the kinds of `question_kinds.py` and
these: `any` and `count-shape`; `absent`, which asks about a known thing that is not there; `unknown-exist`,
`unknown-count`, `unknown-yes-no` and `unknown-open`, which ask about what is not of the world.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from nvila_ros.world.phrasings import RELATION_WORDS, draw_template, is_question, style
from nvila_ros.world.question_kinds import LISTERS, Option, name_of, with_article
from nvila_ros.world.questions import Question
from nvila_ros.world.scene import COLORS, SHAPES, Scene
from nvila_ros.world.unknown_things import (
    NOUNS,
    OPEN,
    OPEN_OF_NOUN,
    SUITE_NOUNS,
    UNKNOWN,
    UNKNOWN_COLORS,
    YES_NO,
    YES_NO_OF_NOUN,
    fill,
)

NOTHING, NONE, NOWHERE = "nothing", "none", "nowhere"
"""Answers about what is not there: of a scene or an event, of a colour or shape, of a place."""
WEIGHTS: dict[str, float] = {
    "color": 1.0,
    "shape": 1.8,
    "count": 1.3,
    "count-color": 0.9,
    "count-shape": 0.4,
    "exist": 1.3,
    "any": 0.15,
    "where": 0.9,
    "relation": 1.5,
    "size": 1.1,
    "absent": 1.0,
    "unknown-exist": 0.8,
    "unknown-count": 0.45,
    "unknown-yes-no": 0.35,
    "unknown-open": 0.45,
}
"""How often each kind is asked of a frame, relative to the others."""
CLIP_WEIGHTS: dict[str, float] = {
    "motion": 4.0,
    "vanish": 1.2,
    "count": 0.4,
    "color": 0.4,
    "shape": 0.6,
    "exist": 0.5,
    "size": 0.5,
    "where": 0.4,
    "unknown-exist": 0.3,
    "unknown-open": 0.2,
}
"""Likewise of a clip."""
_DESCRIBE_NOTHING_SHARE = 0.7  # of the empty scenes are described: they are few
_STYLED_SHARE = 0.55  # of the questions are typed as people do, the others as in the other suites


def ask_wide(
    rng: np.random.Generator,
    scene: Scene,
    kind: str,
    *,
    t_s: float | None,
    answer: str | None = None,
    is_suite: bool = False,
    is_styled: bool | None = None,
) -> Question | None:
    """Ask one question of a kind.

    Args:
        rng: chooses what to ask about and how.
        scene: what is asked about; may be empty.
        kind: one of `WEIGHTS`, `CLIP_WEIGHTS` or "describe" and "order".
        t_s: time of the single frame shown; None for a clip of the whole scene.
        answer: only a question with this true answer.
        is_suite: whether words and nouns are those that only suites use.
        is_styled: whether it is typed as people do; None draws that.

    Returns:
        The question, or None where no such question is well defined.
    """
    if kind in _WHOLE:
        text, said = _WHOLE[kind](rng, scene, is_suite)
    else:
        options = _list_options(rng, scene, kind, t_s)
        options = [option for option in options if answer in (None, option[1])]
        if not options:
            return None
        subjects, said = options[int(rng.integers(len(options)))]
        if kind == "relation":
            words = RELATION_WORDS[subjects[1]]
            subjects = (subjects[0], words[int(rng.integers(len(words)))], subjects[2])
        text = draw_template(rng, kind, is_suite=is_suite).format(*subjects)
    if answer not in (None, said):
        return None
    if rng.random() < _STYLED_SHARE if is_styled is None else is_styled:
        return Question(kind, style(rng, text, is_question=is_question(text)), said)
    return Question(kind, text + ("?" if is_question(text) else "."), said)


def _list_options(rng: np.random.Generator, scene: Scene, kind: str, t_s: float | None) -> list[Option]:
    if kind == "exist":
        return _list_exist(rng, scene)
    if kind == "count-shape":
        return _list_count_shape(rng, scene)
    if kind == "vanish":
        gone = LISTERS[kind](rng, scene, t_s)
        is_whole = all(obj.vanishes_s == float("inf") for obj in scene.objects)
        return gone or ([((), NOTHING)] if is_whole and t_s is None else [])
    if kind == "describe" and not scene.objects:
        return [((), NOTHING)]
    return LISTERS[kind](rng, scene, t_s)


def _list_exist(rng: np.random.Generator, scene: Scene) -> list[Option]:
    """As often "yes" as "no", of full names, of colours and of shapes alone."""
    there = {name for obj in scene.objects for name in (name_of(obj), f"{obj.color} object", obj.shape)}
    yes = [name_of(obj) for obj in scene.objects] * 2
    yes += [name for obj in scene.objects for name in (f"{obj.color} object", obj.shape)]
    if yes and rng.random() < 0.5:
        return [((with_article(yes[int(rng.integers(len(yes)))]),), "yes")]
    while True:
        name = _draw_name(rng, scene)
        if name not in there:
            return [((with_article(name),), "no")]


def _draw_name(rng: np.random.Generator, scene: Scene) -> str:
    """A name that may be there or not; every other one shares its colour or its shape with a thing that is there."""
    color = tuple(COLORS)[int(rng.integers(len(COLORS)))]
    shape = SHAPES[int(rng.integers(len(SHAPES)))]
    if scene.objects and rng.random() < 0.5:
        shared = scene.objects[int(rng.integers(len(scene.objects)))]
        color, shape = (shared.color, shape) if rng.random() < 0.5 else (color, shared.shape)
    whole = rng.random()
    if whole < 0.7:
        return f"{color} {shape}"
    return f"{color} object" if whole < 0.85 else shape


def _list_count_shape(rng: np.random.Generator, scene: Scene) -> list[Option]:
    there = [obj.shape for obj in scene.objects]
    asked = {*there, SHAPES[int(rng.integers(len(SHAPES)))]} - {"cross"}  # whose plural is another word
    return [((shape,), str(there.count(shape))) for shape in sorted(asked)]


def _ask_any(rng: np.random.Generator, scene: Scene, is_suite: bool) -> tuple[str, str]:
    return draw_template(rng, "any"), "yes" if scene.objects else "no"


def _ask_absent(rng: np.random.Generator, scene: Scene, is_suite: bool) -> tuple[str, str]:
    """Ask for the colour, shape or place of a known thing that is not there."""
    kind = ("color", "shape", "where")[int(rng.integers(3))]
    there = {name for obj in scene.objects for name in (name_of(obj), f"{obj.color} object", obj.shape)}
    while True:
        name = _draw_name(rng, scene)
        if kind == "color":
            name = name.split(" ")[-1]
        elif kind == "shape":
            name = f"{name.split(' ')[0]} object"
        fits = {"color": name in SHAPES, "shape": name.split(" ")[0] in COLORS, "where": True}[kind]
        if fits and name not in there:
            answer = NOWHERE if kind == "where" else NONE
            return draw_template(rng, kind, is_suite=is_suite).format(name), answer
        if kind == "color" and set(SHAPES) <= there:
            kind = "where"


def _nouns(is_suite: bool) -> Sequence[str]:
    return SUITE_NOUNS if is_suite else NOUNS


def _draw_noun(rng: np.random.Generator, is_suite: bool) -> str:
    nouns = _nouns(is_suite)
    return nouns[int(rng.integers(len(nouns)))]


def _ask_unknown_exist(rng: np.random.Generator, scene: Scene, is_suite: bool) -> tuple[str, str]:
    noun = _draw_noun(rng, is_suite)
    mixed = rng.random()
    if mixed < 0.1:
        noun = f"{tuple(COLORS)[int(rng.integers(len(COLORS)))]} {noun}"
    elif mixed < 0.2 and not is_suite:
        noun = f"{UNKNOWN_COLORS[int(rng.integers(len(UNKNOWN_COLORS)))]} {SHAPES[int(rng.integers(len(SHAPES)))]}"
    return draw_template(rng, "exist", is_suite=is_suite).format(with_article(noun)), "no"


def _ask_unknown_count(rng: np.random.Generator, scene: Scene, is_suite: bool) -> tuple[str, str]:
    noun = _draw_noun(rng, is_suite)
    text = draw_template(rng, "count-shape").format(noun)
    return text.replace("persons", "people").replace("mans", "men"), "0"


def _ask_unknown_yes_no(rng: np.random.Generator, scene: Scene, is_suite: bool) -> tuple[str, str]:
    templates = YES_NO_OF_NOUN if rng.random() < 0.75 or is_suite else YES_NO
    return fill(rng, templates[int(rng.integers(len(templates)))], _draw_noun(rng, is_suite)), "no"


def _ask_unknown_open(rng: np.random.Generator, scene: Scene, is_suite: bool) -> tuple[str, str]:
    templates = OPEN_OF_NOUN if rng.random() < 0.75 or is_suite else OPEN
    return fill(rng, templates[int(rng.integers(len(templates)))], _draw_noun(rng, is_suite)), UNKNOWN


_WHOLE: dict[str, Callable[[np.random.Generator, Scene, bool], tuple[str, str]]] = {
    "any": _ask_any,
    "absent": _ask_absent,
    "unknown-exist": _ask_unknown_exist,
    "unknown-count": _ask_unknown_count,
    "unknown-yes-no": _ask_unknown_yes_no,
    "unknown-open": _ask_unknown_open,
}
"""Kinds that any scene has a question of: text and answer."""


def draw_wide_turns(
    rng: np.random.Generator, scene: Scene, t_s: float | None, num_turns: int, describe_share: float
) -> list[Question]:
    """Draw questions about one frame, or of a clip if t_s is None; no two are alike, and some scenes are described."""
    weights = WEIGHTS if t_s is not None else CLIP_WEIGHTS
    kinds = list(weights)
    shares = np.array(list(weights.values())) / sum(weights.values())
    turns: dict[str, Question] = {}
    for _ in range(4 * num_turns):
        question = ask_wide(rng, scene, kinds[int(rng.choice(len(kinds), p=shares))], t_s=t_s)
        if question is not None:
            turns.setdefault(question.text, question)
        if len(turns) == num_turns:
            break
    if rng.random() < (describe_share if scene.objects else _DESCRIBE_NOTHING_SHARE):
        described = ask_wide(rng, scene, "describe", t_s=t_s)
        if described is not None:
            turns.setdefault(described.text, described)
    return list(turns.values())
