"""The camera that films the synthetic world, and the dense labels of what it sees.

In: a `Scene` and a time. Out: the frame ``(height, width, 3)`` uint8 RGB at any size, and which object lies
under each patch of it.

A frame shows the scene as a camera of `Scene.aspect` sees it; asked for another width / height the picture is
stretched, as the model's square resize does, so at no size do objects leave the frame or touch.

What survives the resize to the model's small square is alike whatever size was drawn: blur is relative to the
height, and sensor noise is a field of at most `GRAIN_ROWS` rows, interpolated up for larger frames. Fresh
noise at each pixel of a 720-row frame would average away in that resize, while at 168 rows it would stay.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import cv2
import numpy as np

from nvila_ros.world.grounds import WIDE_KINDS, render_ground
from nvila_ros.world.scene import (
    COLORS,
    CONTOURS,
    SHAPES,
    Background,
    Object,
    Scene,
)

Render = Callable[[Scene, float, int, int], np.ndarray]
"""Returns a scene at a time (s) in width and height (px), (H, W, 3) uint8 RGB."""

GRAIN_ROWS = 168
"""Rows of the noise field; larger frames interpolate it."""

LEAST_COVER = 0.3
"""Share of a patch that an object covers at least to own it."""
_SHIFT_BITS = 4
_AA_GROWTH_PX = 0.58  # measured: how far OpenCV's antialiased fill reaches beyond the outline
_TILE_SIGMA = 25.0  # grey levels; sigma of the stored noise tile
# Measured on 112 x 112 resizes: with these, noise of small and of interpolated fields is as strong as that of
# a field shown pixel for pixel, within 3 percent.
_SMALL_GAIN = 0.81
_LARGE_GAIN = 1.15


def render(scene: Scene, t_s: float, width: int, height: int) -> np.ndarray:
    """Film one frame.

    Args:
        scene: what to film.
        t_s: time since the scene began; objects are inside the frame for 0..scene.duration_s.
        width: in pixels; where width / height differs from scene.aspect the picture is stretched.
        height: in pixels.

    Returns:
        (height, width, 3) uint8 RGB, the same for the same arguments.
    """
    frame = render_background(scene.background, scene.aspect, width, height).copy()
    visible = [obj for obj in scene.objects if obj.is_visible(t_s)]
    if scene.shadow is not None:
        frame = _cast_shadows(frame, scene, visible, t_s)
    for obj in visible:
        contours = _contours_px(obj, t_s, scene.aspect, width, height, inset_px=_AA_GROWTH_PX)
        cv2.fillPoly(frame, contours, obj.rgb, cv2.LINE_AA, _SHIFT_BITS)
    frame = _blur(frame, scene.blur * width / scene.aspect, scene.blur * height)
    ramp = np.arange(256, dtype=np.float32)[:, None] * np.array(scene.light.gains(t_s), np.float32)
    frame = cv2.LUT(frame, np.minimum(ramp + 0.5, 255).astype(np.uint8)[None])
    return _add_noise(frame, scene, t_s)


def _cast_shadows(frame: np.ndarray, scene: Scene, visible: list[Object], t_s: float) -> np.ndarray:
    shadow = scene.shadow
    assert shadow is not None
    height, width = frame.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    for obj in visible:
        moved = replace(obj, x=obj.x + shadow.dx / scene.aspect, y=obj.y + shadow.dy)
        cv2.fillPoly(mask, _contours_px(moved, t_s, scene.aspect, width, height), 255, cv2.LINE_AA, _SHIFT_BITS)
    soft = _blur(mask, shadow.softness * width / scene.aspect, shadow.softness * height)
    factor = 1 - (shadow.strength / 255) * soft.astype(np.float32)
    return (frame * factor[..., None] + 0.5).astype(np.uint8)


def _contours_px(
    obj: Object, t_s: float, aspect: float, width: int, height: int, inset_px: float = 0.0
) -> list[np.ndarray]:
    """Contours (n, 2) int32 of the object in fixed-point pixels, drawn in by inset_px (a hole: widened)."""
    x, y = obj.position(t_s)
    cos, sin = math.cos(obj.angle), math.sin(obj.angle)
    turn = np.array([[cos, sin], [-sin, cos]])
    radius_px = obj.size * np.array([width / aspect, height])
    centre_px = np.array([x * width, y * height]) - 0.5  # OpenCV's pixel centres lie at whole numbers
    contours = []
    for contour, sign in zip(CONTOURS[obj.shape], (-1, 1), strict=False):
        scale_px = radius_px + sign * inset_px / float(np.abs(contour).max())
        points_px = contour @ turn * scale_px + centre_px
        contours.append(np.rint(points_px * (1 << _SHIFT_BITS)).astype(np.int32))
    return contours


def _blur(frame: np.ndarray, sigma_x_px: float, sigma_y_px: float) -> np.ndarray:
    """Gaussian blur; below a quarter of a pixel nothing is to be seen of it."""
    if max(sigma_x_px, sigma_y_px) < 0.25:
        return frame
    size = (2 * math.ceil(2.5 * sigma_x_px) + 1, 2 * math.ceil(2.5 * sigma_y_px) + 1)
    return cv2.GaussianBlur(frame, size, sigma_x_px, sigmaY=sigma_y_px, borderType=cv2.BORDER_REPLICATE)


@lru_cache(maxsize=8)
def render_background(background: Background, aspect: float, width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8 RGB of the background before blur and light; shared, so not writeable."""
    if background.kind in WIDE_KINDS:
        return render_ground(background, aspect, width, height)
    mask = _texture(background, aspect, width, height)
    ramp = np.linspace(0, 1, 256)[:, None]
    low, high = np.array(background.low), np.array(background.high)
    table = np.rint(low + ramp * (high - low)).astype(np.uint8)
    frame = cv2.LUT(cv2.merge([mask, mask, mask]), table[None])
    frame.flags.writeable = False
    return frame


def _texture(background: Background, aspect: float, width: int, height: int) -> np.ndarray:
    """(height, width) uint8 blend of the background's two colours."""
    cos, sin = math.cos(background.angle), math.sin(background.angle)
    if background.kind == "plain":
        return np.full((height, width), 128, np.uint8)
    if background.kind == "gradient":
        axis = np.linspace(-1, 1, 17)
        slope = (np.add.outer(sin * axis, cos * axis) / (abs(sin) + abs(cos)) + 1) * 127.5
        return cv2.resize(slope.astype(np.uint8), (width, height))
    if background.kind == "noise":
        rng = np.random.default_rng(background.seed)
        rows = round(1 / background.period) + 2
        cells = rng.integers(0, 256, (rows, round(rows * aspect) + 1), np.uint8)
        return cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC)
    if background.kind == "clouds":
        return _clouds(background, aspect, width, height)
    u = (np.arange(width, dtype=np.float32) + 0.5) * (aspect / width / background.period)
    v = (np.arange(height, dtype=np.float32) + 0.5) * (1 / height / background.period)
    edge = background.period * height / 3  # a soft edge about two pixels wide, so small frames do not alias
    along = _soft_square(np.add.outer(sin * v, cos * u), edge)
    if background.kind == "stripes":
        return cv2.convertScaleAbs(along, alpha=127.5, beta=127.5)
    across = _soft_square(np.add.outer(cos * v, -sin * u), edge)
    return cv2.convertScaleAbs(along * across, alpha=127.5, beta=127.5)


def _clouds(background: Background, aspect: float, width: int, height: int) -> np.ndarray:
    """(height, width) uint8: noise of four octaves, each with `angle` deciding how much weaker than the one before."""
    rng = np.random.default_rng(background.seed)
    share = 0.4 + 0.4 * background.angle / (2 * math.pi)
    total = np.zeros((height, width), np.float32)
    for octave in range(4):
        rows = round(2**octave / background.period) + 2
        cells = rng.normal(0, share**octave, (rows, round(rows * aspect) + 1)).astype(np.float32)
        total += cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(127.5 + total * 60, 0, 255).astype(np.uint8)


def _soft_square(phase: np.ndarray, edge: float) -> np.ndarray:
    """Square wave in -1..1 of period 1 with edges of slope `edge`."""
    phase -= np.floor(phase)
    return np.clip((np.abs(phase - 0.5) - 0.25) * (4 * edge), -1, 1)


@lru_cache(maxsize=1)
def _noise_tile() -> np.ndarray:
    """(512, 1024, 3) uint8 Gaussian noise about 128, cut at five sigma."""
    tile = np.random.default_rng(0).normal(128, _TILE_SIGMA, (512, 1024, 3))
    return np.clip(np.rint(tile), 0, 255).astype(np.uint8)


def _add_noise(frame: np.ndarray, scene: Scene, t_s: float) -> np.ndarray:
    """Add sensor noise from a window of the tile that the scene's seed and the time in ms choose."""
    height, width = frame.shape[:2]
    full_width = round(GRAIN_ROWS * scene.aspect)
    rows, columns = min(height, GRAIN_ROWS), min(width, full_width)
    # A frame smaller than the field shows its average: sigma falls with the root of the area.
    shrink = math.sqrt(rows * columns / (GRAIN_ROWS * full_width))
    strength = scene.noise / _TILE_SIGMA * shrink * (_SMALL_GAIN if shrink < 1 else 1.0)
    if strength < 0.01:
        return frame
    tile = _noise_tile()
    mixed = (scene.seed * 0x9E3779B97F4A7C15 + round(t_s * 1000) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    mixed = ((mixed ^ (mixed >> 31)) * 0x94D049BB133111EB) & (2**64 - 1)
    top, left = (mixed >> 40) % (tile.shape[0] - rows), (mixed >> 20) % (tile.shape[1] - columns)
    grain = tile[top : top + rows, left : left + columns]
    if (rows, columns) != (height, width):
        grain = cv2.resize(grain, (width, height))
        strength *= _LARGE_GAIN
    return cv2.addWeighted(frame, 1.0, grain, strength, -128 * strength)


def patch_labels(
    scene: Scene, t_s: float, grid: int, least_cover: float = LEAST_COVER
) -> tuple[np.ndarray, np.ndarray]:
    """Say what lies under each patch of the frame stretched to a square.

    Returns:
        Color labels and shape labels, each (grid, grid) int64: 0 is background, k + 1 is the k-th of `COLORS`
        or `SHAPES`.
    """
    owner = patch_owners(scene, t_s, grid, least_cover)
    colors = np.array([0, *(tuple(COLORS).index(obj.color) + 1 for obj in scene.objects)])
    shapes = np.array([0, *(SHAPES.index(obj.shape) + 1 for obj in scene.objects)])
    return colors[owner], shapes[owner]


def patch_owners(scene: Scene, t_s: float, grid: int, least_cover: float = LEAST_COVER) -> np.ndarray:
    """Say which object lies under each patch of the frame stretched to a square.

    A patch belongs to the object whose filled silhouette (a ring counts with its hole) covers most of it, at
    least the share least_cover; else it is background.

    Returns:
        (grid, grid) int64: 0 is background, k + 1 is the k-th of the scene's objects.
    """
    samples = 8  # per patch and axis
    side = grid * samples
    covers = np.zeros((len(scene.objects) + 1, grid, grid), np.float32)
    covers[0] = least_cover * 255 - 0.5
    for k, obj in enumerate(scene.objects, start=1):
        if not obj.is_visible(t_s):
            continue
        mask = np.zeros((side, side), np.uint8)
        cv2.fillPoly(mask, _contours_px(obj, t_s, scene.aspect, side, side)[:1], 255, shift=_SHIFT_BITS)
        covers[k] = cv2.resize(mask, (grid, grid), interpolation=cv2.INTER_AREA)
    return covers.argmax(axis=0)
