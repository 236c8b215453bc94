"""Questions about a scene, and their true answers.

In: a `Scene` of the synthetic world. Out: a `Question` with its text and exact answer, of one of the `KINDS`; what
there is to ask, and where an answer is beyond doubt, `question_kinds.py` says. It is asked of a clip of the whole
scene, or, where `t_s` is given, of the one frame taken then: motion and events need a clip, and in a clip only what
stands has a place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nvila_ros.world.events import sample_appearing_scene
from nvila_ros.world.question_kinds import (
    ANSWERS,
    CLIP_KINDS,
    KINDS,
    LISTERS,
    PHRASINGS,
    PLACES,
    RELATIONS,
    STILL_KINDS,
    Option,
    motion_phrase,
    name_of,
    place_of,
    with_article,
)
from nvila_ros.world.scene import (
    COLORS,
    DIRECTIONS,
    EVAL_SEED_BASE,
    MAX_OBJECTS,
    SHAPES,
    Scene,
    scene_rng,
)
from nvila_ros.world.scene_sampler import sample_scene

__all__ = [
    "ANSWERS",
    "CLIP_KINDS",
    "EVAL_CLIP_FRAMES",
    "EVAL_CLIP_S",
    "EVAL_KINDS",
    "KINDS",
    "PHRASINGS",
    "PLACES",
    "STILL_KINDS",
    "EvalCase",
    "Question",
    "all_texts",
    "ask",
    "conversation",
    "eval_case",
    "is_correct",
    "name_of",
    "place_of",
]

EVAL_KINDS: tuple[str, ...] = (*STILL_KINDS, *CLIP_KINDS)
"""Kinds that the evaluation suite scores by exact match."""
EVAL_CLIP_FRAMES = 8
"""Frames of an evaluation clip."""
EVAL_CLIP_S = 2.0
"""Seconds from the first to the last frame of an evaluation clip."""
_FIRST_KINDS = KINDS[: KINDS.index("describe") + 1]  # whose cases have stayed the same since they were the only ones
_LATER_SEEDS = 2**29  # from `EVAL_SEED_BASE`, where the cases of the other kinds begin


@dataclass(frozen=True, slots=True)
class Question:
    """One question: its kind, its text as asked, and the true answer in lower case."""

    kind: str
    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class EvalCase:
    """One case of a suite: the question and the times of the frames (s) it is asked about.

    Attributes:
        scene: of whichever world the suite shows; its own render films it.
    """

    scene: Any
    question: Question
    times_s: tuple[float, ...]


def _phrase(rng: np.random.Generator, kind: str, option: Option) -> Question:
    subjects, answer = option
    phrasings = PHRASINGS[kind]
    return Question(kind, phrasings[int(rng.integers(len(phrasings)))].format(*subjects), answer)


def ask(
    rng: np.random.Generator, scene: Scene, kind: str, *, t_s: float | None = None, answer: str | None = None
) -> Question | None:
    """Ask one question of a kind.

    Args:
        rng: chooses what to ask about and how.
        scene: what is asked about.
        kind: one of `KINDS`.
        t_s: time of the single frame shown; None for a clip of the whole scene.
        answer: only questions with this true answer.

    Returns:
        The question, or None where no such question is well defined.
    """
    options = LISTERS[kind](rng, scene, t_s)
    if answer is not None:
        options = [option for option in options if option[1] == answer]
    if not options:
        return None
    return _phrase(rng, kind, options[int(rng.integers(len(options)))])


def conversation(
    rng: np.random.Generator,
    scene: Scene,
    num_turns: int,
    kinds: Sequence[str] = KINDS,
    *,
    t_s: float | None = None,
) -> list[Question]:
    """Up to num_turns distinct questions about one scene: rounds over the kinds, each round in a new order.

    Fewer come back where the scene has no more to ask; t_s is as in `ask`.
    """
    pools: dict[str, list[Option]] = {}
    for kind in kinds:
        options = LISTERS[kind](rng, scene, t_s)
        pools[kind] = [options[k] for k in rng.permutation(len(options)).tolist()]
    questions: list[Question] = []
    while len(questions) < num_turns and any(pools.values()):
        open_kinds = [kind for kind in kinds if pools[kind]]
        for k in rng.permutation(len(open_kinds)).tolist():
            kind = open_kinds[k]
            questions.append(_phrase(rng, kind, pools[kind].pop()))
    return questions[:num_turns]


def all_texts() -> Iterator[str]:
    """Every phrasing with everything it can be about, and every answer or part of one; for the tokenizer."""
    pairs = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
    color_only = [f"{color} object" for color in COLORS]
    anything: list[str] = [*pairs, *color_only, *SHAPES]
    two: list[tuple[str, ...]] = [(pairs[k], pairs[-1 - k]) for k in range(len(pairs))]
    subjects: dict[str, list[tuple[str, ...]]] = {
        "color": [(shape,) for shape in SHAPES],
        "shape": [(name,) for name in color_only],
        "exist": [(with_article(pair),) for pair in pairs],
        "where": [(name,) for name in anything],
        "motion": [(name,) for name in anything],
        "count-color": [(color,) for color in COLORS],
        "relation": [(first, relation, second) for first, second in two for relation in RELATIONS],
        "size": two,
        "order": two,
    }
    for kind, phrasings in PHRASINGS.items():
        yield from (phrasing.format(*names) for phrasing in phrasings for names in subjects.get(kind, [()]))
        yield from ANSWERS.get(kind, ())
    predicates = [f"at the {place}" for place in PLACES] + [motion_phrase(d) for d in DIRECTIONS]
    yield from (f"{with_article(pair)} {predicate}" for pair in pairs for predicate in predicates)
    yield ", ".join(f"{with_article(pair)} at the center" for pair in pairs[:MAX_OBJECTS]) + "."


def is_correct(question: Question, answer_text: str) -> bool:
    """Whether an answer is exactly the true one, up to case, outer spaces and one final period."""
    return _normal(answer_text) == _normal(question.answer)


def _normal(text: str) -> str:
    return text.strip().lower().removesuffix(".")


def eval_case(kind: str, index: int, *, aspect: float = 4 / 3) -> EvalCase:
    """Case number index of a kind: always the same, from seeds never trained on, closed sets of answers balanced.

    What needs a clip is asked of `EVAL_CLIP_FRAMES` frames over `EVAL_CLIP_S`; the other kinds of one frame, half of
    them taken amid a moving scene.
    """
    rng = scene_rng(_eval_seed(kind, index))
    answers = ANSWERS.get(kind)
    answer = answers[int(rng.integers(len(answers)))] if answers else None
    is_clip = kind in CLIP_KINDS
    while True:
        scene = _draw_eval_scene(rng, kind, aspect)
        t_s = float(rng.random()) * EVAL_CLIP_S
        question = ask(rng, scene, kind, t_s=None if is_clip else t_s, answer=answer)
        if question is not None:
            times_s = tuple(np.linspace(0, EVAL_CLIP_S, EVAL_CLIP_FRAMES).tolist()) if is_clip else (t_s,)
            return EvalCase(scene, question, times_s)


def _eval_seed(kind: str, index: int) -> int:
    """Seed of a case: kinds take turns on the seeds, so no two cases share a scene."""
    if kind in _FIRST_KINDS:
        return EVAL_SEED_BASE + index * len(_FIRST_KINDS) + _FIRST_KINDS.index(kind)
    later = [each for each in KINDS if each not in _FIRST_KINDS]
    return EVAL_SEED_BASE + _LATER_SEEDS + index * len(later) + later.index(kind)


def _draw_eval_scene(rng: np.random.Generator, kind: str, aspect: float) -> Scene:
    if kind in ("order", "vanish"):
        return sample_appearing_scene(rng, aspect=aspect, duration_s=EVAL_CLIP_S, num_frames=EVAL_CLIP_FRAMES)
    is_moving = kind == "motion" or bool(rng.random() < 0.5)
    num_colors = 2 if kind == "count-color" else None  # else three of a colour would hardly ever be
    return sample_scene(rng, aspect=aspect, duration_s=EVAL_CLIP_S, is_moving=is_moving, num_colors=num_colors)
