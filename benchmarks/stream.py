"""A stream that is asked many questions: what encoding once saves, and what the node itself costs.

Three parts. nvila-tiny and a model of half a billion parameters (so400m tower, Qwen2-0.5B's shapes, random W8A8 and
W4A16 weights) are each asked about one clip: cold, a second time, ten standing queries at once, and again after a new
frame. A rival that reads everything anew for every question, transformers on the same shapes, answers the same kind of
question. The real node with a model that does nothing takes a live camera, and its answers are timed from the end of
the model's work to a subscriber. Prints a table and, last, one JSON line.

    make bench-stream
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.peers.weights import RandomWeights
from benchmarks.stream_node import measure_node
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.spec import ModelSpec
from nvila_ros.models.variants import VARIANTS
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.request import Request
from nvila_ros.runtime.cpu.engine import load_quantized
from nvila_ros.runtime.loading import find_checkpoint
from nvila_ros.serving.pipeline import VisionLanguageModel, load_model
from nvila_ros.tools.options import positive, print_json
from nvila_ros.types import Answer, Frame, Query

NUM_QUERIES = 10
QUESTIONS = tuple(f"Is there a {colour} circle?" for colour in ("red", "green", "blue", "yellow", "white"))
CHOICES = ("yes", "no")
WIDTH, HEIGHT = 640, 480


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds that each kind of work on one clip took, medians.

    Attributes:
        cold: the first question about a clip that nobody has seen.
        second: another question about it.
        ten: ten standing queries at once about a clip that nobody has seen.
        moved: one question after one new frame came into the window.
        tower: one frame through the tower.
    """

    cold: float
    second: float
    ten: float
    moved: float
    tower: float


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=positive, default=8, help="of a clip (default: %(default)s)")
    parser.add_argument("--layers", type=positive, default=24, help="of the larger decoder (default: %(default)s)")
    parser.add_argument("--tower-layers", type=positive, default=26, help="of the larger tower (default: %(default)s)")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--seconds", type=positive, default=20, help="of the live camera (default: %(default)s)")
    parser.add_argument("--no-peer", action="store_true", help="leave transformers out")
    args = parser.parse_args()
    console = Console()
    node = measure_node(args.seconds)
    console.print(f"node: overhead p95 {1e3 * node.overhead_p95_s:.2f} ms, ingest {node.core_share:.3f} of a core")
    tiny = time_clip(load_model("nvila-tiny", backend="cpu"), args.frames, 10 * args.rounds)
    spec = half_billion(args.layers, args.tower_layers)
    tokenizer = ChatTokenizer.from_folder(open_checkpoint(find_checkpoint("nvila-tiny")).tokenizer_folder)
    engine = load_quantized(spec, RandomWeights(spec))
    large = time_clip(VisionLanguageModel(engine, tokenizer, backend="cpu"), args.frames, args.rounds)
    del engine
    peer_s = None if args.no_peer else time_peer(args)
    console.print(as_table({"nvila-tiny": tiny, "0.5B, random": large}, peer_s))
    print_json(
        {
            "second_ttft_ratio": round(large.second / large.cold, 4),
            "ten_queries_ratio": round(large.ten / large.cold, 3),
            "vs_peer": peer_s and round(NUM_QUERIES * peer_s / large.ten, 1),
            "overhead_p95_ms": round(1e3 * node.overhead_p95_s, 2),
            "ingest_core_share": round(node.core_share, 3),
            "new_frame_towers": round((large.moved - large.second) / large.tower, 2),
            "tiny_second_ttft_ratio": round(tiny.second / tiny.cold, 4),
            "tiny_ten_queries_ratio": round(tiny.ten / tiny.cold, 3),
        }
    )
    return 0


def half_billion(num_layers: int, num_tower_layers: int) -> ModelSpec:
    """Return NVILA-Lite's spec with Qwen2-0.5B's decoder."""
    spec = VARIANTS["NVILA-Lite-2B"].spec
    decoder = dataclasses.replace(
        spec.decoder, width=896, num_layers=num_layers, num_heads=14, num_kv_heads=2, mlp_width=4864, is_tied=True
    )
    vision = dataclasses.replace(spec.vision, num_live_layers=num_tower_layers, num_layers=num_tower_layers + 1)
    projector = dataclasses.replace(spec.projector, out_width=896)
    return dataclasses.replace(spec, name="0.5B", vision=vision, decoder=decoder, projector=projector)


def time_clip(vlm: VisionLanguageModel, num_frames: int, num_rounds: int) -> Timing:
    """Ask about clips that nobody has seen, each in turn in every way."""
    vlm.warm_up()
    seconds: dict[str, list[float]] = {name: [] for name in ("cold", "second", "ten", "moved", "tower")}
    for number in range(num_rounds):
        first = make_clip(4 * number, num_frames + 1)
        answers = [ask(vlm, first[:-1], QUESTIONS[:1]), ask(vlm, first[:-1], QUESTIONS[1:2])]
        moved = ask(vlm, first[1:], QUESTIONS[:1])
        ten = ask(vlm, make_clip(4 * number + 2, num_frames), QUESTIONS * (NUM_QUERIES // len(QUESTIONS)))
        assert moved[0].counts.num_frames_encoded == 1, "one new frame costs one tower pass"
        assert len(ten) == NUM_QUERIES, "every query is answered"
        for name, group in (("cold", answers[0]), ("second", answers[1]), ("ten", ten), ("moved", moved)):
            seconds[name].append(max(answer.timings.total_s for answer in group))
        seconds["tower"].append(answers[0][0].timings.vision_s / num_frames)
    return Timing(**{name: statistics.median(values) for name, values in seconds.items()})


def make_clip(seed: int, num_frames: int) -> list[Frame]:
    """Return frames of noise, no two alike."""
    rng = np.random.default_rng(seed)
    return [
        Frame(image=rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8), stamp_ns=seed * 1000 + k)
        for k in range(num_frames)
    ]


def ask(vlm: VisionLanguageModel, frames: Sequence[Frame], questions: Sequence[str]) -> list[Answer]:
    """Ask questions about one clip together and return their answers."""
    answers: list[Answer] = []
    queries = [Query(query_id=str(i), question=text, choices=CHOICES) for i, text in enumerate(questions)]
    vlm.answer_all([Request(query, answers.append) for query in queries], frames)
    return answers


def time_peer(args: argparse.Namespace) -> float | None:
    """Return the seconds that transformers takes for one question, in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.stream_peer",
        str(args.frames),
        str(args.layers),
        str(args.tower_layers),
    ]
    with tempfile.TemporaryFile("w+") as log:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True, check=False)
        if done.returncode:
            log.seek(0)
            Console(stderr=True).print(f"peer skipped: {log.read().splitlines()[-1:]}", markup=False)
            return None
    return float(done.stdout.split()[-1])


def as_table(timings: dict[str, Timing], peer_s: float | None) -> Table:
    """Return the seconds of each kind of work."""
    table = Table("model", "cold", "second", "ten at once", "one new frame", "a tower pass", title="seconds, medians")
    for name, timing in timings.items():
        table.add_row(name, *(f"{getattr(timing, field):.3f}" for field in ("cold", "second", "ten", "moved", "tower")))
    if peer_s:
        table.add_row("0.5B, transformers", f"{peer_s:.3f}", f"{peer_s:.3f}", f"{NUM_QUERIES * peer_s:.3f}", "", "")
    return table


if __name__ == "__main__":
    sys.exit(main())
