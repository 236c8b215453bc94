"""A house from above shows what stands in it where it stands, and the way of the robot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from nvila_ros.tools.drive.maps import draw_house, draw_sheet, draw_step, draw_track, save_animation
from nvila_ros.world.rooms.instructions import eval_task

TASK = eval_task(1)


def test_things_are_drawn_in_their_colour_where_they_stand() -> None:
    canvas, drawing = draw_house(TASK, 40)
    for thing in TASK.house.things:
        x, y = (value // 16 for value in drawing.point(thing.x, thing.y))
        assert np.abs(canvas[y, x].astype(int) - thing.rgb).max() < 12
    wall_x, wall_y = (value // 16 for value in drawing.point(-0.06, 1.0))
    assert canvas[wall_y, wall_x].max() < 100
    assert drawing.point(0, 1)[1] > drawing.point(0, 2)[1], "up in the world is up in the picture"


def test_a_way_is_drawn_in_another_colour_where_it_failed() -> None:
    track = [(TASK.x, TASK.y, 0.0), (TASK.x + 0.5, TASK.y, 0.0)]
    pictures = []
    for is_success in (True, False):
        canvas, drawing = draw_house(TASK)
        draw_track(canvas, drawing, track, is_success=is_success)
        pictures.append(canvas)
    empty, _ = draw_house(TASK)

    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], empty)


def test_sheets_and_animations_hold_every_map_and_step(tmp_path: Path) -> None:
    plan, _ = draw_house(TASK)
    sheet = draw_sheet([("a", "b", plan)] * 3)
    seen = np.full((240, 320, 3), 90, np.uint8)
    steps = [draw_step(seen, plan, f"step {k}", "The next action is stop.", [0.1] * 10) for k in range(3)]
    save_animation(tmp_path / "a.webp", steps)

    assert sheet.shape[0] > 2 * plan.shape[0]
    assert sheet.shape[1] > 2 * plan.shape[1]
    with Image.open(tmp_path / "a.webp") as image:
        assert image.n_frames == 3
        assert image.size == steps[0].shape[1::-1]
