"""What keeping the tower's work by tile saves: nvila-tiny-scale, whose images are cut, before cameras that move or not.

Each scene of small things is filmed five times, and its question is asked of the last frame. The camera stands, with
its clock in the picture; stands, with sensor noise; stands so while the things are put there at last; pans by sixteen
pixels a frame; or shakes by up to two. Prints for each `repeat_threshold` which share of the tiles passed the tower and
how many answers were right, and, last, one JSON line.

    .venv/bin/python -m benchmarks.tiles --scenes 60
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.repeats import RepeatCounts
from nvila_ros.serving.pipeline import CacheLimits, load_model
from nvila_ros.tools.options import positive, print_json
from nvila_ros.tools.suites import HEIGHT, WIDTH
from nvila_ros.types import Frame, Query
from nvila_ros.world.questions import is_correct
from nvila_ros.world.rendering import render
from nvila_ros.world.scale_questions import SMALL_KINDS, eval_scale_case
from nvila_ros.world.scene import Scene

NUM_FRAMES = 5
TILES = 1 + 4 + 12
"""Of a frame, at the three scales of nvila-tiny-scale."""
THRESHOLDS = (0.0, 0.02, 0.05, 0.1, 0.2)


def film_clock(scene: Scene, number: int) -> np.ndarray:
    """Film without noise, with the time written into a corner, as surveillance cameras do."""
    image = render(replace(scene, noise=0.0), 0.0, WIDTH, HEIGHT).copy()
    cv2.putText(image, f"12:00:0{number}", (8, HEIGHT - 8), cv2.FONT_HERSHEY_PLAIN, 1.0, (255, 255, 255))
    return image


def film_noise(scene: Scene, number: int) -> np.ndarray:
    """Film with the noise of a fair sensor, two grey levels."""
    return render(replace(scene, noise=2.0), 0.001 * number, WIDTH, HEIGHT)


def film_new(scene: Scene, number: int) -> np.ndarray:
    """Film with that noise, at first without a thing."""
    return film_noise(scene if number == NUM_FRAMES - 1 else replace(scene, objects=()), number)


def film_pan(scene: Scene, number: int) -> np.ndarray:
    """Film from the side, sixteen pixels nearer with each frame."""
    return shift(scene, 16 * (NUM_FRAMES - 1 - number), 0)


def film_shake(scene: Scene, number: int) -> np.ndarray:
    """Film with up to two pixels of shake; the last frame is straight."""
    dx, dy = np.random.default_rng((scene.seed, number)).integers(-2, 3, 2) * (number < NUM_FRAMES - 1)
    return shift(scene, int(dx), int(dy))


def shift(scene: Scene, dx: int, dy: int) -> np.ndarray:
    """Return a picture without noise, pixels moved right and down; the border goes on outside."""
    image = render(replace(scene, noise=0.0), 0.0, WIDTH, HEIGHT)
    moves = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
    return np.asarray(cv2.warpAffine(image, moves, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REPLICATE))


CAMERAS: dict[str, Callable[[Scene, int], np.ndarray]] = {
    "stands, with a clock": film_clock,
    "stands, with noise": film_noise,
    "stands, things are put": film_new,
    "pans": film_pan,
    "shakes": film_shake,
}


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=positive, default=60, help="for each camera and threshold (default: 60)")
    args = parser.parse_args()
    figures = {
        name: {str(threshold): run(threshold, name, args.scenes).shares for threshold in THRESHOLDS} for name in CAMERAS
    }
    table = Table("encoded, right", *(f"{threshold:g}" for threshold in THRESHOLDS))
    for name, by_threshold in figures.items():
        table.add_row(name, *(f"{each['encoded']:.3f}, {each['right']:.3f}" for each in by_threshold.values()))
    Console().print(table)
    print_json({"benchmark": "tiles", "model": "nvila-tiny-scale", "scenes": args.scenes, "cameras": figures})
    return 0


def run(threshold: float, camera: str, num_scenes: int) -> RepeatCounts:
    """Film and ask scenes with one camera at one threshold."""
    model = load_model("nvila-tiny-scale", limits=CacheLimits(repeat_threshold=threshold))
    counts, kinds = RepeatCounts(num_shown=num_scenes * NUM_FRAMES * TILES), tuple(SMALL_KINDS)
    for index in range(num_scenes):
        case = eval_scale_case(kinds[index % len(kinds)], index)
        for number in range(NUM_FRAMES):
            image = CAMERAS[camera](case.scene, number)
            frame = Frame(image=image, stamp_ns=10 * index + number, camera=f"camera {index}")
            model.prefetch(frame, is_alone=True)
        answer = model.answer(Query(query_id="q", question=case.question.text, max_tokens=16), [frame])
        counts.num_asked += 1
        counts.num_right += is_correct(case.question, answer.text)
    counts.num_encoded = model.counters()["tiles_encoded"]
    return counts


if __name__ == "__main__":
    sys.exit(main())
