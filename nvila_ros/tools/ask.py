"""`nvila ask`: a question about a video file, images or a camera of this machine, without ROS.

The answer goes to stdout as it is generated; its frames and times follow on stderr, so that the answer alone can be
piped on.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time

import cv2
from rich.console import Console

from nvila_ros.config import NodeConfig
from nvila_ros.errors import QueryError
from nvila_ros.serving import slow_answers
from nvila_ros.serving.admission import check_query
from nvila_ros.serving.pipeline import load_model
from nvila_ros.tools.options import (
    add_model_options,
    add_pixel_window,
    add_view_options,
    overrides,
    positive,
    print_json,
    words,
)
from nvila_ros.types import NS_PER_S, Answer, Frame, Piece, Query
from nvila_ros.video.live_camera import LiveCamera
from nvila_ros.video.media import FOLDER_FPS, Media, open_media, read_clip
from nvila_ros.video.windowing import OWN

CAMERA_WINDOW_S = 2.0
"""How long a camera is recorded by default."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument(
        "source", metavar="SOURCE", help="video file, image, DICOM, folder of images or of a series, camera or camera:N"
    )
    parser.add_argument("question", metavar="QUESTION", help="in plain language")
    parser.add_argument(
        "--checkpoint",
        default="nvila-tiny",
        help="folder, or the name of an embedded, fetched or built one (default: %(default)s)",
    )
    add_model_options(parser)
    add_view_options(parser)
    parser.add_argument("--frames", type=positive, default=8, metavar="N", help="frames to show (default: %(default)s)")
    parser.add_argument("--start", type=float, metavar="S", help="from this time of the video, seconds")
    parser.add_argument("--end", type=float, metavar="S", help="up to this time of the video, seconds")
    parser.add_argument("--window", type=float, metavar="S", help="the last seconds; of a camera, how long to record")
    parser.add_argument(
        "--fps", type=float, default=FOLDER_FPS, help="rate of a folder's images (default: %(default)s)"
    )
    add_pixel_window(parser)
    parser.add_argument("--max-tokens", type=positive, default=64, metavar="N", help="longest answer (default: 64)")
    parser.add_argument("--choices", type=words, default=(), metavar="A,B", help="the only answers allowed")
    parser.add_argument("--when", action="store_true", help="answer when what QUESTION names happens, as JSON")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the answer")


def run(args: argparse.Namespace) -> int:
    """Ask, and print the answer as it comes.

    Raises:
        NvilaError: question, source, checkpoint or backend is not acceptable.
    """
    query = Query(
        query_id="ask",
        question=args.question,
        num_frames=args.frames,
        max_tokens=args.max_tokens,
        choices=args.choices,
        answer_type="when" * args.when,
    )
    check_query(query, NodeConfig())
    _silence_opencv()
    vlm = load_model(
        args.checkpoint, backend=args.backend, precision=args.precision, threads=args.threads, overrides=overrides(args)
    )
    frames = read_frames(args)
    answer = vlm.answer(query, frames, on_piece=None if args.json else _print_piece)
    if args.json:
        print_json(as_dict(answer))
    else:
        lines = filter(None, (describe(answer), slow_answers.explain(answer)))
        Console(stderr=True).print(*lines, sep="\n", style="dim", markup=False, highlight=False, soft_wrap=True)
    if warning := vlm.watch.warning(least=1):
        print(f"nvila ask: warning: {warning}", file=sys.stderr)
    return 0


def read_frames(args: argparse.Namespace) -> list[Frame]:
    """Read the clip that the arguments name.

    Raises:
        FrameError: the source cannot be read.
        QueryError: times contradict each other or are out of range.
    """
    match = re.fullmatch(r"camera(?::(\d{1,3}))?", args.source, re.ASCII)
    if match and not os.path.exists(args.source):
        if args.start is not None or args.end is not None:
            raise QueryError("a camera has no --start or --end; give the time to record with --window")
        return _film(int(match[1] or 0), args.frames, CAMERA_WINDOW_S if args.window is None else args.window)
    if not 0 < args.fps <= 1000:
        raise QueryError(f"--fps must lie in (0, 1000], got {args.fps:g}")
    media = open_media(args.source, fps=args.fps, window=args.pixel_window or OWN)
    try:
        return read_clip(media, args.frames, *_interval(args, media))
    finally:
        media.close()


def _interval(args: argparse.Namespace, media: Media) -> tuple[float, float | None]:
    """Return start and end in seconds."""
    if args.window is None:
        return args.start or 0.0, args.end
    if args.start is not None:
        raise QueryError("--start and --window exclude each other; give one of them")
    if not args.window >= 0:
        raise QueryError(f"--window must be at least 0 s, got {args.window:g}")
    end_s = int(media.stamps_ns[-1]) / NS_PER_S if args.end is None else args.end
    return max(end_s - args.window, 0.0), end_s


def _film(index: int, num_frames: int, window_s: float) -> list[Frame]:
    camera = LiveCamera(index)
    try:
        return camera.record_clip(num_frames, window_s, time.time_ns)
    finally:
        camera.close()


def tokens_per_s(num_tokens: int, decode_s: float) -> float:
    """Return how fast an answer was decoded; 0 where nothing was."""
    return num_tokens / decode_s if num_tokens and decode_s > 0 else 0.0


def describe(answer: Answer) -> str:
    """Return one line: which frames an answer is about, and how long it took."""
    stamps_s = [frame.stamp_ns / 1e9 for frame in answer.frames]
    parts = []
    if stamps_s:
        since = " ".join(f"{stamp_s - stamps_s[0]:.2f}" for stamp_s in stamps_s)
        many = f"{len(stamps_s)} frames at {stamps_s[0]:.2f} s + [{since}] s"
        parts.append(many if len(stamps_s) > 1 else f"1 frame at {stamps_s[0]:.2f} s")
    if answer.counts.num_frames_dropped:
        parts.append(f"{answer.counts.num_frames_dropped} frames left out, beyond whole groups or too like others")
    if answer.probabilities:
        chosen = zip(answer.choices, answer.probabilities, strict=True)
        parts.append(" ".join(f"{choice} {probability:.3f}" for choice, probability in chosen))
    speed = tokens_per_s(answer.counts.num_answer_tokens, answer.timings.decode_s)
    parts += [f"first token {answer.timings.ttft_s * 1e3:.0f} ms", f"{speed:.0f} tokens/s"]
    return ", ".join([*parts, f"{answer.model} {answer.backend} {answer.precision}"])


def as_dict(answer: Answer) -> dict[str, object]:
    """Return an answer as plain values; times in seconds."""
    timings = answer.timings
    return {
        "question": answer.query.question,
        "answer": answer.text,
        "finish_reason": answer.finish_reason.name.lower(),
        "probabilities": dict(zip(answer.choices, answer.probabilities, strict=False)),
        "stamps_s": [frame.stamp_ns / 1e9 for frame in answer.frames],
        "num_frames_dropped": answer.counts.num_frames_dropped,
        "num_visual_tokens": answer.counts.num_visual_tokens,
        "num_prompt_tokens": answer.counts.num_prompt_tokens,
        "num_answer_tokens": answer.counts.num_answer_tokens,
        "ttft_s": timings.ttft_s,
        "total_s": timings.total_s,
        "tokens_per_s": tokens_per_s(answer.counts.num_answer_tokens, timings.decode_s),
        "model": answer.model,
        "backend": answer.backend,
        "precision": answer.precision,
    }


def _print_piece(piece: Piece) -> None:
    sys.stdout.write(piece.text + ("\n" if piece.is_final else ""))
    sys.stdout.flush()


def _silence_opencv() -> None:
    """Keep OpenCV from logging a bad file by itself: our error reports it."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
