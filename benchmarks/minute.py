"""NVILA-8B-Video's layout live: what a question about the last minute costs once the stream has moved on.

The model has that checkpoint's tower width and tiles, 256 tokens a frame, eight frames averaged into one and a newline
behind each group, but Qwen2-0.5B's width and fewer layers, with random weights in W8A8 and W4A16; `frame_cache_bytes`
is the default's share by width. A camera of 10 Hz is asked about its last minute with `sampling: anchored`: in each
round first by a model that has seen nothing, then every other second as the stream moves on, for more than a stride.
Each time is that of the first token, with the choice of frames. Prints a table and, last, one JSON line.

    .venv/bin/python -m benchmarks.minute
    .venv/bin/python -m benchmarks.minute --frames 64 --layers 2 --rounds 1
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from benchmarks.peers.weights import RandomWeights
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.published_specs import nvila_spec
from nvila_ros.models.spec import ModelSpec
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.runtime.contract import Engine
from nvila_ros.runtime.cpu.engine import load_quantized
from nvila_ros.runtime.loading import find_checkpoint
from nvila_ros.serving.pipeline import CacheLimits, VisionLanguageModel
from nvila_ros.tools.options import positive, print_json, wide_console
from nvila_ros.types import NS_PER_S, Answer, Query, RawFrame, RawImage
from nvila_ros.video.anchoring import TimeGrid
from nvila_ros.video.buffer import FrameBuffer
from nvila_ros.video.deferred import decode_raw, select_whole
from nvila_ros.video.selection import ANCHORED, select_frames

WINDOW_S, CAMERA_HZ = 60.0, 10
KEPT_S = 100.0
WIDTH, HEIGHT = 160, 120
QUESTIONS = ("What has moved?", "Is anybody at the door?", "What is on the table?")


@dataclass(frozen=True, slots=True)
class AskedLive:
    """One question and what it took.

    Attributes:
        seconds: to its first token.
        cpu_s: of all cores, which other work on the machine changes less.
        answer: what came.
        has_moved: a stride has begun, so that its prompt begins elsewhere than that of the question before.
    """

    seconds: float
    cpu_s: float
    answer: Answer
    has_moved: bool


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=positive, nargs="+", default=[64, 256], help="of the window")
    parser.add_argument("--layers", type=positive, default=8, help="of the decoder (default: %(default)s)")
    parser.add_argument("--tower-layers", type=positive, default=1, help="of the tower (default: %(default)s)")
    parser.add_argument("--every", type=positive, default=2, help="seconds from question to question")
    parser.add_argument("--rounds", type=positive, default=2)
    args = parser.parse_args()
    spec = video_spec(args.layers, args.tower_layers)
    engine = load_quantized(spec, RandomWeights(spec))
    results = {num_frames: run_rounds(engine, num_frames, args.every, args.rounds) for num_frames in args.frames}
    wide_console().print(as_table(results))
    print_json(
        {
            "layers": args.layers,
            "tower_layers": args.tower_layers,
            "rounds": args.rounds,
            "every_s": args.every,
            **{f"frames_{num_frames}": as_dict(rounds) for num_frames, rounds in results.items()},
        }
    )
    return 0


def video_spec(num_layers: int, num_tower_layers: int) -> ModelSpec:
    """Return NVILA-8B-Video's spec with Qwen2-0.5B's width and so many layers."""
    spec = nvila_spec("NVILA-8B-Video", "Qwen2-7B")
    decoder = dataclasses.replace(
        spec.decoder, width=896, num_layers=num_layers, num_heads=14, num_kv_heads=2, mlp_width=4864, is_tied=True
    )
    vision = dataclasses.replace(spec.vision, num_live_layers=num_tower_layers, num_layers=num_tower_layers + 1)
    projector = dataclasses.replace(spec.projector, out_width=decoder.width)
    return dataclasses.replace(spec, vision=vision, decoder=decoder, projector=projector)


def run_rounds(engine: Engine, num_frames: int, every_s: int, num_rounds: int) -> list[list[AskedLive]]:
    """Ask a stream that moves on, each round by a model that knows nothing at first."""
    tokenizer = ChatTokenizer.from_folder(open_checkpoint(find_checkpoint("nvila-tiny")).tokenizer_folder)
    limits = CacheLimits(frame_bytes=CacheLimits().frame_bytes * engine.spec.decoder.width // 3584)
    group = engine.spec.frames_per_group
    grid = TimeGrid.for_window(round(WINDOW_S * NS_PER_S), num_frames, group, kept_ns=round(KEPT_S * NS_PER_S))
    stride_s = -(-grid.stride_ns // NS_PER_S)
    rounds = []
    for number in range(num_rounds):
        vlm = VisionLanguageModel(engine, tokenizer, backend="cpu", limits=limits)
        buffer: FrameBuffer[RawFrame] = FrameBuffer(KEPT_S, 1 << 30)
        end_s = round(WINDOW_S) + stride_s + 1
        film(buffer, number, 0, end_s)
        asked = [ask(vlm, buffer, num_frames, QUESTIONS[0], None)]
        for second in range(end_s, end_s + stride_s + every_s, every_s):
            film(buffer, number, second, second + every_s)
            question = QUESTIONS[len(asked) % len(QUESTIONS)]
            asked.append(ask(vlm, buffer, num_frames, question, asked[-1].answer))
        for name in ("seconds", "cpu_s"):
            print(num_frames, name, *(f"{getattr(each, name):.2f}" for each in asked), file=sys.stderr, flush=True)
        assert not vlm.remark(), vlm.remark()
        rounds.append(asked)
    return rounds


def film(buffer: FrameBuffer[RawFrame], seed: int, start_s: int, end_s: int) -> None:
    """Add noise, no two frames alike."""
    for number in range(start_s * CAMERA_HZ, end_s * CAMERA_HZ):
        pixels = np.random.default_rng([seed, number]).integers(0, 256, HEIGHT * WIDTH * 3, np.uint8)
        image = RawImage(data=pixels, encoding="rgb8", width=WIDTH, height=HEIGHT, step=3 * WIDTH)
        buffer.push(RawFrame(image=image, stamp_ns=number * NS_PER_S // CAMERA_HZ))


def as_query(num_frames: int, question: str, sampling: str) -> Query:
    """Return a question about the last minute."""
    fields = {"cameras": ("camera",), "num_frames": num_frames, "window_s": WINDOW_S, "sampling": sampling}
    return Query(query_id="live", question=question, max_tokens=1, **fields)  # type: ignore[arg-type]


def ask(
    vlm: VisionLanguageModel, buffer: FrameBuffer[RawFrame], num_frames: int, question: str, before: Answer | None
) -> AskedLive:
    """Ask about the last minute, and time all of it: one token is written."""
    query = as_query(num_frames, question, ANCHORED)
    begun, cpu_begun = time.perf_counter(), time.process_time()
    frames = select_whole(buffer, query, decode_raw, frames_per_group=vlm.frames_per_group)
    answer = vlm.answer(query, frames)
    seconds, cpu_s = time.perf_counter() - begun, time.process_time() - cpu_begun
    assert answer.finish_reason.is_answered, answer.error
    return AskedLive(seconds, cpu_s, answer, before is not None and before.frames[0] != answer.frames[0])


def count_others(num_frames: int) -> int:
    """Return how many evenly spread frames of the last minute are others a second later."""
    buffer: FrameBuffer[RawFrame] = FrameBuffer(KEPT_S, 1 << 30)
    shown: list[set[int]] = []
    for start_s, end_s in ((0, 80), (80, 81)):
        film(buffer, 0, start_s, end_s)
        shown.append({frame.stamp_ns for frame in select_frames(buffer, as_query(num_frames, "?", "uniform"))})
    return len(shown[1] - shown[0])


def ratios(rounds: Sequence[Sequence[AskedLive]], name: str) -> tuple[float, float, float]:
    """Return a later question's share of what the cold one of its round took: median, mean and that of a stride."""
    pairs = [(each, asked[0]) for asked in rounds for each in asked[1:]]
    shares = [getattr(each, name) / getattr(cold, name) for each, cold in pairs]
    moved = [share for share, (each, _) in zip(shares, pairs, strict=True) if each.has_moved]
    return statistics.median(shares), statistics.mean(shares), statistics.median(moved) if moved else float("nan")


def as_dict(rounds: Sequence[Sequence[AskedLive]]) -> dict[str, float | int]:
    """Return the figures of one number of frames."""
    colds = [asked[0] for asked in rounds]
    later = [each for asked in rounds for each in asked[1:] if not each.has_moved]
    median, mean, moved = ratios(rounds, "seconds")
    cpu_median, cpu_mean, cpu_moved = ratios(rounds, "cpu_s")
    counts = [each.answer.counts for each in later]
    return {
        "cold_s": round(statistics.median(each.seconds for each in colds), 3),
        "cold_vision_share": round(statistics.median(e.answer.timings.vision_s / e.seconds for e in colds), 3),
        "cold_frames_encoded": colds[0].answer.counts.num_frames_encoded,
        "prompt_tokens": colds[0].answer.counts.num_prompt_tokens,
        "later_s": round(statistics.median(each.seconds for each in later), 3),
        "later_frames_encoded": statistics.median(count.num_frames_encoded for count in counts),
        "later_tokens_read": statistics.median(c.num_prompt_tokens - c.num_reused_tokens for c in counts),
        "stride_s": round(statistics.median([e.seconds for a in rounds for e in a[1:] if e.has_moved] or [0.0]), 3),
        "num_later": sum(len(asked) - 1 for asked in rounds),
        "num_strides": sum(each.has_moved for asked in rounds for each in asked[1:]),
        "median_ratio": round(median, 4),
        "mean_ratio": round(mean, 4),
        "stride_ratio": round(moved, 4),
        "cpu_cold_s": round(statistics.median(each.cpu_s for each in colds), 3),
        "cpu_median_ratio": round(cpu_median, 4),
        "cpu_mean_ratio": round(cpu_mean, 4),
        "cpu_stride_ratio": round(cpu_moved, 4),
    }


def as_table(results: dict[int, list[list[AskedLive]]]) -> Table:
    """Return what questions took, cold and later."""
    heads = ("frames", "question", "first token, s", "of the cold one", "in CPU time", "frames encoded", "tokens read")
    table = Table(*heads, title="the last minute of 10 Hz, medians")
    for num_frames, rounds in results.items():
        row = as_dict(rounds)
        counts = str(row["cold_frames_encoded"]), str(row["prompt_tokens"])
        table.add_row(str(num_frames), "cold", f"{row['cold_s']:.2f}", "1", "1", *counts)
        for name, field in (("later", "median"), ("a stride has begun", "stride")):
            seconds = row["later_s" if field == "median" else "stride_s"]
            shares = f"{row[f'{field}_ratio']:.3f}", f"{row[f'cpu_{field}_ratio']:.3f}"
            counts = f"{row['later_frames_encoded']:g}", f"{row['later_tokens_read']:g}"
            table.add_row("", name, f"{seconds:.2f}", *shares, *(counts if field == "median" else ()))
        shares = f"{row['mean_ratio']:.3f}", f"{row['cpu_mean_ratio']:.3f}"
        table.add_row("", f"mean of {row['num_later']}, {row['num_strides']} of them strides", "", *shares)
        table.add_row("", "evenly spread, a second later", "", "", "", f"{count_others(num_frames)} others", "")
    return table


if __name__ == "__main__":
    sys.exit(main())
