"""The suite `tiny-world-wide`: fixed cases by tiers, each wider than the first suites in one respect.

In: the name of a tier and an index. Out: an `EvalCase` about one frame, always the same, from seeds, photographs, nouns
and words that training never draws. Every other scene is for the second camera.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from nvila_ros.world import photography
from nvila_ros.world.photographs import EXAMINATION
from nvila_ros.world.question_kinds import ANSWERS
from nvila_ros.world.questions import EvalCase, Question, ask
from nvila_ros.world.rendering import render
from nvila_ros.world.scene import COLORS, EVAL_SEED_BASE, Scene, scene_rng
from nvila_ros.world.scene_sampler import MAX_ANGLE
from nvila_ros.world.wide_questions import NONE, NOWHERE, ask_wide
from nvila_ros.world.wide_scenes import MAX_WIDE_OBJECTS, TONES, Look, sample_wide_scene

_STILL = ("color", "shape", "count", "count-color", "exist", "where", "relation", "size")
_USUAL = Look(
    heights=(0.18, 0.4),
    counts=(1, 2, 3, 4),
    max_angle=MAX_ANGLE,
    tones=("muted",),
    overlap_share=0.0,
    shadow_share=0.0,
)
_PHOTOGRAPHS = replace(_USUAL, photographs=EXAMINATION, photograph_share=1.0, softness=(0.0, 0.0))
_ANY = replace(_USUAL, counts=tuple(range(MAX_WIDE_OBJECTS + 1)), tones=TONES, photographs=EXAMINATION)


@dataclass(frozen=True, slots=True)
class Tier:
    """A part of the suite: its scenes and the kinds of question that take turns on them.

    Attributes:
        is_in_other_words: whether questions use the words and nouns of suites, typed as people type.
    """

    look: Look
    kinds: tuple[str, ...] = _STILL
    is_in_other_words: bool = False


TIERS: dict[str, Tier] = {
    "usual": Tier(_USUAL),
    "small": Tier(replace(_USUAL, heights=(0.11, 0.18))),
    "smallest": Tier(replace(_USUAL, heights=(0.08, 0.11))),
    "large": Tier(replace(_USUAL, heights=(0.4, 0.6), counts=(1, 2, 3))),
    "many": Tier(replace(_USUAL, heights=(0.12, 0.3), counts=(5, 6))),
    "turned": Tier(replace(_USUAL, max_angle=math.pi)),
    "light": Tier(replace(_USUAL, tones=("light",))),
    "dark": Tier(replace(_USUAL, tones=("dark",))),
    "tinted": Tier(replace(_USUAL, tones=("tinted",))),
    "shadows": Tier(replace(_USUAL, shadow_share=1.0)),
    "overlapping": Tier(replace(_USUAL, counts=(3, 4), overlap_share=1.0)),
    "photographs": Tier(_PHOTOGRAPHS),
    "softened": Tier(replace(_PHOTOGRAPHS, softness=(0.01, 0.03))),
    "empty": Tier(
        replace(_ANY, counts=(0,), photograph_share=0.4), ("count", "count-color", "exist", "describe", "absent", "any")
    ),
    "absent": Tier(replace(_ANY, counts=(1, 2, 3, 4)), ("absent",)),
    "phrasing": Tier(_USUAL, is_in_other_words=True),
    "unknown": Tier(
        replace(_ANY, photograph_share=0.3),
        ("unknown-exist", "unknown-exist", "unknown-yes-no", "unknown-count", "unknown-open"),
        is_in_other_words=True,
    ),
}
"""Tiers by name."""
_SEED = EVAL_SEED_BASE + 3 * 2**29  # clear of the seeds of the other suites
_MOST_DRAWS = 400


def eval_wide_case(tier: str, index: int, *, aspect: float = 4 / 3) -> EvalCase:
    """Case number index of a tier: always the same; kinds take turns, and closed sets of answers are drawn from evenly.

    Raises:
        ConfigError: the photographs of the tier are not installed.
    """
    rng = scene_rng(_SEED + index * len(TIERS) + tuple(TIERS).index(tier))
    chosen = TIERS[tier]
    kind = chosen.kinds[index % len(chosen.kinds)]
    answers = _answers_to_draw(kind, chosen.look)
    answer = answers[int(rng.integers(len(answers)))] if answers else None
    for _ in range(_MOST_DRAWS):
        num_colors = 2 if kind == "count-color" and max(chosen.look.counts) <= 4 else None
        scene = sample_wide_scene(rng, chosen.look, aspect=aspect, num_colors=num_colors)
        question = _ask(rng, scene, kind, answer, chosen)
        if question is not None:
            return EvalCase(scene, question, (0.0,))
    raise RuntimeError(f"found no scene of tier {tier} with a question of kind {kind} and answer {answer}")


def _answers_to_draw(kind: str, look: Look) -> tuple[str, ...]:
    if 0 in look.counts:
        return ()
    if kind == "count":
        return tuple(str(count) for count in look.counts)
    return ANSWERS.get(kind, ()) if kind != "count-color" else ("0", "1", "2")


def _ask(rng: np.random.Generator, scene: Scene, kind: str, answer: str | None, tier: Tier) -> Question | None:
    if kind in _STILL and scene.objects and not tier.is_in_other_words:
        return ask(rng, scene, kind, t_s=0.0, answer=answer)  # in the words of the first suites
    in_other_words = tier.is_in_other_words
    return ask_wide(rng, scene, kind, t_s=0.0, answer=answer, is_suite=in_other_words, is_styled=in_other_words)


def render_either(scene: Scene, t_s: float, width: int, height: int) -> np.ndarray:
    """Film one frame by the camera that the scene's seed chooses, (height, width, 3) uint8 RGB."""
    camera = photography.render if scene.seed % 2 else render
    return camera(scene, t_s, width, height)


def choices_of(question: Question) -> tuple[str, ...]:
    """All answers that a question may have, the true one among them; none where they are no closed set."""
    counts = tuple(str(count) for count in range(MAX_WIDE_OBJECTS + 1))
    by_kind: dict[str, tuple[str, ...]] = {
        "color": (*COLORS, NONE),
        "shape": (*ANSWERS["shape"], NONE),
        "where": (*ANSWERS["where"], NOWHERE),
        "count": counts,
        "count-color": counts,
        "count-shape": counts,
        "unknown-count": counts,
    }
    if question.kind in by_kind:
        return by_kind[question.kind]
    if question.answer in ("yes", "no"):
        return ("yes", "no")
    if question.answer == NOWHERE:
        return by_kind["where"]
    if question.answer == NONE:
        is_color = "colo" in question.text.lower()
        return by_kind["color" if is_color else "shape"]
    return ()
