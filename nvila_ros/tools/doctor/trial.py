"""One backend answers a fixed set of questions with nvila-tiny; run as a process of its own, since runtimes can crash.

    python -m nvila_ros.tools.doctor.trial MODEL BACKEND PRECISION

Prints one JSON object on its last line: the engine's precision, seconds until it was loaded and until the first answer,
answers a second after it, and for each question the answer and its probability.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

from nvila_ros.errors import NvilaError
from nvila_ros.serving.pipeline import load_model
from nvila_ros.tools.options import print_json
from nvila_ros.types import Frame, Query
from nvila_ros.world.questions import ANSWERS, eval_case
from nvila_ros.world.rendering import render

CASE = 40_004
"""The number of each kind's case."""
WIDTH, HEIGHT = 640, 480


def main() -> int:
    """Answer and print; 2 where the backend refuses, with the reason on stderr."""
    model, backend, precision = sys.argv[1:]
    try:
        print_json(run(model, backend, precision))
    except NvilaError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def run(model: str, backend: str, precision: str) -> dict[str, Any]:
    """Return what `main` prints.

    Raises:
        NvilaError: the model does not load on this backend.
    """
    started_s = time.monotonic()
    vlm = load_model(model, backend=backend, precision=precision)
    loaded_s = time.monotonic()
    answers, times_s = [], []
    for query, frames in questions():
        answer = vlm.answer(query, frames)
        times_s.append(time.monotonic())
        answers.append([answer.text, max(answer.probabilities, default=0.0)])
    return {
        "precision": vlm.info.precision,
        "load_s": round(loaded_s - started_s, 2),
        "first_s": round(times_s[0] - loaded_s, 2),
        "answers_s": round((len(times_s) - 1) / (times_s[-1] - times_s[0]), 2),
        "answers": answers,
    }


def questions() -> Iterator[tuple[Query, list[Frame]]]:
    """Yield a scored choice of each kind that has a closed set of answers, with its frames."""
    for kind, choices in ANSWERS.items():
        case = eval_case(kind, CASE)
        frames = [
            Frame(image=render(case.scene, t_s, WIDTH, HEIGHT), stamp_ns=round(t_s * 1e9)) for t_s in case.times_s
        ]
        yield Query(query_id=kind, question=case.question.text, num_frames=len(frames), choices=choices), frames


if __name__ == "__main__":
    sys.exit(main())
