"""The embedded model under a standing query: what it answers is read, and what it sees makes events."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from nvila_ros.config import NodeConfig
from nvila_ros.serving.pipeline import VisionLanguageModel, load_model
from nvila_ros.standing.event import Event, Phase
from nvila_ros.standing.query import StandingQuery, complete, to_query
from nvila_ros.standing.registry import QueryRegistry
from nvila_ros.types import Answer, Frame
from nvila_ros.world.rendering import render
from nvila_ros.world.scene import Scene, scene_rng
from nvila_ros.world.scene_sampler import sample_scene
from tests.standing.obvious import S

COLOR, SHAPE = "red", "circle"


@pytest.fixture(scope="module")
def model() -> VisionLanguageModel:
    return load_model("nvila-tiny", threads=1)


def scenes(has_target: bool, count: int) -> list[Scene]:
    """Still scenes with a red circle, or with nothing that is red or a circle."""
    found: list[Scene] = []
    seed = 0
    while len(found) < count:
        scene = sample_scene(scene_rng(seed), aspect=4 / 3, duration_s=1.0, is_moving=False)
        colors, shapes = {obj.color for obj in scene.objects}, {obj.shape for obj in scene.objects}
        is_there = any((obj.color, obj.shape) == (COLOR, SHAPE) for obj in scene.objects)
        if is_there if has_target else COLOR not in colors and SHAPE not in shapes:
            found.append(scene)
        seed += 1
    return found


def watch(model: VisionLanguageModel, query: StandingQuery, shown: Sequence[Scene]) -> tuple[list[Event], list[Answer]]:
    """Ask a standing query about one scene a second."""
    book = QueryRegistry(1)
    book.add(complete(query, NodeConfig()))
    events, answers = [], []
    for second, scene in enumerate(shown, start=1):
        now_ns = second * S
        events += book.expire(now_ns)
        ((evaluation,),) = book.due(now_ns)
        frame = Frame(image=render(scene, 0.0, 320, 240), stamp_ns=now_ns)
        answers.append(model.answer(to_query(evaluation.query, f"q{second}", 0), [frame]))
        events += book.observe(evaluation, answers[-1], now_ns)
    assert book.states()[0].counts.answered == len(shown)
    return events, answers


def test_event_begins_and_ends_with_what_the_model_sees(model: VisionLanguageModel) -> None:
    with_target, without = scenes(True, 2), scenes(False, 4)
    query = StandingQuery(
        name="target", question=f"Is there a {COLOR} {SHAPE}?", trigger="rising", debounce_n=2, debounce_m=2
    )

    events, _ = watch(model, query, [*without[:2], *with_target, *without[2:]])

    assert [(event.phase, event.begin_stamp_ns // S) for event in events] == [(Phase.BEGIN, 3), (Phase.END, 3)]
    begin, end = events
    assert begin.probability > 0.5 > end.probability
    assert begin.answer.choices == ("yes", "no")


@pytest.mark.parametrize(
    ("query", "choices"),
    [
        ({"answer_type": "integer", "minimum": 0, "maximum": 9}, tuple(map(str, range(10)))),
        ({"answer_type": "choices", "choices": ("1", "2", "3")}, ("1", "2", "3")),
        ({"answer_type": "json", "json_schema": '{"type": "integer"}'}, ()),
        ({"answer_type": "text"}, ()),
    ],
    ids=lambda value: value.get("answer_type", "") if isinstance(value, dict) else "",
)
def test_every_type_of_answer_is_read(
    model: VisionLanguageModel, query: dict[str, object], choices: tuple[str, ...]
) -> None:
    values = {"name": "count", "question": "How many objects are there?", "trigger": "every"} | query

    events, answers = watch(model, StandingQuery(**values), scenes(True, 2))  # type: ignore[arg-type]

    assert [event.answer for event in events] == answers
    assert {answer.choices for answer in answers} == {choices}
    for event in events:
        assert event.probability == pytest.approx(max(event.answer.probabilities, default=1.0))
