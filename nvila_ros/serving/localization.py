"""When did it happen? Answers of type `when`: intervals of capture stamps with probabilities.

First a scored yes or no decides whether the event happens at all; a model that is asked for times always gives some.
Then a checkpoint with time tokens names begin and end; without them, windows of the clip are each asked for a yes or
no, and windows in a row that say yes are an interval. The answer's text is JSON: `happens`, the probability; `method`,
`time_tokens` or `windows`; `intervals`, best first, each with `start_ns` and `end_ns` (capture stamps), `start_s` and
`end_s` (since the clip's first frame), `probability` and, of time tokens, means and standard deviations of both ends in
seconds. Its choices are yes and no.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from nvila_ros.errors import QueryError
from nvila_ros.generation.intervals import PlaceInterval, TimeOdds, find_intervals
from nvila_ros.prompt.answer_kinds import LIKELY, YES_NO
from nvila_ros.prompt.time_tokens import time_of_place
from nvila_ros.request import ModelInfo, Request, StopWork
from nvila_ros.types import NS_PER_S, Answer, FinishReason, FrameRef, Query
from nvila_ros.visual.frame_encoder import FrameLike

MAX_WINDOWS = 16


class Locating(Protocol):
    """What is needed of the model."""

    info: ModelInfo
    _now_ns: Any

    @property
    def has_time_tokens(self) -> bool: ...  # noqa: D102

    def answer_all(self, requests: Sequence[Request], frames: Sequence[FrameLike]) -> None: ...  # noqa: D102

    def time_odds(  # noqa: D102
        self, question: str, frames: Sequence[FrameLike], request: Request
    ) -> tuple[TimeOdds, list[int]]: ...


def locate(model: Locating, request: Request, frames: Sequence[FrameLike]) -> None:
    """Answer a request of type `when` about frames in capture order."""
    refs = tuple(FrameRef(stamp_ns=f.stamp_ns, camera=f.camera, frame_id=f.frame_id) for f in frames)
    request.begin(model.info, refs, model._now_ns)
    try:
        if not frames or len({frame.camera for frame in frames}) > 1:
            raise QueryError("when must be asked about frames of one camera; name one, and a window that holds frames")
        _locate(model, request, frames)
    except StopWork:
        pass
    except QueryError as error:
        if request.answer is None:
            request.end(FinishReason.INVALID, str(error))
    except Exception as failure:
        if request.answer is None:
            request.end(FinishReason.FAILED, f"the model failed: {failure!r}")
        raise


def _locate(model: Locating, request: Request, frames: Sequence[FrameLike]) -> None:
    event = request.query.question.strip()
    happens = _score(model, request, event, frames)
    is_timed = model.has_time_tokens and len(frames) > 1
    intervals: list[dict[str, Any]] = []
    if happens >= LIKELY:
        intervals = (_by_tokens if is_timed else _by_windows)(model, request, event, frames)
    request.choices, request.probabilities = YES_NO.names, (happens, 1 - happens)
    method = "time_tokens" if is_timed else "windows"
    request.emit(json.dumps({"happens": round(happens, 6), "method": method, "intervals": intervals}))
    request.end(FinishReason.STOP)


def _by_tokens(model: Locating, request: Request, event: str, frames: Sequence[FrameLike]) -> list[dict[str, Any]]:
    question = f'When does "{event}" happen in the video? Answer the question only using start and end timestamps.'
    odds, stamps_ns = model.time_odds(question, frames, request)
    return [_as_values(interval, stamps_ns) for interval in find_intervals(odds)]


def _as_values(interval: PlaceInterval, stamps_ns: Sequence[int]) -> dict[str, Any]:
    start_ns, end_ns = (time_of_place(place, stamps_ns) for place in (interval.start, interval.end))
    values = _interval(start_ns, end_ns, interval.probability, stamps_ns[0])
    for name, mean, spread in zip(("start", "end"), interval.means, interval.spreads, strict=True):
        low, middle, high = (
            time_of_place(min(max(place, 0.0), 1.0), stamps_ns) for place in (mean - spread, mean, mean + spread)
        )
        values[f"{name}_mean_s"] = (middle - stamps_ns[0]) / NS_PER_S
        values[f"{name}_std_s"] = (high - low) / 2 / NS_PER_S
    return values


def _by_windows(model: Locating, request: Request, event: str, frames: Sequence[FrameLike]) -> list[dict[str, Any]]:
    windows = [part for part in np.array_split(np.arange(len(frames)), min(MAX_WINDOWS, len(frames))) if len(part)]
    odds = [_score(model, request, event, [frames[i] for i in window]) for window in windows]
    found, run = [], list[int]()
    for w, probability in enumerate([*odds, 0.0]):
        if probability >= LIKELY:
            run.append(w)
        elif run:
            last = min(int(windows[run[-1]][-1]) + 1, len(frames) - 1)
            start_ns, end_ns = frames[int(windows[run[0]][0])].stamp_ns, frames[last].stamp_ns
            found.append(_interval(start_ns, end_ns, float(np.mean([odds[i] for i in run])), frames[0].stamp_ns))
            run = []
    return sorted(found, key=lambda interval: -float(interval["probability"]))


def _interval(start_ns: int, end_ns: int, probability: float, first_ns: int) -> dict[str, Any]:
    return {
        "start_ns": start_ns,
        "end_ns": end_ns,
        "start_s": (start_ns - first_ns) / NS_PER_S,
        "end_s": (end_ns - first_ns) / NS_PER_S,
        "probability": round(probability, 6),
    }


def _score(model: Locating, request: Request, event: str, frames: Sequence[FrameLike]) -> float:
    """Return the probability that the event happens in these frames; a question is asked as it is.

    Raises:
        StopWork: the request has ended.
        QueryError: the question cannot be asked.
    """
    question = event if event.endswith("?") else f'Does "{event}" happen in the video?'
    answers: list[Answer] = []
    asked = request.query
    fields = {"answer_type": "yes_no", "num_frames": len(frames), "sampling": asked.sampling}
    query = Query(query_id=asked.query_id, question=question, **fields)  # type: ignore[arg-type]
    model.answer_all([Request(query, answers.append, should_stop=request.should_stop)], frames)
    answer = answers[0]
    if answer.finish_reason is FinishReason.INVALID:
        raise QueryError(answer.error)
    if answer.finish_reason is not FinishReason.STOP:
        request.end(answer.finish_reason, answer.error)
        raise StopWork
    return answer.probabilities[0]
