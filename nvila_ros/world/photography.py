"""The synthetic world as a photograph shows it: a second renderer, to ask whether a model learned more than the first.

In: a `Scene` and a time. Out: the frame ``(height, width, 3)`` uint8 RGB at any size, as of `rendering.render`, with
the objects in the same places. Little else is alike: objects lie on the surfaces of `surfaces.py`, or on the shared
ground of a wide scene; light comes from one side and throws shadows, and all of it passes a lens here, a sensor and a
JPEG encoder in `exposure.py`, in the order and in the linear light in which a camera has them. Of the scene, its
objects and the change of its light are used; its noise, blur and shadows are those of the first camera.

Lens blur, shadows and textures are relative to the height. ``_CHW`` arrays are float32 linear light in planes R, G, B,
1 being the white of the screen.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from nvila_ros.world.exposure import LOOK_SEED, PhotoCamera, develop, draw_camera, expose
from nvila_ros.world.rendering import render_background
from nvila_ros.world.scene import CONTOURS, Background, Object, Scene
from nvila_ros.world.surfaces import draw_surface, layer_noise, to_light

__all__ = ["render"]

_SUPERSAMPLING = 4
_SHIFT_BITS = 4
_EDGE_POINTS = 6  # per edge of a contour, so that the lens bends it
_FRINGE_PX = 0.45  # most that red and blue each are shifted at the corners: together less than a pixel


class _Box(NamedTuple):
    """A part of the frame in pixels."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def is_empty(self) -> bool:
        """Whether it holds no pixel: what was asked for lies outside the frame."""
        return self.right <= self.left or self.bottom <= self.top


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
    camera = draw_camera(scene.seed)
    ground_CHW, light_HW = light_ground(
        scene.seed, scene.aspect, width, height, scene.background if scene.background.is_shared else None
    )
    frame_CHW = ground_CHW.copy()
    outlines = [(o, _outline(o, t_s, scene.aspect, camera, width, height)) for o in scene.objects if o.is_visible(t_s)]
    scale = (width / scene.aspect, height)
    for _, outline in outlines:
        _cast_shadow(frame_CHW, outline, camera, scale)
    for obj, outline in outlines:
        _paint(frame_CHW, light_HW, obj, outline, camera, scene.seed, scale)
    return develop(expose(frame_CHW, scene, t_s, camera), camera)


@lru_cache(maxsize=2)
def light_ground(
    seed: int, aspect: float, width: int, height: int, background: Background | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The empty scene (3, H, W) and the light on it (H, W), both float32; shared, so not writeable.

    Without a background the ground is a surface that the seed settles.
    """
    camera = draw_camera(seed)
    u = np.linspace(-1, 1, width, dtype=np.float32)
    v = np.linspace(-1, 1, height, dtype=np.float32)
    slope = np.add.outer(camera.light_y * v, camera.light_x * u)
    slope *= camera.falloff / (abs(camera.light_x) + abs(camera.light_y))
    slope += 1
    edge = np.add.outer(v * v, u * u * np.float32(aspect**2)) * (-camera.vignette / (1 + aspect**2))
    edge += 1
    light_HW = slope * edge
    if background is None:
        ground_CHW = draw_surface(np.random.default_rng((LOOK_SEED, seed, 1)), aspect, width, height)
    else:
        levels = render_background(background, aspect, width, height)
        ground_CHW = np.stack([to_light(levels[..., channel]) for channel in range(3)])
    ground_CHW *= light_HW
    for array in (ground_CHW, light_HW):
        array.flags.writeable = False
    return ground_CHW, light_HW


def _outline(obj: Object, t_s: float, aspect: float, camera: PhotoCamera, width: int, height: int) -> list[np.ndarray]:
    """Contours (n, 2) float in pixels as the lens shows them: pulled to the middle by barrel distortion."""
    x, y = obj.position(t_s)
    cos, sin = math.cos(obj.angle), math.sin(obj.angle)
    turn = np.array([[cos, sin], [-sin, cos]]) * obj.size
    middle = np.array([aspect / 2, 0.5])
    outline = []
    for contour in CONTOURS[obj.shape]:
        points = _split_edges(contour) @ turn + (x * aspect, y) - middle
        squares = (points**2).sum(axis=1, keepdims=True) / (middle**2).sum()
        points *= 1 - camera.distortion * squares
        outline.append((points + middle) * (width / aspect, height))
    return outline


def _split_edges(contour: np.ndarray) -> np.ndarray:
    """The closed contour (n, 2) with `_EDGE_POINTS` points on each edge."""
    steps = np.linspace(0, 1, _EDGE_POINTS, endpoint=False)[None, :, None]
    ahead = np.roll(contour, -1, axis=0)[:, None]
    return (contour[:, None] * (1 - steps) + ahead * steps).reshape(-1, 2)


def _box_about(outline: list[np.ndarray], margin_x_px: float, margin_y_px: float, width: int, height: int) -> _Box:
    """The part of the frame that holds the outline and a margin."""
    margin = (margin_x_px + 2, margin_y_px + 2)
    left, top = np.floor(outline[0].min(axis=0) - margin).astype(int).tolist()
    right, bottom = np.ceil(outline[0].max(axis=0) + margin).astype(int).tolist()
    return _Box(max(left, 0), max(top, 0), min(right, width), min(bottom, height))


def _cover(outline: list[np.ndarray], box: _Box) -> np.ndarray:
    """(rows, columns) uint8: how much of each pixel of the box lies inside the outline."""
    rows, columns = box.bottom - box.top, box.right - box.left
    fine = np.zeros((rows * _SUPERSAMPLING, columns * _SUPERSAMPLING), np.uint8)
    # OpenCV's pixel centres lie at whole numbers.
    points = [((contour - (box.left, box.top)) * _SUPERSAMPLING - 0.5) * (1 << _SHIFT_BITS) for contour in outline]
    cv2.fillPoly(fine, [np.rint(p).astype(np.int32) for p in points], 255, shift=_SHIFT_BITS)
    return cv2.resize(fine, (columns, rows), interpolation=cv2.INTER_AREA)


def _cast_shadow(
    frame_CHW: np.ndarray, outline: list[np.ndarray], camera: PhotoCamera, scale: tuple[float, float]
) -> None:
    """Darken the ground on the far side of an object; softly, and never to black."""
    height, width = frame_CHW.shape[1:]
    way = -camera.shadow_length * np.array([camera.light_x, camera.light_y]) * scale
    fallen = [contour + way for contour in outline]
    sigma_x, sigma_y = camera.shadow_softness * scale[0], camera.shadow_softness * scale[1]
    box = _box_about(fallen, 3 * sigma_x, 3 * sigma_y, width, height)
    if box.is_empty:
        return
    cover = _cover(fallen, box)
    coarse = max(1, int(min(sigma_x, sigma_y) / 1.5))  # a soft shadow has no detail that a coarse raster loses
    size = (math.ceil(cover.shape[1] / coarse), math.ceil(cover.shape[0] / coarse))
    small = cv2.resize(cover, size, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), max(sigma_x / coarse, 0.3), sigmaY=max(sigma_y / coarse, 0.3))
    soft = cv2.resize(small, cover.shape[::-1]).astype(np.float32)
    soft *= -camera.shadow / 255
    soft += 1
    rows, columns = box.slices
    frame_CHW[:, rows, columns] *= soft


def _paint(
    frame_CHW: np.ndarray,
    light_HW: np.ndarray,
    obj: Object,
    outline: list[np.ndarray],
    camera: PhotoCamera,
    seed: int,
    scale: tuple[float, float],
) -> None:
    """Lay an object over the frame, its edge spread by the defocus."""
    height, width = frame_CHW.shape[1:]
    blur = camera.defocus * scale[0], camera.defocus * scale[1]
    box = _box_about(outline, *blur, width, height)
    if box.is_empty:
        return
    cover = _defocus(_cover(outline, box), *blur).astype(np.float32) / 255
    centre = outline[0].mean(axis=0)
    shade = _shade(obj, centre, box, camera, seed, scale) * light_HW[box.slices]
    # A simple lens magnifies red more than blue; within one object that is a shift.
    fringe = camera.fringe * _FRINGE_PX * (centre - (width / 2, height / 2)) / math.hypot(width / 2, height / 2)
    colors = to_light(np.array(obj.rgb)).tolist()
    for plane, color, sign in zip(frame_CHW, colors, (1, 0, -1), strict=True):
        part = plane[box.slices]
        part += _shift(cover, sign * fringe) * (color * shade - part)


def _shift(cover: np.ndarray, way_px: np.ndarray) -> np.ndarray:
    """The cover moved by a part of a pixel."""
    if not way_px.any():
        return cover
    way = np.array([[1, 0, way_px[0]], [0, 1, way_px[1]]])
    return cv2.warpAffine(cover, way, cover.shape[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _defocus(cover: np.ndarray, radius_x_px: float, radius_y_px: float) -> np.ndarray:
    """Spread light over the disk that a point becomes out of focus; below half a pixel it stays a point."""
    if max(radius_x_px, radius_y_px) < 0.5:
        return cover
    columns, rows = math.ceil(radius_x_px), math.ceil(radius_y_px)
    x = (np.arange(-columns, columns + 1, 0.25) + 0.125 - 0.5) / max(radius_x_px, 0.25)
    y = (np.arange(-rows, rows + 1, 0.25) + 0.125 - 0.5) / max(radius_y_px, 0.25)
    inside = (np.add.outer(y * y, x * x) <= 1).astype(np.float32)
    disk = cv2.resize(inside, (2 * columns + 1, 2 * rows + 1), interpolation=cv2.INTER_AREA)
    return cv2.filter2D(cover, -1, disk / disk.sum(), borderType=cv2.BORDER_REPLICATE)


def _shade(
    obj: Object, centre_px: np.ndarray, box: _Box, camera: PhotoCamera, seed: int, scale: tuple[float, float]
) -> np.ndarray:
    """(rows, columns) float32 about 1: brighter towards the light, and a little rough.

    The roughness moves with the object, and is chosen by its colour, so that it stays when others come or go.
    """
    u = ((np.arange(box.left, box.right) + 0.5 - centre_px[0]) / (obj.size * scale[0])).astype(np.float32)
    v = ((np.arange(box.top, box.bottom) + 0.5 - centre_px[1]) / (obj.size * scale[1])).astype(np.float32)
    shade = np.add.outer(1 + camera.shading * camera.light_y * v, camera.shading * camera.light_x * u)
    field = _rough_field(seed)
    top, left = (7 * obj.rgb[0] + 3 * obj.rgb[2]) % 32, (5 * obj.rgb[1] + obj.rgb[2]) % 32
    rough = cv2.resize(field[top : top + 64, left : left + 64], shade.shape[::-1])
    shade += camera.roughness * rough
    return shade


@lru_cache(maxsize=64)
def _rough_field(seed: int) -> np.ndarray:
    """(96, 96) float32 about 0: the texture of a scene's objects."""
    return layer_noise(np.random.default_rng((LOOK_SEED, seed, 2)), 6, 6, 5, fading=0.7) - np.float32(0.5)
