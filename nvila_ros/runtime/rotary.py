"""Rotary tables and masks, inputs of the decoder graph."""

from __future__ import annotations

import numpy as np

from nvila_ros.models.spec import DecoderSpec

HIDDEN = np.float32(-1e9)
"""Added to the score of a row that a token may not attend to; finite, since a runtime may compute 0 times it."""


def rotary_tables(spec: DecoderSpec, num_positions: int) -> tuple[np.ndarray, np.ndarray]:
    """Return cos and sin of positions [0, num_positions), (num_positions, S) float32 each."""
    exponent = np.arange(0, spec.head_size, 2, dtype=np.float32) / np.float32(spec.head_size)
    frequency = np.float32(1) / np.float32(spec.rope_theta) ** exponent  # rounded to float32 first, as in training
    angle = np.arange(num_positions, dtype=np.float32)[:, None] * frequency
    angle = np.concatenate([angle, angle], axis=-1)
    return np.cos(angle), np.sin(angle)


def causal_mask(num_new: int, num_all: int) -> np.ndarray:
    """Return the additive mask of the last `num_new` of `num_all` tokens, (num_new, num_all) float32."""
    if num_new == 1:
        return np.zeros((1, num_all), np.float32)
    return additive_mask(np.tri(num_new, num_all, num_all - num_new, dtype=bool))


def additive_mask(sees_LM: np.ndarray) -> np.ndarray:
    """Return what is added to scores so that each token attends only to the rows it sees, (L, M) float32."""
    return np.where(sees_LM, np.float32(0), HIDDEN)
