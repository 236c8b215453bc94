"""A standing query: what is asked, how often, about which frames, and which answers make an event.

In: plain values, from a YAML file or a service. Out: a frozen `StandingQuery`, every value of which was checked, and
from it one `types.Query` for each time that it is asked.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass

from nvila_ros.config import NodeConfig, check_fields, setting
from nvila_ros.errors import ConfigError, QueryError
from nvila_ros.generation.grammar_compile import try_schema
from nvila_ros.prompt.answer_kinds import ANSWER_TYPES, MAX_INTEGER, YES_NO, Constrained, parse_kind, schema_error
from nvila_ros.serving.admission import MAX_PRIORITY, check_query
from nvila_ros.types import NS_PER_S, Query
from nvila_ros.video.selection import SAMPLINGS

TICK_NS = NS_PER_S // 10
"""Periods are whole multiples of this, so that queries of like rate are asked together and share a clip."""
MAX_DEBOUNCE = 64
YAML_HINT = "in YAML, yes, no and numbers are texts in quotes only"
CONDITION_TYPES = ("yes_no", "choices", "integer", "when")


@dataclass(frozen=True, slots=True, kw_only=True)
class StandingQuery:
    """One question that stands; docs/standing-queries.md says what the fields do together.

    Raises:
        ConfigError: a value outside its rule, or at odds with another.
    """

    name: str = setting("", "unique; letters, digits and _ . / -, at most 64")
    question: str = setting("", "asked as it is, UTF-8")
    answer_type: str = setting("yes_no", "what may be answered", choices=ANSWER_TYPES)
    choices: tuple[str, ...] = setting((), "the answers allowed; goes with answer_type choices, and tools with tool")
    minimum: int = setting(0, "smallest answer; goes with integer", low=-MAX_INTEGER, high=MAX_INTEGER)
    maximum: int = setting(0, "largest answer; goes with integer", low=-MAX_INTEGER, high=MAX_INTEGER)
    json_schema: str = setting("", "schema of the answer, itself JSON; goes with json")
    rate_hz: float = setting(1.0, "how often it is asked at most", "Hz", low=0.001, high=10.0)
    window_s: float = setting(0.0, "window, ending at the newest frame; 0 by parameter", "s", low=0.0, high=3600.0)
    num_frames: int = setting(0, "frames sampled from the window; 0 by parameter", "frames", low=0, high=256)
    sampling: str = setting("uniform", "which frames of the window", choices=SAMPLINGS)
    cameras: tuple[str, ...] = setting((), "names of the cameras to look through; empty takes all")
    max_tokens: int = setting(0, "longest answer; 0 by parameter", "tokens", low=0, high=8192)
    trigger: str = setting(
        "on_change", "which answers make an event", choices=("every", "on_change", "rising", "falling")
    )
    target: str = setting("", "rising and falling: the answer watched for; empty is yes; of an integer, or more")
    threshold: float = setting(0.5, "least probability of the target at which it holds", low=0.01, high=1.0)
    hysteresis: float = setting(0.0, "how far below the threshold it must fall to hold no more", low=0.0, high=0.99)
    debounce_n: int = setting(1, "answers that must agree", "answers", low=1, high=MAX_DEBOUNCE)
    debounce_m: int = setting(1, "among that many last ones", "answers", low=1, high=MAX_DEBOUNCE)
    cooldown_s: float = setting(0.0, "least time from one begin to the next", "s", low=0.0, high=86400.0)
    stale_s: float = setting(
        30.0, "after that long without answers nothing is known any more", "s", low=0.1, high=86400.0
    )
    priority: int = setting(0, "higher is answered first", low=0, high=MAX_PRIORITY)
    deadline_s: float = setting(
        0.0, "an answer is cut that long after it was asked for; 0 is never", "s", low=0.0, high=3600.0
    )
    enabled: bool = setting(True, "whether it is asked")

    def __post_init__(self) -> None:
        """Check every field, and those that go together."""
        check_fields(self)
        _check_text(self)
        _check_answer(self)
        _check_condition(self)
        _check_times(self)

    @property
    def has_condition(self) -> bool:
        """Whether events begin and end, since the trigger watches a condition."""
        return self.trigger in ("rising", "falling")

    @property
    def period_ns(self) -> int:
        """Time from one evaluation to the next, a whole number of ticks."""
        return max(1, math.ceil(round(NS_PER_S / self.rate_hz) / TICK_NS)) * TICK_NS

    @property
    def clip(self) -> tuple[object, ...]:
        """What decides which frames it is shown; queries that agree in it and are due together share a clip."""
        return to_query(self, "", 0).clip


def complete(query: StandingQuery, config: NodeConfig) -> StandingQuery:
    """Fill in from the node's parameters what a query leaves at zero, and hold it against the rules of every query.

    Raises:
        QueryError: as `admission.check_query`. A prompt that is too long for the model is reported when it is asked.
    """
    cameras = query.cameras or config.cameras
    query = dataclasses.replace(
        query,
        cameras=cameras,
        window_s=query.window_s or config.window_s,
        num_frames=query.num_frames or config.num_frames_of(cameras, query.answer_type),
        max_tokens=query.max_tokens or config.max_tokens,
    )
    check_query(to_query(query, "", 0), config)
    if query.answer_type == "when" and len(query.cameras) != 1:
        raise QueryError(f"when is asked of one camera, got {list(query.cameras)}; name one in cameras")
    return query


def check_schema(query: StandingQuery) -> None:
    """Try a query's schema here and now, which takes up to seconds; without one, do nothing.

    Raises:
        QueryError: no grammar can be made of it.
    """
    kind = parse_kind(query.answer_type, query.choices, query.minimum, query.maximum, query.json_schema)
    try:
        fault = try_schema(kind.schema) if isinstance(kind, Constrained) else ""
    except TimeoutError:  # the first evaluation reports a busy machine
        return
    if fault:
        raise schema_error(fault)


def to_query(query: StandingQuery, query_id: str, accepted_ns: int) -> Query:
    """Return what the model is asked this time.

    Args:
        query: complete.
        query_id: unique while the node runs.
        accepted_ns: steady clock.
    """
    deadline_ns = accepted_ns + round(query.deadline_s * NS_PER_S) if query.deadline_s else None
    return Query(
        query_id=query_id,
        question=query.question,
        num_frames=query.num_frames,
        window_s=query.window_s,
        sampling=query.sampling,
        cameras=query.cameras,
        max_tokens=query.max_tokens,
        priority=query.priority,
        choices=query.choices,
        answer_type=query.answer_type,
        minimum=query.minimum,
        maximum=query.maximum,
        json_schema=query.json_schema,
        standing=query.name,
        accepted_ns=accepted_ns,
        deadline_ns=deadline_ns,
    )


def _check_text(query: StandingQuery) -> None:
    if not re.fullmatch(r"\w[\w./-]{0,63}", query.name, re.ASCII):
        raise ConfigError(f"name must be 1 to 64 letters, digits and _ . / -, got {query.name!r}")
    if not query.question.strip():
        raise ConfigError(f"question must not be empty, got {query.question!r}")
    for field in ("choices", "cameras"):
        texts = getattr(query, field)
        odd = [text for text in texts if not isinstance(text, str) or not text.strip()]
        if odd:
            raise ConfigError(f"{field} must hold texts, got {odd}; {YAML_HINT}")
        if len(set(texts)) != len(texts):
            raise ConfigError(f"{field} must be distinct, got {list(texts)}")


def _check_answer(query: StandingQuery) -> None:
    try:
        parse_kind(query.answer_type, query.choices, query.minimum, query.maximum, query.json_schema)
    except QueryError as error:
        raise ConfigError(str(error)) from error
    if query.answer_type == "choices" and len(query.choices) < 2:
        raise ConfigError(f"choices must be at least two, got {list(query.choices)}")


def _check_condition(query: StandingQuery) -> None:
    if not query.has_condition:
        if query.target:
            raise ConfigError(f"target goes with rising and falling, got {query.target!r} with {query.trigger}")
        return
    if query.answer_type not in CONDITION_TYPES:
        raise ConfigError(
            f"{query.trigger} must watch an answer of {', '.join(CONDITION_TYPES)}, got {query.answer_type}; "
            "use on_change or every"
        )
    yes_no = ("", *YES_NO.names)  # of when: whether it happens
    allowed = {"yes_no": yes_no, "when": yes_no, "choices": query.choices}.get(query.answer_type)
    if allowed is not None and query.target not in allowed:
        raise ConfigError(f"target must be one of {list(allowed)}, got {query.target!r}")
    if allowed is None and not _is_between(query.target, query.minimum, query.maximum):
        raise ConfigError(f"target must be a number in [{query.minimum}, {query.maximum}], got {query.target!r}")
    if query.hysteresis >= query.threshold:
        raise ConfigError(f"hysteresis must be below threshold, got {query.hysteresis:g} and {query.threshold:g}")


def _is_between(text: str, low: int, high: int) -> bool:
    return re.fullmatch(r"-?[0-9]{1,16}", text) is not None and low <= int(text) <= high


def _check_times(query: StandingQuery) -> None:
    if query.debounce_n > query.debounce_m:
        raise ConfigError(f"debounce_n must be at most debounce_m, got {query.debounce_n} of {query.debounce_m}")
    if query.trigger == "every" and query.debounce_m > 1:
        raise ConfigError(f"every reports each answer by itself, got debounce_m {query.debounce_m}; use on_change")
    if query.stale_s * NS_PER_S < 2 * query.period_ns:
        raise ConfigError(
            f"stale_s must be at least two periods = {2 * query.period_ns / NS_PER_S:g} s, got {query.stale_s:g}; "
            "raise it or rate_hz"
        )
