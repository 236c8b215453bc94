"""nvila-tiny-nav goes where it is sent, in houses that its training never drew."""

from __future__ import annotations

import pytest

from nvila_ros.driving.settings import DriveConfig
from nvila_ros.tools.drive.choosers import ModelChooser
from nvila_ros.tools.drive.course import Course
from nvila_ros.world.rooms.instructions import eval_task

pytestmark = pytest.mark.slow
CONFIG = DriveConfig(max_steps=20)
TASKS = (1, 3, 4, 16, 19, 38)
"""Of those that it arrives at; a processor that rounds otherwise may turn one or two of them."""


def test_it_arrives_and_touches_nothing() -> None:
    chooser = ModelChooser("nvila-tiny-nav", threads=1)

    outcomes = [Course(eval_task(number), chooser, CONFIG, seed=number).run() for number in TASKS]

    assert sum(outcome.is_success for outcome in outcomes) >= len(TASKS) - 2
    assert [outcome.num_collisions for outcome in outcomes] == [0] * len(TASKS)
