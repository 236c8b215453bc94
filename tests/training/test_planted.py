"""The planted world: what it is told to hold, the same from memory and from files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from nvila_ros.training.conversations.files import RecordFile
from nvila_ros.training.conversations.planted import PLANTS, PlantedSpec, PlantedWorld, share_by_plant, write_world
from nvila_ros.world.questions import ANSWERS, PHRASINGS


def kind_of(question: str) -> str:
    """The kind of question of the world that begins and ends like this one."""
    for kind, phrasings in PHRASINGS.items():
        for start, _, end in (phrasing.partition("{}") for phrasing in phrasings):
            if question.startswith(start) and question.endswith(end):
                return kind
    raise AssertionError(question)


def test_samples_hold_what_their_plant_says() -> None:
    plan = PlantedSpec(num_samples=120, shares=(0.5, 0.25, 0.25), easy_kinds=("count",), helpful_kinds=("shape",))
    world = PlantedWorld(plan)

    plants = [world.plant(i) for i in range(len(world))]
    kinds = [kind_of(world.read(i).turns[0].parts[-1]) for i in range(len(world))]

    assert abs(plants.count("easy") - 60) < 20
    assert set(plants) == set(PLANTS)
    assert {k for p, k in zip(plants, kinds, strict=True) if p == "easy"} == {"count"}
    assert {k for p, k in zip(plants, kinds, strict=True) if p == "helpful"} == {"shape"}
    assert {k for p, k in zip(plants, kinds, strict=True) if p == "wrong"} == {"count", "shape"}


def test_each_kind_is_a_subset_with_as_many_wrong_ones(tmp_path: Path) -> None:
    kinds = {"easy": ("shape", "exist"), "helpful": ("count",)}
    plan = PlantedSpec(
        num_samples=600,
        shares=(0.4, 0.4, 0.2),
        easy_kinds=kinds["easy"],
        helpful_kinds=kinds["helpful"],
        num_turns=3,
        is_split=True,
    )
    world = PlantedWorld(plan)

    num_wrong = dict.fromkeys(plan.kinds, 0)
    subsets = [json.loads(world.line(i))["kind"] for i in range(600)]
    for i, kind in enumerate(subsets):
        sample, plant = world.read(i), world.plant(i)
        assert {kind_of(turn.parts[-1]) for turn in sample.turns} == {kind} == {sample.group}
        assert plant == "wrong" or kind in kinds[plant]
        num_wrong[kind] += plant == "wrong"

    assert all(abs(subsets.count(kind) - 200) < 40 for kind in plan.kinds)
    assert all(abs(num / subsets.count(kind) - 0.4) < 0.1 for kind, num in num_wrong.items())


def test_wrong_answers_are_wrong_and_others_right() -> None:
    world = PlantedWorld(PlantedSpec(num_samples=80, easy_kinds=("count",), helpful_kinds=("count",)))
    for index in range(len(world)):
        turn = world.read(index).turns[0]
        scene = turn.parts[0].scene
        assert turn.answer in ANSWERS["count"]
        assert (turn.answer == str(len(scene.objects))) == (world.plant(index) != "wrong")


def test_files_hold_the_same_samples(tmp_path: Path) -> None:
    world = PlantedWorld(PlantedSpec(num_samples=5, seed=3, num_turns=3))

    file = RecordFile(write_world(world, tmp_path), tmp_path)

    assert len(file) == 5
    for index in range(5):
        ours, theirs = world.read(index), file.read(index)
        assert [turn.answer for turn in ours.turns] == [turn.answer for turn in theirs.turns]
        assert [turn.parts[-1] for turn in ours.turns] == [turn.parts[-1] for turn in theirs.turns]
        assert np.array_equal(ours.turns[0].parts[0].read(1)[0], theirs.turns[0].parts[0].read(1)[0])
        assert file.line(index) == world.line(index)
        assert json.loads(file.line(index))["plant"] == world.plant(index)


def test_each_seed_has_scenes_of_its_own() -> None:
    lines = [PlantedWorld(PlantedSpec(num_samples=1, seed=seed, num_turns=4)).line(0) for seed in (0, 1, 1)]

    assert lines[0] != lines[1] == lines[2]


def test_shares_are_told_by_plant() -> None:
    world = PlantedWorld(PlantedSpec(num_samples=30))

    shares = share_by_plant(world, [world.plant(i) == "helpful" for i in range(30)])

    assert shares == {"easy": 0.0, "wrong": 0.0, "helpful": 1.0}
