"""Whether frames look like the world that a small model was trained on; beyond it, its answers mean nothing.

In: the visual tokens of each frame as it is encoded. Out: a warning once most of the last frames lie outside. A frame
is judged by a linear score of the mean, maximum, minimum and standard deviation of its tokens, in microseconds.
`benchmarks.known_world` fits it and measures how often it is right; it lies beside the weights that it belongs to, and
a checkpoint without one is never judged.

Shapes: B blocks, G visual tokens of a block, D decoder width.
"""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nvila_ros.errors import CheckpointError
from nvila_ros.files import read_json

FILE = "known_world.json"
WARNING = (
    "what is seen looks unlike the coloured shapes that {} was trained on, and its answers mean nothing there; load a "
    "published NVILA for real scenes (docs/models.md)"
)
NUM_LAST = 8
"""Frames that are judged together."""
FAR_SHARE = 0.75
"""Share of them that must lie outside: a single one does so in the model's own world now and then."""
_WEIGHTS = ("vision_tower/model.safetensors", "mm_projector/model.safetensors")


def pool(visual_BGD: np.ndarray) -> np.ndarray:
    """Return what of a frame's visual tokens is judged, (4 D,) float32."""
    tokens = visual_BGD.reshape(-1, visual_BGD.shape[-1]).astype(np.float32)
    return np.concatenate([tokens.mean(0), tokens.max(0), tokens.min(0), tokens.std(0)])


def weights_digest(folder: Path) -> str:
    """Return the digest of the weights that visual tokens depend on."""
    hasher = hashlib.sha256()
    for name in _WEIGHTS:
        hasher.update((folder / name).read_bytes())
    return hasher.hexdigest()


@dataclass(frozen=True, slots=True)
class WorldScore:
    """A linear score, (4 D,) float32 weights and a bias; above 0 a frame lies outside."""

    weights: np.ndarray
    bias: float

    @classmethod
    def of(cls, folder: Path, width: int) -> WorldScore | None:
        """Return that of a checkpoint's folder, for tokens of a width; None where there is none.

        Raises:
            CheckpointError: the file is damaged.
        """
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            values = read_json(path)
            weights, bias = np.asarray(values["weights"], np.float32), float(values["bias"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{path} must hold weights and bias: {error}; copy it anew or remove it") from error
        if weights.shape != (4 * width,) or not np.isfinite(weights).all() or not np.isfinite(bias):
            raise CheckpointError(f"{path} must hold {4 * width} finite weights, got {weights.shape}; copy it anew")
        return cls(weights, bias)

    def is_far(self, visual_BGD: np.ndarray) -> bool:
        """Whether a frame lies outside."""
        return float(pool(visual_BGD) @ self.weights) + self.bias > 0


class WorldWatch:
    """Judges the frames that a model sees.

    Args:
        world: that the model knows; None judges nothing.
        name: of the model.
    """

    def __init__(self, world: WorldScore | None, name: str) -> None:
        self._world, self._name = world, name
        self._last: deque[bool] = deque(maxlen=NUM_LAST)

    def see(self, visual_BGD: np.ndarray) -> None:
        """Judge a frame that was encoded."""
        if self._world is not None:
            self._last.append(self._world.is_far(visual_BGD))

    def forget(self) -> None:
        """Begin anew."""
        self._last.clear()

    def warning(self, least: int = NUM_LAST // 2) -> str:
        """Return a remark on the last frames, or an empty text.

        Args:
            least: frames that must have been seen.
        """
        last = tuple(self._last)  # another thread may add one
        is_far = len(last) >= max(least, 1) and sum(last) >= FAR_SHARE * len(last)
        return WARNING.format(self._name) if is_far else ""
