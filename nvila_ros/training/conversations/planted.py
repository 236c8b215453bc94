"""The synthetic world as a data set whose good and bad samples are known, to judge methods that select samples.

There are the three kinds of sample of the paper: *easy* asks what any model knows; *wrong* asks the questions of the
other two with false answers; *helpful* asks what is still to be learned. The set is one sub-dataset, or
one for each kind of question. Sample i of a seed is always the same, and no scene of it is drawn by the recipes, the
calibration or the evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from nvila_ros.errors import FrameError
from nvila_ros.training.batches import DRAWN_ROWS
from nvila_ros.training.conversations.record_media import IMAGE
from nvila_ros.training.conversations.samples import Sample, SampleTurn
from nvila_ros.training.moments import draw_moment
from nvila_ros.world.questions import ANSWERS, Question, conversation
from nvila_ros.world.rendering import render
from nvila_ros.world.scene import Scene, scene_rng

SEED_BASE = 1 << 29  # of scenes that nothing else draws
SEED_STEP = 1 << 20  # scenes of one seed
PLANTS = ("easy", "wrong", "helpful")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlantedSpec:
    """What a planted data set holds.

    Attributes:
        num_samples: at most `SEED_STEP`.
        seed: below 1024; each has scenes of its own.
        shares: of each of `PLANTS`.
        easy_kinds: kinds of question that are easy.
        helpful_kinds: kinds that are still to be learned.
        num_turns: questions of a sample, fewer where its scene has no more.
        is_split: whether each sample asks of one kind alone, which is its sub-dataset. Of each kind that is easy as
            many samples are expected, and likewise of each that is helpful; the share of wrong ones is the same in all.
    """

    num_samples: int
    seed: int = 0
    shares: tuple[float, float, float] = (0.4, 0.2, 0.4)
    easy_kinds: tuple[str, ...] = ("color", "shape", "count", "exist")
    helpful_kinds: tuple[str, ...] = ("where",)
    num_turns: int = 1
    is_split: bool = False

    @property
    def kinds(self) -> tuple[str, ...]:
        """All kinds of question, each once: where it is split, its sub-datasets."""
        return tuple(dict.fromkeys(self.easy_kinds + self.helpful_kinds))


@dataclass(frozen=True, slots=True)
class SceneMedium:
    """A frame that the world's camera takes when it is asked for."""

    scene: Scene
    t_s: float
    name: str
    kind: str = IMAGE

    def read(self, num_frames: int) -> list[np.ndarray]:
        """Return the one frame, (`DRAWN_ROWS`, width, 3) uint8 RGB."""
        return [render(self.scene, self.t_s, round(DRAWN_ROWS * self.scene.aspect), DRAWN_ROWS)]


class PlantedWorld:
    """A `SampleSource` of planted samples; nothing is drawn before it is asked for."""

    def __init__(self, plan: PlantedSpec) -> None:
        assert plan.num_samples <= SEED_STEP, plan
        self.plan, self.name = plan, f"world-{plan.seed}"

    def __len__(self) -> int:
        return self.plan.num_samples

    def plant(self, index: int) -> str:
        """Return which of `PLANTS` a sample is."""
        return self._draw(index)[0]

    def read(self, index: int) -> Sample:
        """Return a sample, as `SampleSource.read`."""
        _, kinds, medium, turns = self._draw(index)
        shown = tuple(SampleTurn(() if k else (medium,), turn.text, turn.answer) for k, turn in enumerate(turns))
        return Sample(f"{self.name}, sample {index}", shown, kinds[0] if self.plan.is_split else self.name)

    def line(self, index: int) -> bytes:
        """Return the record that `write_world` writes for a sample."""
        plant, kinds, medium, turns = self._draw(index)
        said: list[dict[str, str]] = []
        for turn in turns:
            tag = "" if said else "<image>\n"
            said += [{"from": "human", "value": tag + turn.text}, {"from": "gpt", "value": turn.answer}]
        marks = {"plant": plant, **({"kind": kinds[0]} if self.plan.is_split else {})}
        record: Mapping[str, Any] = {"id": index, "image": medium.name, **marks, "conversations": said}
        return json.dumps(record).encode()

    def identity(self) -> dict[str, str]:
        """Return the plan, which decides every sample."""
        return {"plan": repr(self.plan)}

    def _draw(self, index: int) -> tuple[str, tuple[str, ...], SceneMedium, list[Question]]:
        plan = self.plan
        rng = scene_rng(SEED_BASE + plan.seed * SEED_STEP + index)
        plant = PLANTS[int(rng.choice(len(PLANTS), p=np.array(plan.shares) / sum(plan.shares)))]
        kinds = self._kinds(rng, plant)
        turns: list[Question] = []
        while not turns:  # few scenes have nothing of a kind to ask
            scene, t_s = draw_moment(rng)
            turns = conversation(rng, scene, plan.num_turns, kinds, t_s=t_s)
        if plant == "wrong":
            turns = [_falsify(rng, turn) for turn in turns]
        return plant, kinds, SceneMedium(scene, t_s, f"{self.name}/{index}.png"), turns

    def _kinds(self, rng: np.random.Generator, plant: str) -> tuple[str, ...]:
        """Return the kinds that a sample asks of, one where the set is split."""
        plan = self.plan
        asked = {"easy": plan.easy_kinds, "helpful": plan.helpful_kinds}
        if not plan.is_split:
            return asked.get(plant, plan.kinds)
        if plant == "wrong":  # of either in proportion, so that the share of wrong ones is the same in all
            easy, _, helpful = plan.shares
            plant = "easy" if rng.random() * (easy + helpful) < easy else "helpful"
        return (asked[plant][int(rng.integers(len(asked[plant])))],)


def _falsify(rng: np.random.Generator, question: Question) -> Question:
    others = [answer for answer in ANSWERS[question.kind] if answer != question.answer]
    return Question(question.kind, question.text, others[int(rng.integers(len(others)))])


def write_world(world: PlantedWorld, folder: Path) -> Path:
    """Write a planted data set as images and a file of JSON lines, which is returned.

    Raises:
        FrameError: an image cannot be written.
    """
    (folder / world.name).mkdir(parents=True, exist_ok=True)
    path = folder / f"{world.name}.jsonl"
    with path.open("wb") as file:
        for index in range(len(world)):
            file.write(world.line(index) + b"\n")
            _, _, medium, _ = world._draw(index)
            bgr = cv2.cvtColor(medium.read(1)[0], cv2.COLOR_RGB2BGR)
            if not cv2.imwrite(str(folder / medium.name), bgr):
                raise FrameError(f"{folder / medium.name} cannot be written; choose a folder with room")
    return path


def share_by_plant(world: PlantedWorld, is_kept: Sequence[bool] | np.ndarray) -> dict[str, float]:
    """Return which share of each kind of sample was kept."""
    plants = np.array([world.plant(index) for index in range(len(world))])
    return {plant: float(np.mean(np.asarray(is_kept)[plants == plant])) for plant in PLANTS if (plants == plant).any()}
