"""Questions that need a clip, before cameras that stand, pan, or see in the dark."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from nvila_ros.tools.suites import HEIGHT, WIDTH
from nvila_ros.types import NS_PER_S, Frame
from nvila_ros.world.questions import EVAL_CLIP_S, EvalCase, eval_case
from nvila_ros.world.rendering import render
from nvila_ros.world.scale_questions import EVAL_CLIP_S as QUICK_CLIP_S
from nvila_ros.world.scale_questions import eval_scale_case
from nvila_ros.world.scene import Scene

CAMERAS = ("still", "panning", "busy")
QUICK = "quick "
"""Before a kind that is asked of events too quick for eight frames."""
PAN_PX = 60


def clip_case(kind: str, index: int) -> tuple[EvalCase, float]:
    """Return case number index of a kind, and how many seconds its clip lasts."""
    if kind.startswith(QUICK):
        return eval_scale_case(kind.removeprefix(QUICK), index), QUICK_CLIP_S
    return eval_case(kind, index), EVAL_CLIP_S


def film_clip(scene: Scene, camera: str, duration_s: float, num_frames: int) -> list[Frame]:
    """Film frames evenly from the scene's beginning to its end.

    The still camera has at most two grey levels of noise and steady light. The panning one turns by sixty pixels and
    back. The busy one has ten grey levels of noise and the scene's own light, which drifts.
    """
    if camera == "busy":
        scene = replace(scene, noise=10.0)
    else:
        scene = replace(scene, noise=min(scene.noise, 2.0), light=replace(scene.light, drift=0.0))
    frames = []
    for t_s in np.linspace(0, duration_s, num_frames).tolist():
        image = render(scene, t_s, WIDTH, HEIGHT)
        if camera == "panning":
            moves = np.array([[1, 0, PAN_PX * np.sin(np.pi * t_s / duration_s)], [0, 1, 0]], np.float32)
            image = cv2.warpAffine(image, moves, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REPLICATE)
        frames.append(Frame(image=np.asarray(image), stamp_ns=round(t_s * NS_PER_S), camera=camera))
    return frames
