"""What sharing tokens between near repeats saves and costs: nvila-tiny before a still camera and before motion.

Each scene is filmed five times within two seconds, with sensor noise, and the same question is asked of every frame;
the answer to the last one is judged by where things are then. Prints for each `repeat_threshold` how many frames went
through the tower and how many answers were right, and, last, one JSON line.

    .venv/bin/python -m benchmarks.repeats --scenes 200
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from nvila_ros.serving.pipeline import CacheLimits, load_model
from nvila_ros.tools.options import positive, print_json
from nvila_ros.tools.suites import HEIGHT, WIDTH
from nvila_ros.types import Frame, Query
from nvila_ros.world.questions import Question, ask, is_correct
from nvila_ros.world.rendering import render
from nvila_ros.world.scene import Scene, scene_rng
from nvila_ros.world.scene_sampler import sample_scene

SEED = 1 << 27  # of scenes that neither training, evaluation nor calibration draws
KINDS = ("where", "color", "count", "exist")
TIMES_S = (0.0, 0.5, 1.0, 1.5, 2.0)
THRESHOLDS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4)


@dataclass(slots=True)
class RepeatCounts:
    """What came of scenes: how many frames or tiles were shown, and what became of them and of the questions."""

    num_shown: int = 0
    num_encoded: int = 0
    num_asked: int = 0
    num_right: int = 0

    @property
    def shares(self) -> dict[str, float]:
        """The share of frames or tiles encoded, and of answers right."""
        return {
            "encoded": round(self.num_encoded / self.num_shown, 3),
            "right": round(self.num_right / self.num_asked, 3),
        }


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=positive, default=200, help="for each threshold (default: %(default)s)")
    args = parser.parse_args()
    table = Table("threshold", "still: encoded", "right", "moving: encoded", "right", title="nvila-tiny")
    figures = {}
    for threshold in THRESHOLDS:
        counts_by_scene = run(threshold, args.scenes)
        figures[str(threshold)] = {name: counts.shares for name, counts in counts_by_scene.items()}
        cells = [f"{value:.3f}" for counts in counts_by_scene.values() for value in counts.shares.values()]
        table.add_row(f"{threshold:g}", *cells)
    Console().print(table)
    print_json({"benchmark": "repeats", "scenes": args.scenes, "thresholds": figures})
    return 0


def run(threshold: float, num_scenes: int) -> dict[str, RepeatCounts]:
    """Film and ask scenes at one threshold, every other one in motion."""
    model = load_model("nvila-tiny", limits=CacheLimits(repeat_threshold=threshold))
    counts_by_scene = {"still": RepeatCounts(), "moving": RepeatCounts()}
    for index, (scene, question) in enumerate(scenes(num_scenes)):
        counts = counts_by_scene["moving" if index % 2 else "still"]
        for t_s in TIMES_S:
            frame = Frame(image=render(scene, t_s, WIDTH, HEIGHT), stamp_ns=round((3 * index + t_s) * 1e9))
            answer = model.answer(Query(query_id="q", question=question.text, max_tokens=16), [frame])
            counts.num_shown += 1
            counts.num_encoded += answer.counts.num_frames_encoded
        counts.num_asked += 1
        counts.num_right += is_correct(question, answer.text)
    return counts_by_scene


def scenes(num_scenes: int) -> Iterator[tuple[Scene, Question]]:
    """Yield scenes, still and moving in turn, with a question about their last moment."""
    index = 0
    for number in range(num_scenes):
        question = None
        while question is None:
            rng: np.random.Generator = scene_rng(SEED + index)
            index += 1
            scene = sample_scene(rng, aspect=WIDTH / HEIGHT, duration_s=TIMES_S[-1], is_moving=number % 2 == 1)
            question = ask(rng, scene, KINDS[number // 2 % len(KINDS)], t_s=TIMES_S[-1])
        yield scene, question


if __name__ == "__main__":
    sys.exit(main())
