"""`nvila find`: when does an event happen in a recording of hours?

In: a bag, a video file or a folder of images, and the event. Out: a line for each interval, with what `ros2 bag play`
takes to jump there; with `--out` JSON, with `--events` what Foxglove takes as events (start, end, metadata), with
`--strip` a picture. Windows are asked one after another, so memory does not grow with the recording.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nvila_ros.config import NodeConfig
from nvila_ros.files import write_atomic
from nvila_ros.serving.admission import check_query
from nvila_ros.serving.pipeline import load_model
from nvila_ros.tools.find.recording import Recording, open_recording
from nvila_ros.tools.find.search import FoundEvent, SearchFindings, search
from nvila_ros.tools.find.strip import draw_strip
from nvila_ros.tools.options import (
    add_model_options,
    add_pixel_window,
    add_view_options,
    overrides,
    positive,
    print_json,
)
from nvila_ros.tools.step_progress import StepProgress
from nvila_ros.types import NS_PER_S, Query
from nvila_ros.video.media import FOLDER_FPS
from nvila_ros.video.windowing import OWN

MAX_SHOWN = 12
"""Frames on a strip."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("source", type=Path, metavar="SOURCE", help="bag, video file or folder of images")
    parser.add_argument("event", metavar="EVENT", help="what to look for, or a question of yes or no")
    parser.add_argument("--checkpoint", default="nvila-tiny", help="folder or embedded name (default: %(default)s)")
    add_model_options(parser)
    add_view_options(parser)
    parser.add_argument("--topic", default="", help="camera of a bag (default: the first by name)")
    parser.add_argument(
        "--window", type=float, default=8.0, metavar="S", help="seconds asked about at once (default: 8)"
    )
    parser.add_argument("--frames", type=positive, default=8, metavar="N", help="most frames of a window (default: 8)")
    parser.add_argument("--fps", type=float, default=FOLDER_FPS, help="rate of a folder's images")
    add_pixel_window(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write intervals and windows as JSON")
    parser.add_argument("--events", type=Path, metavar="FILE", help="write events as Foxglove shows them, as JSON")
    parser.add_argument("--strip", type=Path, metavar="FILE", help="draw probability over time, as PNG")
    parser.add_argument("--json", action="store_true", help="print one JSON object alone")


def run(args: argparse.Namespace) -> int:
    """Search, print and write; 1 if nothing was found.

    Raises:
        NvilaError: the recording, the model or an argument is not acceptable.
    """
    check_query(Query(query_id="find", question=args.event, answer_type="when", window_s=args.window), NodeConfig())
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    recording = open_recording(args.source, args.topic, args.fps, args.pixel_window or OWN)
    try:
        model = load_model(
            args.checkpoint,
            backend=args.backend,
            precision=args.precision,
            threads=args.threads,
            overrides=overrides(args),
        )
        with StepProgress(("windows",), says_done=False) as progress:
            found = search(
                model,
                recording,
                args.event,
                window_s=args.window,
                num_frames=args.frames,
                on_window=lambda done, total: progress.advance("windows", done, total),
            )
        _report(args, recording, found)
    finally:
        recording.close()
    return int(not found.events)


def _report(args: argparse.Namespace, recording: Recording, found: SearchFindings) -> None:
    values = as_values(args.event, recording, found)
    if args.json:
        print_json(values)
    else:
        for event in values["events"]:
            print(_line(event, args.source))
        print(f"{len(found.events)} intervals in {len(found.windows)} windows, by {found.method}")
    if args.out:
        write_atomic(args.out, (json.dumps(values, indent=1) + "\n").encode())
    if args.events:
        events = [as_foxglove(event, args.event) for event in found.events]
        write_atomic(args.events, (json.dumps(events, indent=1) + "\n").encode())
    if args.strip:
        _draw(args.strip, recording, found)


def as_values(event: str, recording: Recording, found: SearchFindings) -> dict[str, Any]:
    """Return what was found as plain values; `start_s` and `end_s` count from the first frame."""
    first_ns = int(recording.stamps_ns[0])
    events = [
        {
            **asdict(each),
            "start_s": (each.start_ns - first_ns) / NS_PER_S,
            "end_s": (each.end_ns - first_ns) / NS_PER_S,
            "start_offset_s": recording.offset_s(each.start_ns),
        }
        for each in found.events
    ]
    windows = [asdict(window) for window in found.windows]
    return {"source": recording.name, "event": event, "method": found.method, "events": events, "windows": windows}


def as_foxglove(event: FoundEvent, name: str) -> dict[str, Any]:
    """Return an event in the terms of Foxglove's API: seconds and nanoseconds, and metadata of text."""
    start, end = ({"sec": ns // NS_PER_S, "nsec": ns % NS_PER_S} for ns in (event.start_ns, event.end_ns))
    return {"start": start, "end": end, "metadata": {"event": name, "probability": f"{event.probability:.3f}"}}


def _line(event: dict[str, Any], source: Path) -> str:
    text = f"{event['start_s']:10.2f} s to {event['end_s']:10.2f} s  probability {event['probability']:.2f}"
    if event["start_offset_s"] is None:
        return text
    return f"{text}  ros2 bag play {source} --start-offset {event['start_offset_s']:.3f}"


def _draw(path: Path, recording: Recording, found: SearchFindings) -> None:
    best = sorted(found.events, key=lambda event: -event.probability)[:MAX_SHOWN]
    indices = sorted(abs(recording.stamps_ns - (each.start_ns + each.end_ns) // 2).argmin() for each in best)
    frames = recording.read([int(i) for i in indices])
    draw_strip(found, frames).save(path, format="PNG")
