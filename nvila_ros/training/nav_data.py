"""Conversations that teach a model to follow instructions: walks of a follower through houses, step by step.

In: how many walks. Out: a folder with frames as the model sees them and records as `nvila finetune` reads them. A
record shows the frames of one step and asks, independently of each other, what to do next for several instructions: the
one that is followed, and others whose next step is as certain. Walks go astray on purpose, so that ways back are shown;
walks that begin near their target and go on after they have stopped make stops frequent.

Every walk is drawn from its index alone, and a folder that was begun is gone on with.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from nvila_ros.files import atomic_file
from nvila_ros.prompt.navila import ACTIONS, Action, short
from nvila_ros.visual.tiles import frame_tile
from nvila_ros.world.question_kinds import PHRASINGS, place_of
from nvila_ros.world.rooms.episodes import EpisodeView, Walk, all_seen, turned_in_vain
from nvila_ros.world.rooms.follower import follow
from nvila_ros.world.rooms.house import free_distance
from nvila_ros.world.rooms.instructions import Task, sample_task, sees_over, word_task
from nvila_ros.world.rooms.paths import gap_to
from nvila_ros.world.rooms.robot import ROBOT_M, Robot
from nvila_ros.world.scene import EVAL_SEED_BASE, is_clear

Asked = tuple[str, str]
"""A question, and what answers it."""
QUESTIONS_PER_STEP = 4
MAX_STEPS = 24
_ASTRAY_SHARE = 0.12
_NEAR_SHARE = 0.35
_HIDDEN_SHARE = 0.15
_QUALITY = 95
PLACE_QUESTION = PHRASINGS["where"][0]
LOOK, WALK = "look", "walk"
RECORDS = {LOOK: "look.jsonl", WALK: "walk.jsonl"}
"""Records of the current frame alone, and of all frames of a step."""


def write_walks(
    folder: Path,
    num_walks: int,
    *,
    image_px: int,
    first: int = 0,
    num_workers: int = 1,
    on_walk: Callable[[], None] = lambda: None,
) -> None:
    """Write the walks of a data set, each as a file of records beside its frames, and join them in order.

    Args:
        folder: of the data set; walks that it holds are kept.
        num_walks: how many.
        image_px: side of the frames, as the model's tower takes them.
        first: index of the first walk.
        num_workers: processes.
        on_walk: called for each walk that is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    todo = [k for k in range(first, first + num_walks) if not _lines_path(folder, k).is_file()]
    jobs = ((folder, k, image_px) for k in todo)
    with get_context("spawn").Pool(num_workers) as pool:
        for _ in pool.imap_unordered(_write_walk, jobs):
            on_walk()
    for stage, name in RECORDS.items():
        with atomic_file(folder / name) as part:
            texts = (_lines_path(folder, k, stage).read_text(encoding="utf-8") for k in range(first, first + num_walks))
            part.write_text("".join(texts), encoding="utf-8")


def count_walks(folder: Path, num_walks: int, first: int = 0) -> int:
    """Return how many of the walks a folder holds."""
    return sum(_lines_path(folder, k).is_file() for k in range(first, first + num_walks))


def _lines_path(folder: Path, index: int, stage: str = WALK) -> Path:
    return folder / stage / f"{index:06d}.jsonl"


def _write_walk(job: tuple[Path, int, int]) -> None:
    folder, index, image_px = job
    cv2.setNumThreads(1)
    frames = folder / "frames" / f"{index:06d}"
    frames.mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = {LOOK: [], WALK: []}
    for views, asked in walk_steps(index):
        names = [f"frames/{index:06d}/{_write_frame(frames, view, image_px)}" for view in views]
        for stage, shown in ((LOOK, names[-1:]), (WALK, names)):
            lines[stage].append(json.dumps(_record(shown, asked[stage])) + "\n")
    for stage, texts in lines.items():  # walks last: one that has these is whole
        path = _lines_path(folder, index, stage)
        path.parent.mkdir(exist_ok=True)
        with atomic_file(path) as part:
            part.write_text("".join(texts), encoding="utf-8")


def _write_frame(folder: Path, view: EpisodeView, image_px: int) -> str:
    name = f"{view.number}.jpg"
    if not (folder / name).is_file():
        tile = cv2.cvtColor(frame_tile(view.image, image_px), cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(folder / name), tile, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return name


def _record(images: list[str], asked: list[Asked]) -> dict[str, object]:
    said = [
        {"from": sender, "value": text}
        for number, (words, answer) in enumerate(asked)
        for sender, text in (("human", "<image>" * len(images) * (not number) + words), ("gpt", answer))
    ]
    return {"images": images, "independent": True, "conversations": said}


def walk_steps(index: int) -> Iterator[tuple[list[EpisodeView], dict[str, list[Asked]]]]:
    """Yield the frames of each step of a walk, and by stage the questions with what answers each."""
    rng = np.random.default_rng(index)
    assert index < EVAL_SEED_BASE, "evaluation draws from there"
    task = sample_task(rng, elsewhere_share=0.4)
    if rng.random() < _NEAR_SHARE:
        task = _set_near(rng, task)
    walk = Walk(task.house, Robot(task.house, task.x, task.y, task.yaw), rng)
    num_stops = 0
    for _ in range(MAX_STEPS):
        views = walk.look()
        wanted = _wanted(task, task.target, walk.robot, views)
        targets = _choose_targets(rng, task, walk.robot, views)
        asked = [_ask(rng, task, target, walk.robot, views) for target in targets]
        yield views, {LOOK: _look(rng, task, walk.robot, views[-1:]), WALK: asked}
        num_stops += wanted.kind == "stop"
        if num_stops > 2 or (num_stops and rng.random() < 0.5):
            return
        is_astray = wanted.kind == "stop" or rng.random() < _ASTRAY_SHARE
        walk.step(ACTIONS[int(rng.integers(1, len(ACTIONS)))] if is_astray else wanted)


def _set_near(rng: np.random.Generator, task: Task) -> Task:
    """Return the task with a start within a metre or so of its target, which the robot roughly faces."""
    thing = task.house.things[task.target]
    for _ in range(50):
        bearing, far = rng.uniform(-math.pi, math.pi), thing.radius + ROBOT_M + rng.uniform(0.08, 1.3)
        x, y = thing.x + far * math.cos(bearing), thing.y + far * math.sin(bearing)
        is_free = float(free_distance(task.house, np.array(x), np.array(y))) > ROBOT_M + 0.05
        if is_free and task.house.room_of(x, y) is not None and sees_over(task.house, x, y, task.target):
            yaw = math.remainder(bearing + math.pi + rng.normal(0, 0.5), 2 * math.pi)
            return replace(task, x=float(x), y=float(y), yaw=yaw)
    return task


def _wanted(task: Task, target: int, robot: Robot, views: list[EpisodeView]) -> Action:
    turned = turned_in_vain(views)
    return follow(task.house, target, robot.x, robot.y, robot.yaw, all_seen(views), num_turned=turned)


def _choose_targets(rng: np.random.Generator, task: Task, robot: Robot, views: list[EpisodeView]) -> list[int]:
    """Return the task's target and others to be asked about; those near the robot, then those seen, come first."""
    house, start = task.house, task.house.room_of(task.x, task.y)
    seen, here = all_seen(views).things, house.room_of(robot.x, robot.y)
    rooms = [house.room_of(thing.x, thing.y) for thing in house.things]
    others = [k for k, room in enumerate(rooms) if k != task.target and (room != start or here == start or k in seen)]
    others.sort(key=lambda k: (float(gap_to(house.things[k], robot.x, robot.y)) > 0.6, k not in seen, rng.random()))
    return [task.target, *others[: QUESTIONS_PER_STEP - 1]]


def _look(rng: np.random.Generator, task: Task, robot: Robot, views: list[EpisodeView]) -> list[Asked]:
    """Return what is asked about the current frame alone: what to do about things in it, and where they are.

    Of things that are not in it the answer is always to turn, which is learned before any of the others is: few are
    asked about. Where a thing is, nvila-tiny knows of its own world, and what to do follows from that.
    """
    things, places = task.house.things, views[-1].places
    seen = sorted(places, key=lambda k: (k != task.target, rng.random()))[: QUESTIONS_PER_STEP - 1]
    hidden = [k for k in range(len(things)) if k not in places and (not seen or rng.random() < _HIDDEN_SHARE)]
    asked = [_ask(rng, task, target, robot, views) for target in [*seen, *hidden[:1]]]
    for k in seen:
        if is_clear(places[k][0]) and is_clear(places[k][1]):
            asked.append((PLACE_QUESTION.format(things[k].name), place_of(*places[k])))
    return asked


def _ask(rng: np.random.Generator, task: Task, target: int, robot: Robot, views: list[EpisodeView]) -> Asked:
    """Return the question of an instruction to go to a thing, and the sentence that answers it."""
    house, thing = task.house, task.house.things[target]
    is_elsewhere = house.room_of(thing.x, thing.y) != house.room_of(task.x, task.y)
    words = word_task(rng, house, target, is_elsewhere=is_elsewhere)
    return short(words), _wanted(task, target, robot, views).sentence
