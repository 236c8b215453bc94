"""The demo's questions about a live world: when each can be asked, and its true answer by the stamps of the answer.

A question is asked about the scene that is shown now. By the time the model looks, the scene may have changed. So the
true answer is found afterwards, from the stamps alone: the same seed asks again about what those stamps saw, and only
where that gives the same question is its answer the truth.
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

EndpointKind = Literal["service", "action"]


@dataclass(frozen=True, slots=True)
class QuizItem:
    """One question of the demo: its kind, over how many frames of how long, by which endpoint it is asked.

    Attributes:
        seed: chooses what the question is about, and its phrasing.
        window_s: 0 with a single frame.
    """

    kind: str
    seed: int
    endpoint: EndpointKind = "service"
    num_frames: int = 1
    window_s: float = 0.0

    @property
    def is_clip(self) -> bool:
        """Whether it is about several frames."""
        return self.num_frames > 1


CLIP_S = 2.0
QUIZ: tuple[tuple[QuizItem, ...], ...] = (
    (
        QuizItem("color", 1),
        QuizItem("shape", 2),
        QuizItem("count", 3, "action"),
        QuizItem("exist", 4),
        QuizItem("where", 5, "action"),
        QuizItem("motion", 6, "action", 8, CLIP_S),
        QuizItem("relation", 17),
    ),
    (
        QuizItem("describe", 7, "action"),
        QuizItem("color", 8, "action"),
        QuizItem("exist", 9),
        QuizItem("shape", 10),
        QuizItem("motion", 11, "service", 8, CLIP_S),
        QuizItem("count-color", 18),
    ),
    (
        QuizItem("count", 12),
        QuizItem("shape", 13, "action"),
        QuizItem("where", 14),
        QuizItem("count", 15, "service", 8, CLIP_S),
        QuizItem("motion", 16, "action", 8, CLIP_S),
        QuizItem("size", 19, "action"),
    ),
)
"""The questions of each camera."""


class KnownWorld(Protocol):
    """A frame source that knows which scene it shows."""

    def moment_at(self, stamp_ns: int) -> Moment:
        """Return the scene shown at a stamp."""
        ...


def pose(world: KnownWorld, item: QuizItem, now_ns: int, since_ns: int, scene_s: float) -> Question | None:
    """Return the question to ask now, or None where it cannot be asked now.

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


def find_truth(world: KnownWorld, item: QuizItem, question: Question, stamps_ns: Sequence[int]) -> Question | None:
    """Return the question with the answer that is true of the frames, or None where it cannot be known."""
    moments = [world.moment_at(stamp_ns) for stamp_ns in stamps_ns]
    if len({moment.scene_id for moment in moments}) != 1 or len(moments) != item.num_frames:
        return None
    asked = _ask(item, moments[-1])
    return asked if asked is not None and asked.text == question.text else None


def _ask(item: QuizItem, moment: Moment) -> Question | None:
    return ask(scene_rng(item.seed), moment.scene, item.kind, t_s=None if item.is_clip else moment.t_s)
