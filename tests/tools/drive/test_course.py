"""A task without ROS is driven by the node's own rules; the baseline goes where its colour is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from nvila_ros.driving.outcomes import DriveStop, StepOutcome
from nvila_ros.driving.settings import DriveConfig
from nvila_ros.prompt.navila import ACTIONS, NUM_FRAMES
from nvila_ros.tools.drive.choosers import BlobChooser
from nvila_ros.tools.drive.course import Course, summarize
from nvila_ros.world.rooms.camera import RoomCamera, take_picture
from nvila_ros.world.rooms.instructions import eval_task

CONFIG = DriveConfig(max_steps=12)


class Scripted:
    """Chooses in order, and keeps what it was shown."""

    def __init__(self, *actions: int) -> None:
        self.actions, self.shown = list(actions), []

    def __call__(self, question: str, instruction: str, images: Sequence[np.ndarray]) -> list[float]:
        self.shown.append((question, instruction, [image.shape for image in images]))
        chosen = self.actions.pop(0)
        return [0.91 if k == chosen else 0.01 for k in range(10)]


def test_turns_and_a_stop_are_made_and_shown_eight_frames() -> None:
    task = eval_task(0)
    chooser = Scripted(4, 9, 0)
    outcome = Course(task, chooser, CONFIG).run()

    assert outcome.end.reason is DriveStop.STOPPED
    assert outcome.end.num_steps == 2
    assert [step.outcome for step in outcome.steps][-1] is StepOutcome.NOT_TAKEN
    assert not outcome.is_success
    question, instruction, shapes = chooser.shown[-1]
    assert instruction == task.instruction
    assert task.instruction in question
    assert shapes == [(240, 320, 3)] * NUM_FRAMES
    assert math.dist(outcome.track[-1], (task.x, task.y)) < 1e-6


def test_the_guard_keeps_a_robot_that_always_goes_ahead_from_touching() -> None:
    for number in range(4):
        outcome = Course(eval_task(number), Scripted(*[3] * 40), DriveConfig(max_steps=30)).run()

        assert outcome.end.reason is DriveStop.LIMIT  # it goes round what is in its way
        assert outcome.num_collisions == 0


@pytest.mark.slow
def test_the_baseline_finds_what_is_in_plain_view() -> None:
    tasks = [task for task in map(eval_task, range(14)) if not task.is_elsewhere]
    outcomes = [Course(task, BlobChooser(), DriveConfig(max_steps=25)).run() for task in tasks]
    found = summarize(outcomes)

    assert found["success"] > 0.4
    assert found["collided"] == 0
    assert found["spl"] <= found["success"]


def test_the_baseline_turns_to_a_blob_and_searches_without_one() -> None:
    task = next(task for task in map(eval_task, range(20)) if not task.is_elsewhere)
    thing = task.house.things[task.target]
    bearing = math.atan2(thing.y - task.y, thing.x - task.x)
    seen = {
        turn: BlobChooser().choose(
            thing.name, take_picture(task.house, task.x, task.y, bearing + math.radians(turn), RoomCamera()).image
        )
        for turn in (0, 30, -30)
    }

    assert seen[0].kind in ("forward", "stop")
    assert seen[30].kind == "right"
    assert seen[-30].kind == "left"
    gray = np.full((240, 320, 3), 128, np.uint8)
    assert BlobChooser().choose("red ball", gray) is ACTIONS[6]
