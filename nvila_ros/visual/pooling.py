"""Compress visual tokens: average those of consecutive frames, rows and columns.

Source: NVLabs/VILA `TSPVideoEncoder`: pooling comes after the projector and before what follows each frame; one
dimension after the other; several levels follow one another.

Shapes: F frames, G visual tokens of a frame, D decoder width.
"""

from __future__ import annotations

import numpy as np

from nvila_ros.errors import ShapeError
from nvila_ros.models.spec import Pool


def pool_tokens(visual_FGD: np.ndarray, pool: Pool) -> np.ndarray:
    """Return the averages over groups of frames, rows and columns, (F / frames, G / (rows * columns), D).

    Raises:
        ShapeError: a side does not divide by its group.
    """
    num_frames, num_tokens, width = visual_FGD.shape
    grid = round(num_tokens**0.5)
    x = visual_FGD.reshape(num_frames, grid, grid, width)
    for axis, size in enumerate(pool):
        if x.shape[axis] % size:
            raise ShapeError(
                f"frames, rows and columns must divide by {pool}, got {num_frames} frames of {grid} x {grid} tokens; "
                "show whole groups"
            )
        if size > 1:
            x = x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :]).mean(axis + 1)
    return x.reshape(len(x), -1, width)
