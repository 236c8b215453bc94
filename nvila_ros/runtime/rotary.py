"""Rotary tables and masks, inputs of the decoder graph."""

from __future__ import annotations

import numpy as np

from nvila_ros.models.spec import DecoderSpec

FIRST_POSITIONS = 1024
"""Positions whose rows are computed at first."""
HIDDEN = np.float32(-1e9)
"""Added to the score of a row that a token may not attend to; finite, since a runtime may compute 0 times it."""


def rotary_tables(spec: DecoderSpec, num_positions: int) -> tuple[np.ndarray, np.ndarray]:
    """Return cos and sin of positions [0, num_positions), (num_positions, S) float32 each."""
    exponent = np.arange(0, spec.head_size, 2, dtype=np.float32) / np.float32(spec.head_size)
    frequency = np.float32(1) / np.float32(spec.rope_theta) ** exponent  # rounded to float32 first, as in training
    angle = np.arange(num_positions, dtype=np.float32)[:, None] * frequency
    angle = np.concatenate([angle, angle], axis=-1)
    return np.cos(angle), np.sin(angle)


class RotaryRows:
    """Rows of the rotary tables by position; the tables grow to the positions that are asked for, by half at least.

    Attributes:
        num_positions: positions that the model was trained for; the caller keeps to them.
    """

    def __init__(self, spec: DecoderSpec) -> None:
        self.num_positions = spec.max_positions
        self._spec = spec
        self._tables = rotary_tables(spec, min(FIRST_POSITIONS, spec.max_positions))

    @property
    def num_held(self) -> int:
        """Positions whose rows are held."""
        return len(self._tables[0])

    def __call__(self, positions_L: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return cos and sin of L positions in [0, num_positions), (L, S) float32 each."""
        num_needed = int(positions_L.max(initial=-1)) + 1
        if num_needed > self.num_held:
            num_held = min(max(num_needed, self.num_held * 3 // 2), self.num_positions)
            self._tables = rotary_tables(self._spec, num_held)
        cos, sin = self._tables
        return cos[positions_L], sin[positions_L]


def causal_mask(num_new: int, num_all: int) -> np.ndarray:
    """Return the additive mask of the last `num_new` of `num_all` tokens, (num_new, num_all) float32."""
    if num_new == 1:
        return np.zeros((1, num_all), np.float32)
    return additive_mask(np.tri(num_new, num_all, num_all - num_new, dtype=bool))


def additive_mask(sees_LM: np.ndarray) -> np.ndarray:
    """Return what is added to scores so that each token attends only to the rows it sees, (L, M) float32."""
    return np.where(sees_LM, np.float32(0), HIDDEN)
