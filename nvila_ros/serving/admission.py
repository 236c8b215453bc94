"""The one way in: every endpoint hands its requests to `Admission`, which checks them and queues those that may wait.

In: requests, with the node's settings. Out: each is queued, or has its answer with the rule that it breaks. A request
whose answer must follow a JSON schema is held in the queue while the schema is tried on another thread. Whether the
window holds frames is not asked: that is known only when the request's turn comes.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from functools import partial

from nvila_ros.config import NodeConfig, bounds
from nvila_ros.errors import QueryError
from nvila_ros.prompt.answer_kinds import AnswerKind, Constrained, check_lengths, parse_kind, schema_error
from nvila_ros.request import Request, RequestState
from nvila_ros.serving.request_images import check_images
from nvila_ros.serving.scheduler import Scheduler
from nvila_ros.serving.schema_trials import SchemaTrials
from nvila_ros.types import FinishReason, Query
from nvila_ros.video.selection import SAMPLINGS

LOG = logging.getLogger(__name__)
MAX_CHOICES = 64
MAX_PRIORITY = 255
MAX_NAME_BYTES = 256
MAX_CAMERAS = 64
_BOUND_BY_NAME = bounds(NodeConfig)


class Admission:
    """Checks requests and queues them; from any thread.

    Args:
        scheduler: takes those that may wait.
        config: returns the node's parameters as they are now.
        refusal: returns why no request is taken now, such as a model that is being built, or an empty text.
        now_ns: the steady clock.

    Attributes:
        trials: of JSON schemas.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        config: Callable[[], NodeConfig],
        refusal: Callable[[], str] = str,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._scheduler, self._config, self._refusal, self._now_ns = scheduler, config, refusal, now_ns
        self.trials = SchemaTrials()

    def admit(self, requests: Sequence[Request]) -> None:
        """Queue requests together, or answer those that may not wait; some may be answered before this returns."""
        refusal = self._refusal()
        admitted = [request for request in requests if self._check(request, refusal)]
        held = [request for request in admitted if isinstance(request.kind, Constrained)]
        for request in held:
            request.state = RequestState.HELD
        self._scheduler.submit(admitted, self._now_ns())
        for request in held:
            if request.state is RequestState.HELD:
                self._try_schema(request)

    def _check(self, request: Request, refusal: str) -> bool:
        """Whether a request may be queued; one that may not is answered."""
        try:
            request.kind = check_query(request.query, self._config())
        except QueryError as error:
            self._scheduler.refuse(request, FinishReason.INVALID, str(error), self._now_ns())
            return False
        except Exception as error:  # raised from a callback it would end the node for everybody
            LOG.exception("query_id=%s cannot be checked", request.query.query_id)
            self._scheduler.refuse(request, FinishReason.FAILED, f"it cannot be checked: {error!r}", self._now_ns())
            return False
        if refusal:
            self._scheduler.refuse(request, FinishReason.REJECTED, refusal, self._now_ns())
        return not refusal

    def _try_schema(self, request: Request) -> None:
        assert isinstance(request.kind, Constrained), "only a constrained answer has a schema"
        self.trials.submit(request.kind.schema, partial(self._on_tried, request))

    def _on_tried(self, request: Request, fault: str) -> None:
        if fault:
            self._scheduler.refuse(request, FinishReason.INVALID, str(schema_error(fault)), self._now_ns())
        else:
            self._scheduler.release(request)


def check_query(query: Query, config: NodeConfig) -> AnswerKind:
    """Check a query against the rules, the lengths of its fields first, and return what may be answered.

    Raises:
        QueryError: the first rule that it breaks, with the value and the bound.
    """
    _check_sizes(query, config)
    for text in (query.question, *query.choices):
        if not text.strip():
            raise QueryError("question must not be empty" if text is query.question else "a choice must not be empty")
    repeated = sorted({choice for choice in query.choices if query.choices.count(choice) > 1})
    if repeated:
        raise QueryError(f"choices must be distinct, got {repeated[:3]} more than once")
    _check_frames(query, config)
    _check_number("max_tokens", query.max_tokens)
    if not 0 <= query.priority <= MAX_PRIORITY:
        raise QueryError(f"priority must lie in [0, {MAX_PRIORITY}], got {query.priority}")
    if query.deadline_ns is not None and query.deadline_ns <= query.accepted_ns:
        raise QueryError("deadline_s must be positive, or zero for none")
    return parse_kind(query.answer_type, query.choices, query.minimum, query.maximum, query.json_schema)


def _check_sizes(query: Query, config: NodeConfig) -> None:
    """Refuse what is too long before any other work on it; no field is echoed whole."""
    for name, most, items in (("choices", MAX_CHOICES, query.choices), ("cameras", MAX_CAMERAS, query.cameras)):
        if len(items) > most:
            raise QueryError(f"{name} must be at most {most}, got {len(items)}")
    check_lengths(query.answer_type, query.json_schema)
    rule = f"at most max_question_bytes = {config.max_question_bytes} bytes"
    texts = (("question", query.question), ("system", query.system))
    for name, text in (*texts, *(("a choice", choice) for choice in query.choices)):
        if (num_bytes := _num_bytes(name, text)) > config.max_question_bytes:
            raise QueryError(f"{name} must have {rule}, got {num_bytes}")
    names = (("conversation", query.conversation), ("sampling", query.sampling))
    for name, text in (*names, *(("a camera's name", camera) for camera in query.cameras)):
        if (num_bytes := _num_bytes(name, text)) > MAX_NAME_BYTES:
            raise QueryError(f"{name} must have at most {MAX_NAME_BYTES} bytes, got {num_bytes}")


def _num_bytes(name: str, text: str) -> int:
    try:
        return len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:  # a command line holds such text where the terminal does not write UTF-8
        raise QueryError(f"{name} must be UTF-8, got bytes that are none at character {error.start}") from error


def _check_frames(query: Query, config: NodeConfig) -> None:
    if query.images:
        check_images(query, config.max_images_bytes)
        return
    _check_window(query)
    _check_cameras(query, config)
    _check_number("num_frames", query.num_frames)


def _check_window(query: Query) -> None:
    if (query.start_ns is None) != (query.end_ns is None):
        raise QueryError("start and end must be given both, or neither for the last window_s seconds")
    if query.start_ns is not None and query.end_ns is not None and query.end_ns < query.start_ns:
        raise QueryError(f"end must not lie before start, got {query.end_ns} ns < {query.start_ns} ns")
    _check_number("window_s", query.window_s)
    if not 0 <= query.ago_end_s <= query.ago_start_s < math.inf:
        raise QueryError(
            f"ago_start and ago_end must be seconds before the newest frame, the start the longer ago, got "
            f"{query.ago_start_s:g} and {query.ago_end_s:g}"
        )
    if query.sampling not in SAMPLINGS:
        raise QueryError(f"sampling must be one of {list(SAMPLINGS)}, got {query.sampling!r}")


def _check_cameras(query: Query, config: NodeConfig) -> None:
    unknown = sorted(set(query.cameras) - set(config.cameras))
    if unknown:
        raise QueryError(f"unknown cameras {unknown}; this node has {list(config.cameras)}")
    if len(set(query.cameras)) != len(query.cameras):
        raise QueryError(f"cameras must be distinct, got {list(query.cameras)}")
    if 0 < query.num_frames < len(query.cameras):
        raise QueryError(
            f"num_frames must be at least one per camera, got {query.num_frames} for {list(query.cameras)}; "
            "ask for more frames or name fewer cameras"
        )


def _check_number(name: str, value: float) -> None:
    bound = _BOUND_BY_NAME[name]
    low, high = bound.low or 0, bound.high or math.inf
    if not low <= value <= high:  # a NaN lies in no range
        raise QueryError(f"{name} must lie in [{low:g}, {high:g}] {bound.unit}, got {value:g}")
