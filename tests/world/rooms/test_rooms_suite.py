"""Questions about what a moving robot sees are true of the pictures that it takes."""

from __future__ import annotations

import numpy as np
import pytest

from nvila_ros.tools.suites import SUITES
from nvila_ros.world.rooms.camera import RoomCamera, take_picture
from nvila_ros.world.rooms.suite import MIN_SHARE, ROOM_KINDS, choices_of_room, eval_room_case, render_room


@pytest.mark.parametrize("kind", ROOM_KINDS)
def test_cases_are_always_the_same_and_their_answers_take_turns(kind: str) -> None:
    cases = [eval_room_case(kind, index) for index in range(6)]

    assert cases[2] == eval_room_case(kind, 2)
    assert len({case.question.answer for case in cases}) >= 2
    for case in cases:
        assert case.question.answer in choices_of_room(case.question)
        assert len(case.times_s) == (8 if kind == "motion" else 1)
        assert render_room(case.scene, 0.0, 64, 48).shape == (48, 64, 3)


@pytest.mark.parametrize("index", range(6))
def test_what_is_counted_is_in_the_picture(index: int) -> None:
    case = eval_room_case("count", index)
    scene = case.scene
    label_HW = take_picture(scene.house, scene.x, scene.y, scene.yaw, RoomCamera(640, 480)).label_HW
    shares = np.bincount(label_HW[label_HW >= 0], minlength=len(scene.house.things)) / label_HW.size

    assert (shares >= MIN_SHARE * 0.8).sum() == int(case.question.answer)


@pytest.mark.parametrize("index", range(6))
def test_things_move_across_the_picture_as_the_answer_says(index: int) -> None:
    case = eval_room_case("motion", index)
    scene = case.scene
    thing = next(each for each in scene.objects if each.name in case.question.text)
    number = [each.name for each in scene.house.things].index(thing.name)
    columns = []
    for t_s in (case.times_s[0], case.times_s[-1]):
        label_HW = take_picture(scene.house, scene.x, scene.y, scene.yaw + scene.turn * t_s, RoomCamera()).label_HW
        columns.append(np.nonzero(label_HW == number)[1].mean())
    shift = (columns[1] - columns[0]) / 320

    wanted = {"left": -1, "right": 1, "still": 0}[case.question.answer]
    assert (abs(shift) < 0.01) if wanted == 0 else (shift * wanted > 0.1)


def test_the_suite_is_there() -> None:
    assert SUITES["tiny-world-rooms"].kinds == ROOM_KINDS
