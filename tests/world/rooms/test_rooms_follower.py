"""Who follows an instruction arrives, touches nothing, and never acts on what no frame has shown."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nvila_ros.prompt.navila import NUM_FRAMES
from nvila_ros.world.rooms.episodes import Walk, choose_as_follower, run_episode
from nvila_ros.world.rooms.follower import Seen, follow
from nvila_ros.world.rooms.instructions import eval_task
from nvila_ros.world.rooms.robot import Robot

NOTHING = Seen(frozenset(), frozenset())


@pytest.mark.slow
def test_it_arrives() -> None:
    outcomes = []
    for index in range(12):
        task = eval_task(index)
        outcome, _ = run_episode(task, choose_as_follower(task), np.random.default_rng(index))
        outcomes.append(outcome)

    assert sum(outcome.is_success for outcome in outcomes) >= 11
    assert sum(outcome.num_collisions for outcome in outcomes) == 0
    assert np.mean([outcome.spl for outcome in outcomes]) > 0.75


def test_what_no_frame_shows_is_searched_for_by_turning_left() -> None:
    for index in range(6):
        task = eval_task(index)
        action = follow(task.house, task.target, task.x, task.y, task.yaw, NOTHING)

        assert (action.kind, round(math.degrees(action.amount))) == ("left", 45)


def test_a_step_shows_eight_frames_and_the_last_is_the_current_one() -> None:
    task = eval_task(0)
    walk = Walk(task.house, Robot(task.house, task.x, task.y, task.yaw), np.random.default_rng(0))
    first = walk.look()
    walk.step(follow(task.house, task.target, task.x, task.y, task.yaw, NOTHING))
    second = walk.look()

    assert len(first) == len(second) == NUM_FRAMES
    assert {(view.x, view.y, view.yaw) for view in first} == {(task.x, task.y, task.yaw)}
    assert math.isclose(math.remainder(second[-1].yaw - task.yaw, 2 * math.pi), math.radians(45), abs_tol=0.2)
    assert walk.frame_times() == sorted(walk.frame_times())
