"""The robots of the fleet's benchmark ask a real door, each from an address of its own, and note what they get."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("prometheus_client")

from benchmarks.fleet import fairness
from benchmarks.fleets.robots import running_fleet
from nvila_ros.serving.pipeline import load_model
from tests.http.serving import serving, wait_until
from tests.tiny import FakeModel, load_fake


def test_every_robot_is_answered_by_the_server() -> None:
    with serving(load_model, queue_size=64, threads=1) as served, running_fleet(served.url, 3) as robots:
        wait_until(lambda: all(len(robot.answers) >= 2 for robot in robots), "each robot has answers")

    for robot in robots:
        answered = [answer for answer in robot.answers if answer.reason.is_answered]
        assert {answer.robot for answer in answered} == {robot.index}
        assert {answer.backend for answer in answered} == {"remote"}
        assert all(answer.age_s >= 0 for answer in answered)
    assert any(answer.is_standing for robot in robots for answer in robot.answers)


def test_models_here_answer_where_there_is_no_server() -> None:
    with serving(load_fake) as served:
        url = served.url

    with running_fleet(url, 2, [FakeModel(), FakeModel()]) as robots:
        wait_until(lambda: all(robot.answers for robot in robots), "each robot has an answer")

    assert {robot.answers[0].backend for robot in robots} == {"numpy"}


def test_fairness_is_one_where_all_get_as_many() -> None:
    assert fairness(np.array([3.0, 3.0, 3.0])) == pytest.approx(1.0)
    assert fairness(np.array([6.0, 0.0, 0.0])) == pytest.approx(1 / 3)
    assert fairness(np.zeros(3)) == 0.0
