"""Fit and measure by what nvila-tiny notices that it sees no world of its own (nvila_ros/visual/known_world.py).

Frames of the training's wide world and crops of the training's photographs without any shape are told apart by a
logistic regression over pooled visual tokens; its threshold leaves 2 % of that world outside. Measured on the suites
and on photographs that it did not see. Prints a table and, last, one JSON line; `--write` puts the score beside the
weights. Frames are encoded once and kept in build/known_world.npz.

    .venv/bin/python -m benchmarks.known_world [--write]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from nvila_ros.files import write_atomic
from nvila_ros.paths import share_path
from nvila_ros.runtime.loading import load_engine, open_model
from nvila_ros.tools.options import print_json
from nvila_ros.training.moments import draw_wide
from nvila_ros.types import Frame
from nvila_ros.visual.frame_encoder import FrameEncoder, SilentProgress
from nvila_ros.visual.known_world import FILE, pool, weights_digest
from nvila_ros.world import photography
from nvila_ros.world.photographs import EXAMINATION, TRAINING, crop_photograph
from nvila_ros.world.question_kinds import ANSWERS
from nvila_ros.world.questions import eval_case
from nvila_ros.world.rendering import render
from nvila_ros.world.scene import Scene
from nvila_ros.world.wide_scenes import Look
from nvila_ros.world.wide_suite import TIERS, eval_wide_case, render_either

KEPT = Path("build/known_world.npz")
NUM_WORLD, NUM_CASES, NUM_FIRST, NUM_CROPS = 4000, 100, 20, 60
ASPECTS, HEIGHTS = (4 / 3, 16 / 9, 1.0, 3 / 2), (120, 240, 480)
OUTSIDE_SHARE = 0.02  # of the world that it was fitted on
WORLD, PHOTOGRAPHS = ("world",), ("world's photographs", "photographs")
HELD_OUT = {
    "tiny-world and tiny-world-photo": ("first suites",),
    "tiny-world-wide": ("wide",),
    "tiny-world-wide, photographs without shapes": ("wide's photographs",),
    "photographs that training never shows": ("other photographs",),
}


def main() -> None:
    """Fit, measure, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="beside the weights of nvila-tiny")
    args = parser.parse_args()
    folder = share_path("checkpoints", "nvila-tiny")
    if not KEPT.is_file():
        _encode_all(folder)
    kept = np.load(KEPT)
    pooled, kinds = kept["pooled"], kept["kinds"]
    weights, bias = _fit(pooled, kinds)
    far = pooled @ weights + bias > 0
    rows = {"fitted world": WORLD, "fitted photographs": PHOTOGRAPHS, **HELD_OUT}
    shares = {name: float(far[np.isin(kinds, of)].mean()) for name, of in rows.items()}
    table = Table("frames", "number", "outside")
    for name, of in rows.items():
        table.add_row(name, str(np.isin(kinds, of).sum()), f"{shares[name]:.3f}")
    Console().print(table)
    if args.write:
        values = {"of": weights_digest(folder), "bias": bias, "weights": [float(f"{w:.6g}") for w in weights]}
        write_atomic(folder / FILE, f"{json.dumps(values)}\n".encode())
    print_json({name: round(share, 4) for name, share in shares.items()})


def _fit(pooled: np.ndarray, kinds: np.ndarray) -> tuple[np.ndarray, float]:
    from sklearn.linear_model import LogisticRegression

    is_world, is_photograph = np.isin(kinds, WORLD), np.isin(kinds, PHOTOGRAPHS)
    fitted = pooled[is_world | is_photograph]
    mean, scale = fitted.mean(0), fitted.std(0) + 1e-6
    model = LogisticRegression(C=0.1, max_iter=400)
    model.fit((fitted - mean) / scale, is_photograph[is_world | is_photograph])
    weights = (model.coef_[0] / scale).astype(np.float32)
    return weights, -float(np.quantile(pooled[is_world] @ weights, 1 - OUTSIDE_SHARE))


def _encode_all(folder: Path) -> None:
    encoder = FrameEncoder(load_engine(open_model(folder), "onnxruntime"), 0, 0.0)
    pooled, kinds = [], []
    for number, (kind, image) in enumerate(_frames()):
        encoded = encoder.encode(Frame(image=image, stamp_ns=number), SilentProgress(), is_alone=True)
        pooled.append(pool(encoded.visual_BGD))
        kinds.append(kind)
        if number % 250 == 0:
            print(f"{number} frames", file=sys.stderr, flush=True)
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    np.savez(KEPT, pooled=np.stack(pooled), kinds=np.array(kinds))


def _frames() -> Iterator[tuple[str, np.ndarray]]:
    look = Look(photographs=TRAINING, photograph_share=0.4)
    for index in range(NUM_WORLD):
        rng = np.random.default_rng((5, index))
        scene = draw_wide(rng, look, 0.3)
        height = int(rng.choice(HEIGHTS))
        camera = photography.render if index % 2 else render
        image = camera(scene, 0.0, round(height * scene.aspect), height)
        yield "world's photographs" if _is_photograph(scene) else "world", image
    for tier in TIERS:
        for index in range(NUM_CASES):
            scene = eval_wide_case(tier, index).scene
            yield "wide's photographs" if _is_photograph(scene) else "wide", render_either(scene, 0.0, 640, 480)
    for kind in ANSWERS:
        for index in range(NUM_FIRST):
            case = eval_case(kind, index)
            for camera in (render, photography.render):
                yield "first suites", camera(case.scene, case.times_s[0], 640, 480)
    for kind, names in (("photographs", TRAINING), ("other photographs", EXAMINATION)):
        for name in names:
            for seed in range(NUM_CROPS):
                aspect = ASPECTS[seed % len(ASPECTS)]
                yield kind, crop_photograph(name, seed, aspect, round(240 * aspect), 240)


def _is_photograph(scene: Scene) -> bool:
    """Whether the frame shows a photograph and nothing of the world's own."""
    return scene.background.kind == "photograph" and not scene.objects


if __name__ == "__main__":
    main()
