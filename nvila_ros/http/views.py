"""What the door shows, as JSON: answers, events, standing queries, cameras, the model.

Stamps are nanoseconds written as text: as numbers, scripts would round them. Ages and times are seconds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from nvila_ros.http.services import CameraState, Services
from nvila_ros.serving.model_loader import Status
from nvila_ros.standing.event import Event
from nvila_ros.standing.query import StandingQuery
from nvila_ros.standing.registry import StandingState
from nvila_ros.types import NS_PER_S, Answer, FrameRef

Json = dict[str, Any]


def answer_view(answer: Answer, now_ns: int) -> Json:
    """Return an answer with all that is known of it.

    Args:
        answer: of any query.
        now_ns: clock of the stamps.
    """
    query, newest = answer.query, answer.newest
    return {
        "query_id": query.query_id,
        "question": query.question,
        "standing": query.standing,
        "answer_type": query.answer_type or ("choices" if query.choices else "text"),
        "text": answer.text,
        "finish_reason": answer.finish_reason.name,
        "error": answer.error,
        "choices": list(answer.choices),
        "probabilities": list(answer.probabilities),
        "stamp_ns": str(newest.stamp_ns) if newest else None,
        "age_s": (now_ns - newest.stamp_ns) / NS_PER_S if newest else None,
        "frames": frames_view(answer.frames, has_stamps=not query.is_unstamped),
        "timings": dataclasses.asdict(answer.timings),
        "counts": dataclasses.asdict(answer.counts),
        "model": answer.model,
        "backend": answer.backend,
        "precision": answer.precision,
    }


def frames_view(frames: Sequence[FrameRef], *, has_stamps: bool = True) -> list[Json]:
    """Return which frames an answer is about; those that a request brought along have no stamps."""
    return [{"camera": f.camera, "stamp_ns": str(f.stamp_ns) if has_stamps else None} for f in frames]


def event_view(event: Event) -> Json:
    """Return an event of a standing query."""
    answer = event.answer
    return {
        "event_id": event.event_id,
        "name": event.query.name,
        "question": event.query.question,
        "trigger": event.query.trigger,
        "phase": event.phase.name,
        "end_reason": event.end_reason.name,
        "begin_stamp_ns": str(event.begin_stamp_ns),
        "confirmed_stamp_ns": str(event.confirmed_stamp_ns),
        "end_stamp_ns": str(event.end_stamp_ns) if event.end_stamp_ns else None,
        "probability": event.probability,
        "num_agreed": event.num_agreed,
        "num_counted": event.num_counted,
        "previous": event.previous,
        "query_id": answer.query.query_id,
        "text": answer.text,
        "choices": list(answer.choices),
        "probabilities": list(answer.probabilities),
        "frames": frames_view(answer.frames),
    }


def query_view(query: StandingQuery) -> Json:
    """Return a standing query as it may be given back."""
    return dataclasses.asdict(query)


def standing_view(state: StandingState) -> Json:
    """Return how a standing query stands."""
    answer = state.answer
    return {
        "query": query_view(state.query),
        "counts": dataclasses.asdict(state.counts),
        "open_event_id": state.open_event.event_id if state.open_event else None,
        "text": answer.text if answer else None,
        "probability": state.probability,
        "stamp_ns": str(answer.frames[-1].stamp_ns) if answer else None,
        "frames": frames_view(answer.frames) if answer else [],
        "last_finish_reason": state.last_reason.name,
        "last_error": state.last_error,
    }


def model_view(status: Status, refusal: str) -> Json:
    """Return what the model is doing."""
    return {
        "state": status.state.name,
        "progress": status.progress,
        "part": status.part,
        "text": status.text,
        "model": status.model,
        "backend": status.backend,
        "precision": status.precision,
        "refusal": refusal,
    }


def camera_view(camera: CameraState, services: Services, now_ns: int) -> Json:
    """Return how a camera's frames arrive, and which of them are kept."""
    held = services.answering.buffer.state([camera.name])
    age_s = None if held.newest_ns is None else (now_ns - held.newest_ns) / NS_PER_S
    max_age_s = services.answering.config().max_age_s
    return {
        **dataclasses.asdict(camera),
        "num_frames": held.num_frames,
        "oldest_ns": None if held.oldest_ns is None else str(held.oldest_ns),
        "newest_ns": None if held.newest_ns is None else str(held.newest_ns),
        "age_s": age_s,
        "is_stale": age_s is None or bool(max_age_s and age_s > max_age_s),
    }


def state_view(services: Services) -> Json:
    """Return all that a viewer needs at first sight."""
    answering = services.answering
    now_ns, config = answering.clock_ns(), answering.config()
    held, queue = answering.buffer.state(), answering.scheduler.state()
    return {
        "name": services.name,
        "run": services.run,
        "now_ns": str(now_ns),
        "model": model_view(services.status(), services.refusal()),
        "faults": list(services.faults()),
        "cameras": [camera_view(camera, services, now_ns) for camera in services.cameras()],
        "standing": [standing_view(state) for state in services.standing.states()],
        "counters": {
            "frames_buffered": held.num_frames,
            "buffer_bytes": held.num_bytes,
            **{f"frames_dropped_{reason}": count for reason, count in held.num_dropped.items()},
            "queue_depth": queue.num_waiting,
            "queries_running": queue.num_running,
            "queries_preempted": queue.num_preempted,
            **{f"queries_{reason}": count for reason, count in queue.num_ended.items()},
            **services.standing.counts(),
            **services.counters(),
        },
        "defaults": {
            "num_frames": config.num_frames,
            "window_s": config.window_s,
            "max_tokens": config.max_tokens,
            "max_age_s": config.max_age_s,
            "buffer_s": config.buffer_s,
            "past_s": config.past_s,
        },
    }
