"""What a camera sees in a house: a picture, what each pixel shows, and how far it is. A ray caster on numpy.

Every pixel is the ray through its centre, met with exact solids: upright walls by column, floor and ceiling by row,
things and furniture within their part of the picture. So the picture, its labels and its depth agree to the pixel, and
nothing is needed that a robot's computer lacks. A frame of 320x240 takes some 10 ms of a core.

Shapes: H rows, W columns. A ray is (forward + left * a_W + up * b_H), so its parameter is the depth along the view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import cv2
import numpy as np

from nvila_ros.world.rooms.house import WALL_HEIGHT_M, House, Rect
from nvila_ros.world.rooms.solids import Content, Rays, Solid, solids_of

WALL, FLOOR, CEILING, FURNITURE, FRAME = -1, -2, -3, -4, -5
"""Labels of what has no name; things have their index in the house."""
_TEXTURE_PX = 256
_NEAR_M = 0.02
_AMBIENT = 0.62

Canvas = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Colour (H, W, 3) float32, label (H, W) int16 and depth (H, W) float32."""


@dataclass(frozen=True)
class RoomCamera:
    """A pinhole camera that looks level ahead: size of its pictures, width of its view (rad), height over the floor."""

    width: int = 320
    height: int = 240
    view: float = math.pi / 2
    height_m: float = 0.45

    @cached_property
    def focal_px(self) -> float:
        """Focal length."""
        return self.width / 2 / math.tan(self.view / 2)

    @cached_property
    def left(self) -> np.ndarray:
        """How far left of the view each column's rays go, (W,) float32."""
        return ((self.width / 2 - 0.5 - np.arange(self.width)) / self.focal_px).astype(np.float32)

    @cached_property
    def up(self) -> np.ndarray:
        """How far up each row's rays go, (H,) float32."""
        return ((self.height / 2 - 0.5 - np.arange(self.height)) / self.focal_px).astype(np.float32)


@dataclass(frozen=True, slots=True)
class RoomPicture:
    """What is seen: image (H, W, 3) uint8 RGB; label (H, W) int16; depth along the view (H, W) float32, m."""

    image: np.ndarray
    label_HW: np.ndarray
    depth_HW: np.ndarray


def take_picture(
    house: House, x: float, y: float, yaw: float, camera: RoomCamera, rng: np.random.Generator | None = None
) -> RoomPicture:
    """Return what a camera at a place sees.

    Args:
        house: that it stands in.
        x: of the camera, m.
        y: likewise.
        yaw: of the view, rad.
        camera: its optics.
        rng: of the sensor's noise; None leaves it out.
    """
    rays = Rays(x, y, camera.height_m, yaw, camera.left, camera.up)
    canvas = color_HWC, label_HW, depth_HW = _room(house, rays)
    for content in _contents(house):
        _draw(content, house, rays, camera, canvas)
    color_HWC *= np.array(house.light.gains(0.0), np.float32)
    if rng is not None:
        color_HWC += house.noise * _noise(color_HWC.shape, rng)
    return RoomPicture(cv2.convertScaleAbs(np.maximum(color_HWC, 0)), label_HW, depth_HW)


@lru_cache(maxsize=8)
def _contents(house: House) -> tuple[Content, ...]:
    return solids_of(house, FURNITURE, FRAME)


def _room(house: House, rays: Rays) -> Canvas:
    """Return colour (H, W, 3) float32, label and depth of walls, floor and ceiling."""
    wall_W, along_W, shade_W, rgb_WC = _walls(house, rays)
    up_H1 = rays.up_H[:, None]
    level_H1 = np.where(up_H1 < 0, -rays.z / up_H1, (WALL_HEIGHT_M - rays.z) / up_H1)
    depth_HW = np.minimum(level_H1, wall_W)
    is_level = level_H1 < wall_W
    half = int(np.searchsorted(-rays.up_H, 0.0))  # the first row that looks down
    label_HW = np.full(depth_HW.shape, WALL, np.int16)
    label_HW[:half][is_level[:half]] = CEILING
    label_HW[half:][is_level[half:]] = FLOOR
    texture = _textures(house.finish.seed, house.finish.floor_kind)
    z_HW = rays.z + rays.up_H[:, None] * depth_HW
    gain_HW = _look_up(texture[0], along_W[None], z_HW) * house.finish.texture + 1
    color_HWC = (gain_HW * shade_W)[..., None] * rgb_WC
    color_HWC[:half][is_level[:half]] = np.array(house.finish.ceiling_rgb, np.float32) * 0.95
    depth = depth_HW[half:]
    gain = _look_up(texture[1], rays.x + rays.dx_W * depth, rays.y + rays.dy_W * depth) * house.finish.texture + 1
    floor = gain[..., None] * (np.array(house.finish.floor_rgb, np.float32) * 0.95)
    np.copyto(color_HWC[half:], floor, where=is_level[half:, :, None])
    return color_HWC, label_HW, depth_HW.astype(np.float32)


def _walls(house: House, rays: Rays) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the wall's depth in each column, where along it that is (m), its shade and its RGB (W, 3)."""
    posts = [
        Rect(door.x - 0.09, edge + low, door.x + 0.09, edge + low + 0.08)
        for door in house.doorways
        for edge, low in ((door.y - door.width / 2, -0.08), (door.y + door.width / 2, 0.0))
    ]
    rects = [*house.walls, *posts]
    bounds = np.array([(r.x0, r.x1, r.y0, r.y1) for r in rects], np.float32)
    with np.errstate(divide="ignore"):
        inverse_x, inverse_y = 1 / rays.dx_W, 1 / rays.dy_W
    ax, bx = ((bounds[:, k, None] - rays.x) * inverse_x for k in (0, 1))
    ay, by = ((bounds[:, k, None] - rays.y) * inverse_y for k in (2, 3))
    enter_x, enter_y = np.minimum(ax, bx), np.minimum(ay, by)
    enter = np.maximum(enter_x, enter_y)
    leave = np.minimum(np.maximum(ax, bx), np.maximum(ay, by))
    enter[(enter > leave) | (leave < 0)] = np.inf
    enter = np.maximum(enter, _NEAR_M)
    first_W = enter.argmin(0)
    columns = np.arange(len(first_W))
    wall_W = np.minimum(enter[first_W, columns], 1e3)
    is_x_W = enter_x[first_W, columns] > enter_y[first_W, columns]
    hit_x, hit_y = rays.x + rays.dx_W * wall_W, rays.y + rays.dy_W * wall_W
    side = np.where(is_x_W, -np.sign(rays.dx_W) * house.sun[0], -np.sign(rays.dy_W) * house.sun[1])
    shade_W = _AMBIENT + 0.3 + (1 - _AMBIENT - 0.05) * 0.5 * side
    room_W = np.searchsorted([door.x for door in house.doorways], hit_x - 0.01 * np.sign(rays.dx_W))
    rgb_WC = np.array(house.finish.wall_rgb, np.float32)[room_W]
    rgb_WC[first_W >= len(house.walls)] = house.finish.frame_rgb
    return wall_W, np.where(is_x_W, hit_y, hit_x), shade_W.astype(np.float32), rgb_WC


def _draw(content: Content, house: House, rays: Rays, camera: RoomCamera, canvas: Canvas) -> None:
    """Draw a solid where it is nearer than what is there."""
    solid, rgb, label = content
    part = _window(solid, rays, camera)
    met = solid.meet(rays.cut(*part)) if part is not None else None
    if part is None or met is None:
        return
    depth, normal = met
    color_HWC, label_HW, depth_HW = (array[part] for array in canvas)
    seen = depth < depth_HW
    if not seen.any():
        return
    light = normal[0] * house.sun[0] + normal[1] * house.sun[1] + normal[2] * house.sun[2]
    shade = _AMBIENT + (1.05 - _AMBIENT) * np.maximum(light, 0) + 0.1 * np.maximum(normal[2], 0)
    color_HWC[seen] = np.broadcast_to(shade, seen.shape)[seen][:, None] * np.array(rgb, np.float32)
    depth_HW[seen] = depth[seen]
    label_HW[seen] = label


def _window(solid: Solid, rays: Rays, camera: RoomCamera) -> tuple[slice, slice] | None:
    """Return the rows and columns within which a solid can be seen; None where it lies behind."""
    dx, dy = solid.x - rays.x, solid.y - rays.y
    ahead = dx * math.cos(rays.yaw) + dy * math.sin(rays.yaw)
    left = dy * math.cos(rays.yaw) - dx * math.sin(rays.yaw)
    if ahead < -solid.reach:
        return None
    near = max(ahead - solid.reach, _NEAR_M)
    far = max(ahead + solid.reach, near)
    spans = [(left + s * solid.reach) / d for s in (-1, 1) for d in (near, far)]
    heights = [(z - rays.z) / d for z in (solid.low, solid.high) for d in (near, far)]
    columns = _pixels(-max(spans), -min(spans), camera.focal_px, camera.width)
    rows = _pixels(-max(heights), -min(heights), camera.focal_px, camera.height)
    if columns.start >= columns.stop or rows.start >= rows.stop:
        return None
    return rows, columns


def _pixels(low: float, high: float, focal_px: float, size: int) -> slice:
    first, last = low * focal_px + size / 2 - 1, high * focal_px + size / 2 + 1
    return slice(int(min(max(first, 0), size)), int(min(max(last, 0), size)))


def _look_up(texture: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return a texture's values at places in m, (H, W) float32; it repeats every four metres."""
    scale = _TEXTURE_PX / 4
    columns = (u * scale).astype(np.int32) & (_TEXTURE_PX - 1)
    rows = (v * scale).astype(np.int32) & (_TEXTURE_PX - 1)
    return texture[rows, columns]


@lru_cache(maxsize=8)
def _textures(seed: int, floor_kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the textures of walls and floor, -1 to 1."""
    rng = np.random.default_rng(seed)
    wall = _cloud(rng, 6)
    grid = np.arange(_TEXTURE_PX)
    cell = 32
    if floor_kind == "carpet":
        return wall, _cloud(rng, 2)
    shift = 0 if floor_kind == "tiles" else 1
    boards = rng.uniform(-0.8, 0.8, (_TEXTURE_PX // cell, _TEXTURE_PX // cell << 1 >> shift)).astype(np.float32)
    floor = np.kron(boards, np.ones((cell, _TEXTURE_PX // boards.shape[1]), np.float32))
    floor[grid % cell == 0] = -1.0
    return wall, cv2.GaussianBlur(floor, (0, 0), 0.8) + 0.3 * _cloud(rng, 3)


def _cloud(rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Return a smooth random texture that repeats without a seam, at most 1 in size."""
    rough = np.pad(rng.normal(0, 1, (_TEXTURE_PX, _TEXTURE_PX)).astype(np.float32), 32, mode="wrap")
    cloud = cv2.GaussianBlur(rough, (0, 0), sigma)[32:-32, 32:-32]
    return np.asarray(cloud / np.abs(cloud).max())


@lru_cache(maxsize=1)
def _grain() -> np.ndarray:
    return np.random.default_rng(7).standard_normal(1 << 20, np.float32)


def _noise(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return noise of sigma 1, a strip of a long one from a random place: drawing it anew takes longer than a frame."""
    grain, count = _grain(), math.prod(shape)
    start = int(rng.integers(len(grain)))
    if count > len(grain):
        return rng.standard_normal(shape, np.float32)
    strip = np.concatenate([grain[start : start + count], grain[: max(0, start + count - len(grain))]])
    return strip.reshape(shape)
