"""A house seen from above with a robot's way through it, and an animation of the steps that made the way.

In: a house and a track. Out: pictures (H, W, 3) uint8 RGB.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from nvila_ros.prompt.navila import ACTIONS
from nvila_ros.world.rooms.house import House, Thing
from nvila_ros.world.rooms.instructions import Task
from nvila_ros.world.rooms.robot import ROBOT_M

PX_PER_M = 40
_FLOOR, _WALL, _WOOD, _INK, _WAY, _BAD, _DIM = (
    (238, 236, 230),
    (70, 74, 82),
    (150, 122, 94),
    (30, 32, 36),
    (36, 120, 220),
    (206, 60, 50),
    (120, 124, 132),
)
_FONT = cv2.FONT_HERSHEY_DUPLEX
_LABELS = ("stop", "25", "50", "75", "15", "30", "45", "15", "30", "45")
_SUBPIXEL, _SHIFT = 16, 4
Track = Sequence[tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Drawing:
    """A house on a canvas; y points up in the world and down in the picture."""

    house: House
    px_per_m: float = PX_PER_M
    margin_m: float = 0.3

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, px."""
        width = self.house.rooms[-1].x1 + 2 * self.margin_m
        return round(width * self.px_per_m), round((self.house.rooms[0].y1 + 2 * self.margin_m) * self.px_per_m)

    def point(self, x: float, y: float) -> tuple[int, int]:
        """Return where a place lies, in sixteenths of a px, as OpenCV draws with `_SHIFT`."""
        top = self.house.rooms[0].y1 + self.margin_m
        return (
            round((x + self.margin_m) * self.px_per_m * _SUBPIXEL),
            round((top - y) * self.px_per_m * _SUBPIXEL),
        )

    def radius(self, radius_m: float) -> int:
        """Return a radius, in sixteenths of a px."""
        return round(radius_m * self.px_per_m * _SUBPIXEL)


def draw_house(task: Task, px_per_m: float = PX_PER_M) -> tuple[np.ndarray, Drawing]:
    """Return a house from above with its things, the target ringed, and how to draw more into it."""
    house, drawing = task.house, Drawing(task.house, px_per_m)
    width, height = drawing.size
    canvas = np.full((height, width, 3), 255, np.uint8)
    for room in house.rooms:
        _fill(canvas, drawing, [(room.x0, room.y0), (room.x1, room.y0), (room.x1, room.y1), (room.x0, room.y1)], _FLOOR)
    for door in house.doorways:
        _fill(canvas, drawing, _corners(door.x, door.y, 0.06, door.width / 2, 0.0), _FLOOR)
    for wall in house.walls:
        _fill(canvas, drawing, [(wall.x0, wall.y0), (wall.x1, wall.y0), (wall.x1, wall.y1), (wall.x0, wall.y1)], _WALL)
    for piece in house.furniture:
        _fill(canvas, drawing, _corners(piece.x, piece.y, piece.half_x, piece.half_y, piece.yaw), _WOOD)
    for k, thing in enumerate(house.things):
        _draw_thing(canvas, drawing, thing, is_target=k == task.target)
    return canvas, drawing


def draw_track(canvas: np.ndarray, drawing: Drawing, track: Track, *, is_success: bool) -> None:
    """Draw a way into a house: where it began, how it went, and where it ended."""
    if not track:
        return
    color = _WAY if is_success else _BAD
    points = np.array([drawing.point(pose[0], pose[1]) for pose in track], np.int32)
    cv2.polylines(canvas, [points], False, color, 2, cv2.LINE_AA, _SHIFT)
    cv2.circle(canvas, tuple(points[0].tolist()), drawing.radius(0.07), _INK, -1, cv2.LINE_AA, _SHIFT)
    end = tuple(points[-1].tolist())
    cv2.circle(canvas, end, drawing.radius(ROBOT_M), color, 2, cv2.LINE_AA, _SHIFT)
    if len(track[-1]) > 2:
        x, y, yaw = track[-1][:3]
        ahead = drawing.point(x + ROBOT_M * math.cos(yaw), y + ROBOT_M * math.sin(yaw))
        cv2.line(canvas, end, ahead, color, 2, cv2.LINE_AA, _SHIFT)


def _draw_thing(canvas: np.ndarray, drawing: Drawing, thing: Thing, *, is_target: bool) -> None:
    if thing.kind in ("box", "pyramid"):
        side = thing.radius / math.sqrt(2)
        _fill(canvas, drawing, _corners(thing.x, thing.y, side, side, thing.yaw), thing.rgb)
    elif thing.kind == "ring":
        _fill(canvas, drawing, _corners(thing.x, thing.y, thing.radius, 0.07, thing.yaw), thing.rgb)
    else:
        radius = drawing.radius(thing.radius)
        cv2.circle(canvas, drawing.point(thing.x, thing.y), radius, thing.rgb, -1, cv2.LINE_AA, _SHIFT)
    if is_target:
        around = drawing.radius(thing.radius + 0.1)
        cv2.circle(canvas, drawing.point(thing.x, thing.y), around, _INK, 1, cv2.LINE_AA, _SHIFT)


def _corners(x: float, y: float, half_x: float, half_y: float, yaw: float) -> list[tuple[float, float]]:
    cos, sin = math.cos(yaw), math.sin(yaw)
    signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    return [(x + a * half_x * cos - b * half_y * sin, y + a * half_x * sin + b * half_y * cos) for a, b in signs]


def _fill(canvas: np.ndarray, drawing: Drawing, places: Sequence[tuple[float, float]], rgb: Sequence[int]) -> None:
    points = np.array([drawing.point(x, y) for x, y in places], np.int32)
    cv2.fillConvexPoly(canvas, points, tuple(int(v) for v in rgb), cv2.LINE_AA, _SHIFT)


def write(canvas: np.ndarray, text: str, at: tuple[int, int], *, scale: float = 0.45, is_dim: bool = False) -> None:
    """Write a line of ASCII text into a picture."""
    cv2.putText(canvas, text, at, _FONT, scale, _DIM if is_dim else _INK, 1, cv2.LINE_AA)


def draw_sheet(cells: Sequence[tuple[str, str, np.ndarray]], columns: int = 2) -> np.ndarray:
    """Return maps side by side, each below its title and a line about how it went."""
    width = max(image.shape[1] for *_, image in cells) + 16
    height = max(image.shape[0] for *_, image in cells) + 56
    rows = -(-len(cells) // columns)
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for k, (title, note, image) in enumerate(cells):
        top, left = k // columns * height, k % columns * width
        write(sheet, title, (left + 12, top + 22))
        write(sheet, note, (left + 12, top + 42), is_dim=True)
        sheet[top + 52 : top + 52 + image.shape[0], left + 8 : left + 8 + image.shape[1]] = image
    return sheet


def draw_step(
    picture: np.ndarray, plan: np.ndarray, title: str, sentence: str, probabilities: Sequence[float]
) -> np.ndarray:
    """Return one step: what the camera saw, the house from above, what was chosen, and how likely each action was."""
    height, gap = 240, 12
    seen = cv2.resize(picture, (320, height), interpolation=cv2.INTER_AREA)
    scale = min(300 / plan.shape[1], height / plan.shape[0])
    plan = cv2.resize(plan, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    canvas = np.full((height + 110, 320 + 300 + 3 * gap, 3), 255, np.uint8)
    canvas[34 : 34 + height, gap : gap + 320] = seen
    canvas[34 : 34 + plan.shape[0], 2 * gap + 320 : 2 * gap + 320 + plan.shape[1]] = plan
    write(canvas, title, (gap, 22), scale=0.5)
    write(canvas, sentence, (gap, height + 56), scale=0.5)
    _draw_bars(canvas, probabilities, 2 * gap + 320, height + 84)
    return canvas


def _draw_bars(canvas: np.ndarray, probabilities: Sequence[float], left: int, bottom: int) -> None:
    """Draw a bar for each action above its name."""
    for k, (action, probability) in enumerate(zip(ACTIONS, probabilities, strict=True)):
        x = left + 30 * k
        high = round(34 * probability)
        is_best = probability == max(probabilities)
        cv2.rectangle(canvas, (x, bottom - high), (x + 20, bottom), _WAY if is_best else _DIM, -1)
        arrow = {"left": "<", "right": ">", "forward": "^", "stop": ""}[action.kind]
        write(canvas, f"{arrow}{_LABELS[k]}", (x - 2, bottom + 16), scale=0.34, is_dim=not is_best)


def save_animation(path: Path, frames: Sequence[np.ndarray], frame_s: float = 0.9) -> None:
    """Write an animated WebP that begins again and again; the last frame stays for longer."""
    images = [Image.fromarray(frame) for frame in frames]
    durations = [round(frame_s * 1000)] * (len(images) - 1) + [2500]
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0, quality=70, method=4)
