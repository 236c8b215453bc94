"""Questions that scale pays for: about small things in one image, and about quick events in a clip.

The kinds stand beside those of `questions.py`, with a suite of their own: `small-color`, `small-shape` and
`small-count` are asked of a small scene in the usual words; `jump` and `order` of an event scene.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nvila_ros.world.events import MAX_SMALL, sample_event_scene, sample_small_scene
from nvila_ros.world.questions import ANSWERS, EvalCase, Question, ask, name_of
from nvila_ros.world.scene import (
    DIRECTIONS,
    EVAL_SEED_BASE,
    Object,
    Scene,
    scene_rng,
)

JUMP_PHRASINGS = ("Which way does the {} jump?", "In which direction does the {} jump?")
SMALL_KINDS: dict[str, str] = {"small-color": "color", "small-shape": "shape", "small-count": "count"}
"""The kind of `questions.py` that each asks of a small scene."""
CLIP_KINDS = ("jump", "order")
SCALE_KINDS: tuple[str, ...] = (*SMALL_KINDS, *CLIP_KINDS)
"""Kinds of the suite, scored by exact match."""
EVAL_CLIP_FRAMES = 32
"""Frames of an evaluation clip, unless the caller films other times."""
EVAL_CLIP_S = 4.0
"""Seconds from the first to the last frame of an evaluation clip."""

_EVAL_SEED = EVAL_SEED_BASE + 2**30  # clear of the seeds of the other suite


def ask_jump(rng: np.random.Generator, obj: Object) -> Question:
    """Ask where an object jumps; one that stands is "still"."""
    return Question("jump", _choose(rng, JUMP_PHRASINGS).format(name_of(obj)), obj.jump_direction)


def event_turns(rng: np.random.Generator, scene: Scene) -> list[Question]:
    """All that there is to ask about a clip of events, each once, in any order.

    Nothing else is asked beside: an easy answer or two more, and the hard ones are hardly learned.
    """
    asked = [ask(rng, scene, kind) for kind in ("order", "vanish")]
    turns = [question for question in asked if question is not None]
    turns += [ask_jump(rng, obj) for obj in scene.objects if _is_whole(obj)]
    return [turns[i] for i in rng.permutation(len(turns))]


def eval_scale_case(kind: str, index: int, *, aspect: float = 4 / 3) -> EvalCase:
    """Case number index of a kind: always the same, from seeds never trained on, answers balanced.

    Clips are `EVAL_CLIP_FRAMES` frames over `EVAL_CLIP_S`, the first and the last at its ends.
    """
    rng = scene_rng(_EVAL_SEED + index * len(SCALE_KINDS) + SCALE_KINDS.index(kind))
    if kind not in CLIP_KINDS:
        scene, question = _draw_small_case(rng, kind, aspect)
        return EvalCase(scene, question, (0.0,))
    scene, question = {"jump": _draw_jump_case, "order": _draw_order_case}[kind](rng, aspect)
    return EvalCase(scene, question, tuple(np.linspace(0, EVAL_CLIP_S, EVAL_CLIP_FRAMES).tolist()))


def _draw_small_case(rng: np.random.Generator, kind: str, aspect: float) -> tuple[Scene, Question]:
    usual = SMALL_KINDS[kind]
    answers = tuple(str(k) for k in range(1, MAX_SMALL + 1)) if usual == "count" else ANSWERS[usual]
    answer = _choose(rng, answers)
    while True:
        scene = sample_small_scene(rng, aspect=aspect)
        question = ask(rng, scene, usual, t_s=0.0, answer=answer)
        if question is not None:
            return scene, replace(question, kind=kind)


def _draw_jump_case(rng: np.random.Generator, aspect: float) -> tuple[Scene, Question]:
    answer = _choose(rng, tuple(DIRECTIONS))
    while True:
        scene = sample_event_scene(rng, aspect=aspect, duration_s=EVAL_CLIP_S)
        options = [obj for obj in scene.objects if _is_whole(obj) and obj.jump_direction == answer]
        if options:
            return scene, ask_jump(rng, options[int(rng.integers(len(options)))])


def _draw_order_case(rng: np.random.Generator, aspect: float) -> tuple[Scene, Question]:
    scene = sample_event_scene(rng, aspect=aspect, duration_s=EVAL_CLIP_S, has_pair=True)
    question = ask(rng, scene, "order")
    assert question is not None
    return scene, question


def _is_whole(obj: Object) -> bool:
    """Whether an object is there all along."""
    return math.isinf(obj.appears_s) and math.isinf(obj.vanishes_s)


def _choose(rng: np.random.Generator, texts: Sequence[str]) -> str:
    return texts[int(rng.integers(len(texts)))]
