"""What training draws from the synthetic world: moments, clips and events, and the questions about each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from nvila_ros.prompt.time_tokens import time_token_names, token_of_place
from nvila_ros.training.chats import TIMED
from nvila_ros.world.events import QUICK_GAPS, QUICK_JUMPS, sample_appearing_scene, sample_event_scene
from nvila_ros.world.questions import STILL_KINDS, Question, ask, conversation
from nvila_ros.world.scene import BACKGROUNDS, MAX_OBJECTS, Scene
from nvila_ros.world.scene_sampler import sample_scene
from nvila_ros.world.timed_events import WHEN, TimedEvent, happening, not_happening, sample_timed_scene, whether
from nvila_ros.world.wide_questions import ask_wide
from nvila_ros.world.wide_scenes import Look, sample_wide_scene

ASPECTS = (1.0, 4 / 3, 16 / 9)
EVENT_CLIP_S = 4.0
"""Seconds of a clip of events."""
TRAIN_BACKGROUNDS = (*BACKGROUNDS, "clouds", "clouds")
"""What a model shall know beyond the suites' own: real grounds are of many sizes at once."""
PALETTE_SHARE = 0.3
"""Share of the scenes that have things of two colours alone: else two of a colour are rare."""
DESCRIBE_SHARE = 0.35  # of the samples are described as well: descriptions are long, and all else is short
SLOW_GAPS, SLOW_JUMPS = (0.1, 0.4), (0.14, 0.3)
QUICK_SHARE = 0.5  # of the events are as quick as those of the suite


def draw_aspect(rng: np.random.Generator) -> float:
    """Draw width / height of a camera."""
    return float(rng.choice(ASPECTS))


def draw_moment(
    rng: np.random.Generator,
    aspect: float | None = None,
    palette_share: float = PALETTE_SHARE,
    least_of_palette: int = 1,
) -> tuple[Scene, float]:
    """Draw a scene, of any of `ASPECTS` if none is given, and a time (s) within it.

    A share has two colours alone, and at least so many things.
    """
    duration_s = float(rng.uniform(1.0, 4.0))
    aspect = draw_aspect(rng) if aspect is None else aspect
    scene = _draw_scene(rng, aspect, duration_s, None, palette_share, least_of_palette)
    return scene, float(rng.uniform(0, duration_s))


def draw_clip(rng: np.random.Generator) -> Scene:
    """Draw a scene and cut a window of half to all of it, which becomes the scene."""
    duration_s = float(rng.uniform(1.0, 4.0))
    is_moving = bool(rng.random() < 0.85)
    scene = _draw_scene(rng, draw_aspect(rng), duration_s, is_moving)
    length_s = duration_s * float(rng.uniform(0.5, 1.0))
    start_s = float(rng.uniform(0, duration_s - length_s))
    moved = []
    for obj in scene.objects:
        x, y = obj.position(start_s)
        moved.append(dataclasses.replace(obj, x=x, y=y))
    return dataclasses.replace(scene, objects=tuple(moved), duration_s=length_s)


def _draw_scene(
    rng: np.random.Generator,
    aspect: float,
    duration_s: float,
    is_moving: bool | None,
    palette_share: float = PALETTE_SHARE,
    least_of_palette: int = 1,
) -> Scene:
    num_colors = 2 if rng.random() < palette_share else None
    while True:
        scene = sample_scene(
            rng,
            aspect=aspect,
            duration_s=duration_s,
            is_moving=is_moving,
            num_colors=num_colors,
            backgrounds=TRAIN_BACKGROUNDS,
        )
        if num_colors is None or len(scene.objects) >= least_of_palette:
            return scene


def draw_events(rng: np.random.Generator, num_frames: int, least: int = 2) -> Scene:
    """Draw a clip of at least so many things of which some appear or vanish, as slowly as num_frames frames show."""
    aspect = draw_aspect(rng)
    return sample_appearing_scene(rng, aspect=aspect, duration_s=EVENT_CLIP_S, num_frames=num_frames, least=least)


def draw_quick_events(rng: np.random.Generator) -> Scene:
    """Draw a clip in which things appear and jump, half of them as quickly as in the suite of scale."""
    is_quick = bool(rng.random() < QUICK_SHARE)
    gaps, jumps = (QUICK_GAPS, QUICK_JUMPS) if is_quick else (SLOW_GAPS, SLOW_JUMPS)
    return sample_event_scene(rng, aspect=draw_aspect(rng), duration_s=EVENT_CLIP_S, gaps=gaps, jumps=jumps)


def draw_timed(rng: np.random.Generator, num_frames: int) -> Scene:
    """Draw a clip of things that stay, leave or move for a while, which num_frames frames show."""
    return sample_timed_scene(rng, aspect=draw_aspect(rng), duration_s=EVENT_CLIP_S, num_frames=num_frames)


def draw_timed_turns(
    rng: np.random.Generator, scene: Scene, num_frames: int, num_turns: int, num_tokens: int
) -> list[Question]:
    """Ask when of half of the turns, and whether of the others, half of which is not so.

    Args:
        rng: chooses.
        scene: of `draw_timed`.
        num_frames: that show it.
        num_turns: at most.
        num_tokens: time tokens of the model.
    """
    duration_s = scene.duration_s * num_frames / (num_frames - 1)  # the last frame lasts as long as the others
    events, nothing = happening(scene, duration_s), not_happening(rng, scene)
    events, nothing = ([each[i] for i in rng.permutation(len(each))] for each in (events, nothing))
    num_when, num_each = (num_turns + 1) // 2, (num_turns + 2) // 4
    turns = [_ask_when(event, duration_s, num_tokens) for event in events[:num_when]]
    turns += [whether(event) for event in [*events[-num_each:], *nothing[:num_each]]]
    return [turns[i] for i in rng.permutation(len(turns))]


def _ask_when(event: TimedEvent, duration_s: float, num_tokens: int) -> Question:
    names = time_token_names(num_tokens)
    start, end = (names[token_of_place(t_s / duration_s, num_tokens)] for t_s in (event.start_s, event.end_s))
    return Question(TIMED, WHEN.format(event.text), f"{start} {end}")


def draw_turns(
    rng: np.random.Generator,
    scene: Scene,
    t_s: float | None,
    num_turns: int,
    relations: Sequence[str] = (),
    more_kinds: Sequence[str] = (),
    num_more: int = 0,
) -> list[Question]:
    """Draw num_turns questions about one frame, or of a clip if t_s is None, and of some a description.

    Of those about one frame num_more at most ask whether some relations hold, or else are of more_kinds, beside what
    falls to these anyway.
    """
    if t_s is None:  # motion is what a clip is there for: half of its turns ask about it
        turns = conversation(rng, scene, num_turns // 2, ("motion",))
        turns += conversation(rng, scene, num_turns - len(turns), STILL_KINDS)
        turns = [turns[i] for i in rng.permutation(len(turns))]
    else:
        turns = []
        if relations:
            turns = _ask_relations(rng, scene, t_s, relations)[:num_more]
        elif more_kinds:
            turns = conversation(rng, scene, num_more, more_kinds, t_s=t_s)
        turns += conversation(rng, scene, num_turns - len(turns), STILL_KINDS, t_s=t_s)
    described = ask(rng, scene, "describe", t_s=t_s)
    return [*turns, described] if described is not None and rng.random() < DESCRIBE_SHARE else turns


def _ask_relations(rng: np.random.Generator, scene: Scene, t_s: float, relations: Sequence[str]) -> list[Question]:
    """Return all questions whether one of some relations holds, in any order."""
    every = 4 * MAX_OBJECTS * (MAX_OBJECTS - 1)
    asked = conversation(rng, scene, every, ("relation",), t_s=t_s)
    return [question for question in asked if any(f" {relation} the " in question.text for relation in relations)]


def draw_event_turns(rng: np.random.Generator, scene: Scene) -> list[Question]:
    """Ask what appeared first and what vanished, twice each: little else is to be learned of so many frames."""
    asked = [ask(rng, scene, kind) for kind in ("order", "vanish", "order", "vanish")]
    return [question for question in asked if question is not None]


def draw_wide(rng: np.random.Generator, look: Look, palette_share: float) -> Scene:
    """Draw a wide scene, of any of `ASPECTS`; a share has things of two colours alone."""
    num_colors = 2 if rng.random() < palette_share else None
    return sample_wide_scene(rng, look, aspect=draw_aspect(rng), num_colors=num_colors)


def draw_wide_event_turns(rng: np.random.Generator, scene: Scene) -> list[Question]:
    """Ask what appeared first and what vanished, in many words, and now and then for what is not of the world."""
    kinds = ("order", "vanish", "order", "vanish", "unknown-open")
    asked = [ask_wide(rng, scene, kind, t_s=None) for kind in kinds]
    return [question for question in asked if question is not None]
