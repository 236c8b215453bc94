"""One question to a remote model, as the worker asks it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nvila_ros.remote.model import LocalModel, RemoteModel
from nvila_ros.remote.settings import RemoteSettings
from nvila_ros.request import Request
from nvila_ros.types import Answer, Frame, Piece, Query


def remote(url: str, fallback: LocalModel | None = None, **settings: Any) -> RemoteModel:
    """Return a model at a server that is at most ten seconds silent."""
    return RemoteModel(RemoteSettings(url=url, **{"timeout_s": 10.0, **settings}), fallback)


def frame(stamp_ns: int = 1, value: int = 7, camera: str = "front") -> Frame:
    return Frame(image=np.full((8, 12, 3), value, np.uint8), stamp_ns=stamp_ns, camera=camera)


def ask(
    model: RemoteModel,
    question: str = "What is it?",
    frames: Sequence[Frame] = (),
    pieces: list[Piece] | None = None,
    should_stop: Any = None,
    **fields: Any,
) -> Answer:
    """Return the one answer to a question."""
    answers: list[Answer] = []
    query = Query(query_id="q1", question=question, **fields)
    on_piece = None if pieces is None else pieces.append
    model.answer_all([Request(query, answers.append, on_piece, should_stop=should_stop)], frames)
    (answer,) = answers
    return answer
