"""What nvila-tiny was trained and is measured on stays what it was: cases, scenes and batches of fixed seeds."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from nvila_ros.paths import share_path
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.training.batches import Batches
from nvila_ros.training.mix import Mix
from nvila_ros.training.tiny import SPEC
from nvila_ros.world.live_world import LiveWorld
from nvila_ros.world.questions import eval_case
from nvila_ros.world.scene import Scene

FIRST_KINDS = ("color", "shape", "count", "exist", "where", "motion", "describe")
MIX = Mix(kinds=("dense", "images", "clips", "events"), seed_base=1 << 24, num_samples=6, num_clips=4)
FIELDS = ("shape", "color", "rgb", "size", "x", "y", "vx", "vy", "angle")
GROUND_FIELDS = ("kind", "low", "high", "period", "angle", "seed")


def as_text(scene: Scene) -> str:
    """A scene's objects and look in all digits of each float."""
    objects = [tuple(getattr(obj, name) for name in FIELDS) for obj in scene.objects]
    ground = ", ".join(f"{name}={getattr(scene.background, name)!r}" for name in GROUND_FIELDS)
    look = f"Background({ground}), {scene.light!r}, {scene.noise!r}, {scene.blur!r}"
    return f"({objects!r}, {look}, {scene.duration_s!r}, {scene.seed!r})"


def digest(texts: list[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def test_cases_of_the_first_suite_are_unchanged() -> None:
    cases = [eval_case(kind, index) for kind in FIRST_KINDS for index in range(40)]

    assert digest([repr((case.question, case.times_s)) + as_text(case.scene) for case in cases]) == "f8f7b65abe3653fa"


def test_live_world_is_unchanged() -> None:
    world = LiveWorld(3)

    assert digest([as_text(world.scene_at(1.3 * k)[1]) for k in range(20)]) == "a9ff8487280f1800"


@pytest.mark.slow
def test_batches_of_nvila_tiny_are_unchanged() -> None:
    tokenizer = ChatTokenizer.from_folder(Path(share_path("checkpoints", "nvila-tiny", "llm")))
    batches = Batches(MIX, tokenizer, SPEC)

    seen = [batches[step] for step in range(8)]
    labels = [getattr(each, name) for each in seen for name in ("color_NP", "motion_NG", "event_NG")]
    labels += [each.chats.ids_BL for each in seen if each.chats is not None]
    assert digest([repr(np.asarray(each).tolist()) for each in labels]) == "160e5c31acf610af"
