"""Questions about a live world, posed when they make sense, and their truth by the stamps of the answer.

A question is posed on the scene that is shown now; by the time the model looks, the scene may have changed. So the
truth is told afterwards, from the stamps alone: the same seed asks again about what those stamps saw, and only where
that gives the same words does its answer hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from nvila_ros.types import NS_PER_S
from nvila_ros.world.frame_source import Moment
from nvila_ros.world.questions import Question, ask
from nvila_ros.world.scene import scene_rng

SETTLE_S = 0.25
"""A scene is asked about from here on: its frames have arrived."""
HASTE_S = 0.4
"""And no later than this before its end."""

Door = Literal["service", "action"]


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of the quiz: what kind of question, of how many frames over how long, and through which door.

    Attributes:
        seed: chooses what to ask about and how.
        window_s: 0 with a single frame.
    """

    kind: str
    seed: int
    door: Door = "service"
    num_frames: int = 1
    window_s: float = 0.0

    @property
    def is_clip(self) -> bool:
        """Whether it is asked of several frames."""
        return self.num_frames > 1


CLIP_S = 2.0
QUIZ: tuple[tuple[Item, ...], ...] = (
    (
        Item("color", 1),
        Item("shape", 2),
        Item("count", 3, "action"),
        Item("exist", 4),
        Item("where", 5, "action"),
        Item("motion", 6, "action", 8, CLIP_S),
        Item("relation", 17),
    ),
    (
        Item("describe", 7, "action"),
        Item("color", 8, "action"),
        Item("exist", 9),
        Item("shape", 10),
        Item("motion", 11, "service", 8, CLIP_S),
        Item("count-color", 18),
    ),
    (
        Item("count", 12),
        Item("shape", 13, "action"),
        Item("where", 14),
        Item("count", 15, "service", 8, CLIP_S),
        Item("motion", 16, "action", 8, CLIP_S),
        Item("size", 19, "action"),
    ),
)
"""What each camera is asked."""


class World(Protocol):
    """A source that knows what it shows."""

    def moment_at(self, stamp_ns: int) -> Moment:
        """Return the scene shown at a stamp."""
        ...


def pose(world: World, item: Item, now_ns: int, since_ns: int, scene_s: float) -> Question | None:
    """Pose a question now, or None where this is not the time for it.

    Args:
        world: what the camera sees.
        item: what to ask.
        now_ns: about the stamp of the newest frame.
        since_ns: stamp of the camera's first frame.
        scene_s: how long a scene is shown.
    """
    moment = world.moment_at(now_ns)
    is_settled = moment.t_s >= item.window_s + SETTLE_S and moment.t_s <= scene_s - HASTE_S
    is_filmed = now_ns - since_ns >= item.window_s * NS_PER_S
    is_apt = item.kind != "motion" or moment.scene.is_moving
    return _ask(item, moment) if is_settled and is_filmed and is_apt else None


def find_truth(world: World, item: Item, question: Question, stamps_ns: Sequence[int]) -> Question | None:
    """Return the question with the answer that is true of the frames, or None where it cannot be told."""
    moments = [world.moment_at(stamp_ns) for stamp_ns in stamps_ns]
    if len({moment.scene_id for moment in moments}) != 1 or len(moments) != item.num_frames:
        return None
    asked = _ask(item, moments[-1])
    return asked if asked is not None and asked.text == question.text else None


def _ask(item: Item, moment: Moment) -> Question | None:
    return ask(scene_rng(item.seed), moment.scene, item.kind, t_s=None if item.is_clip else moment.t_s)
