"""Events with a begin and an end: things that are there for a while, move for a while, or are gone.

In: a `numpy.random.Generator`. Out: a `Scene` of two to four things of which most do something once, and the events in
it, beside others that do not happen: of things that are not there, and of things that do nothing of the kind.

What stays, is gone or moves does so for at least `LEAST_GAPS` gaps between frames, and what begins or ends in a clip
does so behind its first and before its last frame.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from nvila_ros.world.events import draw_apart, draw_way
from nvila_ros.world.question_kinds import name_of, with_article
from nvila_ros.world.questions import EvalCase, Question
from nvila_ros.world.scene import COLORS, EVAL_SEED_BASE, SHAPES, Object, Scene, Slide, scene_rng
from nvila_ros.world.scene_sampler import dress_scene

LEAST_GAPS = 2.0
"""Least length of an event, in gaps between frames."""
EVENT_TEXTS = {"there": "{} is there", "gone": "the {} is gone", "moves": "the {} moves"}
"""What is asked for, by kind: a stay, an absence, a move."""
ABSENT = "absent"
"""Kind of an event that does not happen."""
NONE = "none"
"""Answer where nothing happens."""
EVAL_KINDS = (*EVENT_TEXTS, ABSENT)
EVAL_CLIP_FRAMES = 8
"""Frames of an evaluation clip."""
EVAL_CLIP_S = 4.0
"""Seconds from the first to the last frame of an evaluation clip."""
WHEN = 'When does "{}" happen in the video? Answer the question only using start and end timestamps.'
WHETHER = 'Does "{}" happen in the video?'

_EVAL_SEED = EVAL_SEED_BASE + 3 * 2**28  # clear of the seeds of the other suites
_ROLES = ("stay", "come", "leave", "move", "move", "stand")
_EDGE_GAPS = 0.2
_LONGEST = 0.6  # of the clip: what is longer is told well by the same times for every clip


@dataclass(frozen=True, slots=True)
class TimedEvent:
    """An event of a clip.

    Attributes:
        kind: one of `EVAL_KINDS`.
        text: what happens.
        start_s: since the first frame, in [0, end_s].
        end_s: likewise; what goes on at the end of the clip ends with it.
    """

    kind: str
    text: str
    start_s: float = 0.0
    end_s: float = 0.0


def sample_timed_scene(rng: np.random.Generator, *, aspect: float, duration_s: float, num_frames: int) -> Scene:
    """Draw a scene of two to four things that come, leave, do both, move for a while or stand.

    Args:
        rng: source of all randomness.
        aspect: width / height of the camera.
        duration_s: from the first to the last frame.
        num_frames: that lie evenly from 0 to duration_s, at least 6.
    """
    placed = None
    while placed is None:
        count = int(rng.integers(2, 5))
        roles = [_ROLES[k] for k in rng.integers(0, len(_ROLES), count).tolist()]
        ways = [draw_way(rng) if role == "move" else (0.0, 0.0) for role in roles]
        placed = draw_apart(rng, ways, aspect)
    gap = 1 / (num_frames - 1)
    objects = tuple(
        _act(rng, obj, role, way, duration_s, gap) for obj, role, way in zip(placed, roles, ways, strict=True)
    )
    return dress_scene(rng, objects, aspect=aspect, duration_s=duration_s)


def _act(
    rng: np.random.Generator, obj: Object, role: str, way: tuple[float, float], duration_s: float, gap: float
) -> Object:
    if role == "stand":
        return obj
    edge, least = _EDGE_GAPS * gap, LEAST_GAPS * gap
    if role == "leave":
        return replace(obj, vanishes_s=float(rng.uniform(gap, 1 - least)) * duration_s)
    if role == "come":
        return replace(obj, appears_s=float(rng.uniform(edge, 1 - least)) * duration_s)
    length = float(rng.uniform(least, max(_LONGEST, least)))
    start = float(rng.uniform(edge, 1 - edge - length)) * duration_s
    if role == "move":
        return replace(obj, jump=Slide(start, length * duration_s, *way))
    return replace(obj, appears_s=start, vanishes_s=start + length * duration_s)


def happening(scene: Scene, duration_s: float) -> list[TimedEvent]:
    """Return all events of a scene within a clip of its frames, in the order of its things.

    Args:
        scene: of `sample_timed_scene`.
        duration_s: of the clip, a frame's period longer than from its first to its last frame.
    """
    events = []
    for obj in scene.objects:
        name, end = name_of(obj), min(obj.vanishes_s, duration_s)
        events.append(TimedEvent("there", _text("there", name), max(obj.appears_s, 0.0), end))
        if obj.vanishes_s < duration_s:
            events.append(TimedEvent("gone", _text("gone", name), obj.vanishes_s, duration_s))
        if obj.jump is not None:
            start = obj.jump.start_s
            events.append(TimedEvent("moves", _text("moves", name), start, start + obj.jump.duration_s))
    return events


def not_happening(rng: np.random.Generator, scene: Scene) -> list[TimedEvent]:
    """Return events that do not happen: what things do not do, and as many that need a thing that is not there."""
    texts = []
    for obj in scene.objects:
        if obj.jump is None:
            texts.append(_text("moves", name_of(obj)))
        if np.isinf(obj.vanishes_s):
            texts.append(_text("gone", name_of(obj)))
    present = {(obj.color, obj.shape) for obj in scene.objects}
    colors = [obj.color for obj in scene.objects] + list(COLORS)
    shapes = [obj.shape for obj in scene.objects] + list(SHAPES)
    for kind in ("there", "there", "there", "moves", "gone"):
        while (pair := (_choose(rng, colors), _choose(rng, shapes))) in present:
            pass
        texts.append(_text(kind, " ".join(pair)))
    return [TimedEvent(ABSENT, text) for text in dict.fromkeys(texts)]


def _text(kind: str, name: str) -> str:
    return EVENT_TEXTS[kind].format(with_article(name) if kind == "there" else name)


def whether(event: TimedEvent) -> Question:
    """Return whether an event happens, as the node asks before it asks when."""
    return Question("whether", WHETHER.format(event.text), "no" if event.kind == ABSENT else "yes")


def eval_timed_case(kind: str, index: int, *, aspect: float = 4 / 3) -> EvalCase:
    """Case number index of a kind: always the same, from seeds never trained on.

    The question's text is the event alone, as an answer of type `when` takes it. Its answer is begin and end in
    seconds, apart by a blank, or `NONE`. A thing that is there is so for less than the clip.
    """
    rng = scene_rng(_EVAL_SEED + index * len(EVAL_KINDS) + EVAL_KINDS.index(kind))
    duration_s = EVAL_CLIP_S * EVAL_CLIP_FRAMES / (EVAL_CLIP_FRAMES - 1)
    while True:
        scene = sample_timed_scene(rng, aspect=aspect, duration_s=EVAL_CLIP_S, num_frames=EVAL_CLIP_FRAMES)
        found = not_happening(rng, scene) if kind == ABSENT else happening(scene, duration_s)
        events = [each for each in found if each.kind == kind and each.end_s - each.start_s < duration_s]
        if events:
            event = events[int(rng.integers(len(events)))]
            truth = NONE if kind == ABSENT else f"{event.start_s:.3f} {event.end_s:.3f}"
            times_s = tuple(np.linspace(0, EVAL_CLIP_S, EVAL_CLIP_FRAMES).tolist())
            return EvalCase(scene, Question(kind, event.text, truth), times_s)


def _choose(rng: np.random.Generator, texts: list[str]) -> str:
    return texts[int(rng.integers(len(texts)))]
