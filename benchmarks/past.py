"""What keeping and choosing frames of the past costs, at 1280x720 from a camera of 30 Hz, by kind of image.

Films the synthetic world with a sensor noise of 4 grey levels, keeps it in a buffer with the node's default bounds for
twice as long as it holds, and asks for 8 frames of the last minute. Also counts in how many held-out scenes a brief
event is seen. Prints a table and, last, one JSON line. Exit 1 if taking a frame in costs more than a millisecond, or
`change` sees no more events than `uniform`.

    .venv/bin/python -m benchmarks.past
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from nvila_ros.config import NodeConfig
from nvila_ros.tools.options import positive, print_json
from nvila_ros.types import NS_PER_S, EncodedImage, Query, RawFrame, RawImage
from nvila_ros.video.buffer import FrameBuffer
from nvila_ros.video.compressed import decode_compressed, read_header
from nvila_ros.video.image_decoding import check_layout, decode
from nvila_ros.video.selection import SPREAD, select_frames
from nvila_ros.video.thumbnails import thumbnail
from nvila_ros.world.events import sample_event_scene
from nvila_ros.world.rendering import render
from nvila_ros.world.scene import EVAL_SEED_BASE, Jump, Scene

WIDTH, HEIGHT, RATE_HZ, MINUTE_S = 1280, 720, 30, 60.0
NUM_PICTURES, NUM_TIMED = 20, 30
QUALITY = (cv2.IMWRITE_JPEG_QUALITY, 90)
NOISE = 4.0
CLIP_S, CLIP_HZ, JUMP_S, NUM_FRAMES = 10.0, 10, 0.5, 8
MAX_TAKE_MS = 1.0

Image = RawImage | EncodedImage


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=positive, default=100, help="scenes with a brief event (default: %(default)s)")
    num_scenes = parser.parse_args().scenes
    cv2.setNumThreads(1)
    scene = sample_event_scene(np.random.default_rng(EVAL_SEED_BASE), aspect=WIDTH / HEIGHT, duration_s=CLIP_S)
    scene = dataclasses.replace(scene, noise=NOISE)
    pictures = [render(scene, i / CLIP_HZ, WIDTH, HEIGHT) for i in range(NUM_PICTURES)]
    costs = {kind: measure([make(picture) for picture in pictures]) for kind, make in KINDS.items()}
    bgr = pictures[0][..., ::-1].copy()
    costs["JPEG"]["encode_ms"] = median_ms(lambda _: cv2.imencode(".jpg", bgr, QUALITY))
    print_costs(costs)
    seen = count_seen(num_scenes)
    print("scenes in which a jump of a quarter of a second is seen:", seen, "of", num_scenes)
    print_json({"bench": "past", "costs": costs, "num_scenes": num_scenes, "seen": seen})
    is_cheap = all(cost["header_ms"] + cost["push_ms"] <= MAX_TAKE_MS for cost in costs.values())
    return 0 if is_cheap and seen["change"] > seen["uniform"] else 1


def as_raw(rgb: np.ndarray) -> Image:
    """Return a picture as rgb8."""
    return RawImage(data=rgb.reshape(-1), encoding="rgb8", width=WIDTH, height=HEIGHT, step=3 * WIDTH)


def as_file(rgb: np.ndarray, suffix: str, text: str) -> Image:
    """Return a picture as a compressed file."""
    data = np.asarray(cv2.imencode(suffix, rgb[..., ::-1], QUALITY if suffix == ".jpg" else ())[1]).reshape(-1)
    return EncodedImage(data=data, format=text, width=WIDTH, height=HEIGHT)


KINDS: dict[str, Callable[[np.ndarray], Image]] = {
    "raw rgb8": as_raw,
    "JPEG": lambda rgb: as_file(rgb, ".jpg", "jpeg"),
    "PNG": lambda rgb: as_file(rgb, ".png", "png"),
}


def measure(images: list[Image]) -> dict[str, float]:
    """Return what each step costs, medians in ms, and what the buffer then holds."""
    config = NodeConfig()
    buffer: FrameBuffer[RawFrame] = FrameBuffer(
        config.buffer_s, config.buffer_bytes, past_s=config.past_s, past_hz=config.past_hz
    )
    num_pushed = round(2 * RATE_HZ * config.past_s)
    push_ms = median_ms(lambda i: buffer.push(frame_of(images, i)), num_pushed)
    state = buffer.state()
    query = ask_for(MINUTE_S, "change")
    return {
        "num_bytes": float(np.mean([image.data.size for image in images])),
        "header_ms": median_ms(lambda i: check(images[i % len(images)])),
        "push_ms": push_ms,
        "num_held": state.num_frames,
        "span_s": ((state.newest_ns or 0) - (state.oldest_ns or 0)) / NS_PER_S,
        "thumbnail_ms": median_ms(lambda i: thumbnail(frame_of(images, i))),
        "digest_ms": median_ms(lambda i: frame_of(images, i).digest),
        "decode_ms": median_ms(lambda i: to_rgb(images[i % len(images)])),
        "first_choice_ms": median_ms(lambda _: select_frames(buffer, query), 1),
        "next_choice_ms": median_ms(lambda _: select_frames(buffer, query), 5),
    }


def frame_of(images: list[Image], index: int) -> RawFrame:
    """Return the frame of an index in an endless stream."""
    return RawFrame(image=images[index % len(images)], stamp_ns=(index + RATE_HZ) * NS_PER_S // RATE_HZ)


def check(image: Image) -> None:
    """Look at an image as the node does when it arrives."""
    if isinstance(image, RawImage):
        check_layout(image)
    else:
        read_header(image.data, image.format)


def to_rgb(image: Image) -> np.ndarray:
    """Decode an image. BGR stands for raw images, since rgb8 needs none."""
    if isinstance(image, RawImage):
        return decode(RawImage(data=image.data, encoding="bgr8", width=WIDTH, height=HEIGHT, step=image.step))
    return decode_compressed(image)


def median_ms(work: Callable[[int], object], count: int = NUM_TIMED) -> float:
    """Time work for each index and return the median in ms."""
    times = []
    for i in range(count):
        start = time.perf_counter()
        work(i)
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e3


def count_seen(num_scenes: int) -> dict[str, int]:
    """Return in how many scenes of one brief jump some chosen frame shows it, by sampling."""
    seen = dict.fromkeys(SPREAD, 0)
    for seed in range(EVAL_SEED_BASE, EVAL_SEED_BASE + num_scenes):
        scene, jump = scene_of_a_jump(seed)
        buffer = film(scene)
        for sampling in SPREAD:
            frames = select_frames(buffer, ask_for(CLIP_S, sampling))
            seen[sampling] += any(jump.share(frame.stamp_ns / NS_PER_S) > 0.9 for frame in frames)
    return seen


def ask_for(window_s: float, sampling: str) -> Query:
    """Return a query for the frames of the last seconds."""
    return Query(
        query_id="",
        question="",
        cameras=("camera",),
        window_s=window_s,
        num_frames=NUM_FRAMES,
        sampling=sampling,
    )


def scene_of_a_jump(seed: int) -> tuple[Scene, Jump]:
    """Draw a scene in which just one object jumps away and back."""
    rng = np.random.default_rng(seed)
    share = (JUMP_S / CLIP_S, JUMP_S / CLIP_S)
    while True:
        scene = sample_event_scene(rng, aspect=WIDTH / HEIGHT, duration_s=CLIP_S, has_pair=False, jumps=share)
        jumps = [obj.jump for obj in scene.objects if obj.jump and obj.jump_direction != "still"]
        if len(jumps) == 1:
            return scene, jumps[0]


def film(scene: Scene) -> FrameBuffer[RawFrame]:
    """Keep the whole of a scene, at a size that is quick to render."""
    width, height = WIDTH // 8, HEIGHT // 8
    buffer: FrameBuffer[RawFrame] = FrameBuffer(2 * CLIP_S, 1 << 30)
    for i in range(round(CLIP_S * CLIP_HZ)):
        pixels = render(scene, i / CLIP_HZ, width, height).reshape(-1)
        image = RawImage(data=pixels, encoding="rgb8", width=width, height=height, step=3 * width)
        buffer.push(RawFrame(image=image, stamp_ns=i * NS_PER_S // CLIP_HZ))
    return buffer


def print_costs(costs: dict[str, dict[str, float]]) -> None:
    """Print a row for each figure and a column for each kind of image."""
    table = Table("", *costs)
    for name in costs["JPEG"]:
        table.add_row(name, *(f"{cost[name]:,.3f}" if name in cost else "" for cost in costs.values()))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
