"""Which frames of a clip are shown: key frames, and frames between that differ from the last one shown.

Frames are compared by their visual tokens, each with the one at its place. Comparing with the last frame that is shown,
not with the one before, a slow change is seen once it has added up. Nothing later decides about a frame, so a clip that
grows at its end keeps the frames that it showed, but for what was the newest, which is shown in any case.

Training-free, after Efficient Video Sampling (arXiv 2510.14624) and the differential token drop of TimeChat-Online
(arXiv 2504.17343), which leave out single tokens; docs/decisions.md says why whole frames are left out here.

Shapes: F frames, G visual tokens of a frame, D decoder width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nvila_ros.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ChangeRule:
    """What is left out of a clip.

    Attributes:
        threshold: a frame differs where some token's distance, 1 - cosine, to the one shown last exceeds this, 0 to 2;
            0 leaves nothing out.
        key_every: of so many frames in a row the first is shown in any case.

    Raises:
        ConfigError: a value outside its range.
    """

    threshold: float = 0.0
    key_every: int = 8

    def __post_init__(self) -> None:
        """Check the range of both."""
        if not 0 <= self.threshold <= 2:
            raise ConfigError(
                f"change_threshold must lie in [0, 2], got {self.threshold}; 0 leaves out nothing, 0.3 is a beginning"
            )
        if self.key_every < 1:
            raise ConfigError(f"key_every must be at least 1 frame, got {self.key_every}; 1 shows every frame")


SHOW_ALL = ChangeRule()
"""Leaves nothing out."""


def choose_changed(visual_FGD: np.ndarray, rule: ChangeRule) -> list[int]:
    """Return the frames that are shown, ascending indices; the first and the newest always are.

    Args:
        visual_FGD: of a clip; where the model averages frames, of their groups.
        rule: what is left out.
    """
    if not rule.threshold:
        return list(range(len(visual_FGD)))
    exact = visual_FGD.astype(np.float64)
    return list(_choose(exact / np.linalg.norm(exact, axis=-1, keepdims=True).clip(1e-12), rule))


def _choose(unit_FGD: np.ndarray, rule: ChangeRule) -> Iterator[int]:
    last = unit_FGD[0]
    for index, unit_GD in enumerate(unit_FGD):
        is_fixed = index % rule.key_every == 0 or index == len(unit_FGD) - 1
        if is_fixed or (1 - (unit_GD * last).sum(axis=-1)).max() > rule.threshold:
            last = unit_GD
            yield index
