"""Search a recording window by window, and join what is found.

Memory is bounded by one window's frames, whatever the length of the recording.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from nvila_ros.serving.pipeline import VisionLanguageModel
from nvila_ros.tools.find.recording import Recording
from nvila_ros.types import NS_PER_S, Query


@dataclass(frozen=True, slots=True)
class WindowScore:
    """How likely the event happens in a window, by capture stamps."""

    start_ns: int
    end_ns: int
    probability: float


@dataclass(slots=True)
class FoundEvent:
    """An interval in which the event happens, by capture stamps; `probability` is that of its likeliest window."""

    start_ns: int
    end_ns: int
    probability: float


@dataclass(slots=True)
class SearchFindings:
    """What a search gave.

    Attributes:
        windows: in order.
        events: in order, apart from each other.
        method: `time_tokens` or `windows`, by which the model finds intervals.
    """

    windows: list[WindowScore] = field(default_factory=list)
    events: list[FoundEvent] = field(default_factory=list)
    method: str = ""


def split_windows(stamps_ns: np.ndarray, window_s: float) -> Iterator[tuple[int, int]]:
    """Yield windows as first and last frame, one after another, each of at most `window_s` and at least one frame."""
    first = 0
    while first < len(stamps_ns):
        end = int(np.searchsorted(stamps_ns, stamps_ns[first] + round(window_s * NS_PER_S)))
        end = max(end, first + 1)
        yield first, end - 1
        first = end


def search(
    model: VisionLanguageModel,
    recording: Recording,
    event: str,
    *,
    window_s: float,
    num_frames: int,
    on_window: Callable[[int, int], None] = lambda done, total: None,
) -> SearchFindings:
    """Ask every window when the event happens, and join intervals that touch.

    Args:
        model: what answers.
        recording: where to look.
        event: what to look for, as `answer_type: when` takes it.
        window_s: length of a window.
        num_frames: most frames of a window that are looked at, evenly spread.
        on_window: called with the windows done and all.

    Raises:
        NvilaError: a frame cannot be read, or the model cannot be asked.
    """
    found = SearchFindings()
    windows = list(split_windows(recording.stamps_ns, window_s))
    for done, (first, last) in enumerate(windows, start=1):
        indices = np.unique(np.round(np.linspace(first, last, num_frames)).astype(int)).tolist()
        frames = recording.read(indices)
        query = Query(query_id="find", question=event, answer_type="when", num_frames=len(frames))
        answer = json.loads(model.answer(query, frames).text)
        found.method = answer["method"]
        start_ns, end_ns = int(recording.stamps_ns[first]), int(recording.stamps_ns[last])
        found.windows.append(WindowScore(start_ns, end_ns, answer["happens"]))
        gap_ns = start_ns - int(recording.stamps_ns[max(first - 1, 0)])  # to the window before
        for interval in sorted(answer["intervals"], key=lambda each: int(each["start_ns"])):
            _join(found.events, FoundEvent(interval["start_ns"], interval["end_ns"], answer["happens"]), gap_ns)
        on_window(done, len(windows))
    return found


def _join(events: list[FoundEvent], new: FoundEvent, gap_ns: int) -> None:
    """Add an interval, or lengthen the last one where it ends as this one begins."""
    if events and new.start_ns <= events[-1].end_ns + gap_ns:
        events[-1].end_ns = max(events[-1].end_ns, new.end_ns)
        events[-1].probability = max(events[-1].probability, new.probability)
    else:
        events.append(new)
