"""Weights that hold NaN or infinity are refused: one of them makes every answer of the model wrong."""

from __future__ import annotations

import numpy as np

from nvila_ros.errors import CheckpointError

FLOAT_DTYPES = ("BF16", "F16", "F32", "F64")
"""In safetensors' spelling."""
_CHUNK = 1 << 18
"""Values at a time: both passes over them read from a core's own cache."""


def is_finite(array: np.ndarray) -> bool:
    """Whether no value of a contiguous array of bfloat16, float16, float32 or float64 is NaN or infinite.

    NaN and infinity are the floats with the largest bit patterns: as signed integers the positive ones are largest, as
    unsigned integers the negative ones. Two maxima over integers read 14 to 19 GB/s, numpy's isfinite over bfloat16
    less than one.
    """
    infinity = np.array([np.inf, -np.inf], array.dtype)
    signed, unsigned = (np.dtype(f"{kind}{array.itemsize}") for kind in "iu")
    most, most_negative = infinity.view(signed)[0], infinity.view(unsigned)[1]
    flat = array.reshape(-1)
    return not any(
        chunk.view(signed).max() >= most or chunk.view(unsigned).max() >= most_negative
        for chunk in (flat[start : start + _CHUNK] for start in range(0, flat.size, _CHUNK))
    )


def check_finite(name: str, array: np.ndarray) -> None:
    """Refuse a tensor that holds NaN or infinity.

    Raises:
        CheckpointError: it does; the message has the place of the first such value.
    """
    if is_finite(array):
        return
    values = array.reshape(-1).astype(np.float64)
    first = int(np.flatnonzero(~np.isfinite(values))[0])
    place = ", ".join(str(int(i)) for i in np.unravel_index(first, array.shape))
    count = int(np.count_nonzero(~np.isfinite(values)))
    raise CheckpointError(
        f"{name} must be finite, {count} of its {values.size} values are not, the first is {values[first]} at "
        f"[{place}]; copy the weights again, or make them again from weights that are finite"
    )
