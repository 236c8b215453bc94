"""What each size of a spec may be: checked when the spec is made, before anything is allocated by it.

The bounds are far beyond every published model, and small enough that a false config costs neither memory nor time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from nvila_ros.errors import CheckpointError, shown


class SizeBound(NamedTuple):
    """The largest value of a size, and the key that upstream's configs have for it."""

    most: int
    key: str = ""


SIZES = {
    "width": SizeBound(1 << 16, "hidden_size"),
    "num_layers": SizeBound(1 << 10, "num_hidden_layers"),
    "num_heads": SizeBound(1 << 10, "num_attention_heads"),
    "num_kv_heads": SizeBound(1 << 10, "num_key_value_heads"),
    "mlp_width": SizeBound(1 << 20, "intermediate_size"),
    "image_px": SizeBound(1 << 12, "image_size"),
    "patch_px": SizeBound(1 << 12, "patch_size"),
    "in_width": SizeBound(1 << 20, "mm_hidden_size"),
    "out_width": SizeBound(1 << 16, "hidden_size"),
    "vocab_size": SizeBound(1 << 22),
    "max_positions": SizeBound(1 << 20, "max_position_embeddings"),
    "num_video_frames": SizeBound(1 << 13),
    "min_tiles": SizeBound(1 << 8),
    "max_tiles": SizeBound(1 << 8),
}
"""By the field's name."""
NUMBERS = {"norm_eps": (1e-12, 1.0), "rope_theta": (1.0, 1e12)}
"""Least and largest value of the numbers that are not whole, by the field's name."""
MAX_SCALES, MAX_POOLS = 16, 16
MAX_HEAD_SIZE = 1 << 10
"""Tables of rotary positions have a row of this width for each position."""
MAX_PATCHES = 1 << 16
"""Of a tile; attention takes memory by their square."""
MAX_WRAP = 256
"""Characters."""
_AGAIN = "copy the config again"


def check_sizes(spec: object, *names: str) -> None:
    """Check that fields of a spec are whole numbers within their bounds.

    Raises:
        CheckpointError: one is not.
    """
    for name in names:
        value, bound = getattr(spec, name), SIZES[name]
        if type(value) is not int or not 1 <= value <= bound.most:
            key = f" ({bound.key} in the config)" if bound.key else ""
            raise CheckpointError(
                f"{name} must be a whole number from 1 to {bound.most}, got {shown(value)}{key}; {_AGAIN}"
            )


def check_numbers(spec: object, *names: str) -> None:
    """Check that fields of a spec are numbers within their bounds.

    Raises:
        CheckpointError: one is not.
    """
    for name in names:
        value, (least, most) = getattr(spec, name), NUMBERS[name]
        if type(value) not in (int, float) or not least <= value <= most:
            raise CheckpointError(f"{name} must be a number from {least:g} to {most:g}, got {shown(value)}; {_AGAIN}")


def check_most(name: str, value: int, most: int) -> None:
    """Check a derived size.

    Raises:
        CheckpointError: it is too large.
    """
    if value > most:
        raise CheckpointError(f"{name} must be at most {most}, got {shown(value)}; {_AGAIN}")


def check_multiple(whole_name: str, whole: int, part_name: str, part: int) -> None:
    """Check that a size is a multiple of another.

    Raises:
        CheckpointError: it is not.
    """
    if part <= 0 or whole % part:
        raise CheckpointError(f"{whole_name} must be a multiple of {part_name}, got {whole} and {part}")


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Check that a value is one of those that are known.

    Raises:
        CheckpointError: it is not.
    """
    if value not in known:
        raise CheckpointError(f"unknown {name} {shown(value)}; known are {list(known)}")


def check_pool(pool: Sequence[int], most_frames: int) -> None:
    """Check that a pool is three whole numbers, of frames, rows and columns.

    Raises:
        CheckpointError: it is not.
    """
    is_whole = len(pool) == 3 and all(type(size) is int and size >= 1 for size in pool)
    if not is_whole or max(pool) > most_frames:
        raise CheckpointError(f"a pool must be three whole numbers from 1 to {most_frames}, got {shown(pool)}")
