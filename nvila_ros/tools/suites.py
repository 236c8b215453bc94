"""The suites of `nvila eval`: fixed questions about the synthetic world, of scenes that training never draws.

A suite says what is asked, and how its scenes become pixels; asking and scoring are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nvila_ros.tools.interval_scores import is_found, measure_interval, say_interval
from nvila_ros.types import Answer
from nvila_ros.world import photography
from nvila_ros.world.questions import EVAL_KINDS, EvalCase, Question, eval_case, is_correct
from nvila_ros.world.rendering import Render, render
from nvila_ros.world.rooms.suite import ROOM_KINDS, choices_of_room, eval_room_case, render_room
from nvila_ros.world.scale_questions import SCALE_KINDS, eval_scale_case
from nvila_ros.world.timed_events import EVAL_KINDS as TIMED_KINDS
from nvila_ros.world.timed_events import eval_timed_case
from nvila_ros.world.wide_suite import TIERS, choices_of, eval_wide_case, render_either

CaseOf = Callable[[str, int], EvalCase]
"""Returns case number index of a kind."""


def _text_of(answer: Answer) -> str:
    return answer.text


def _is_exact(case: EvalCase, answer: Answer) -> bool:
    return is_correct(case.question, answer.text)


@dataclass(frozen=True, slots=True)
class Suite:
    """A fixed set of questions.

    Attributes:
        kinds: of question.
        case: by kind and index.
        render: films the scenes of the cases.
        choices: the closed set of answers that a question has, if any: asked once more with these, answers come with
            probabilities.
        answer_type: of answer that is asked for, by default free text.
        is_right: judges an answer, by default by exact match.
        say: writes a wrong answer down for the table.
        measure: returns what else there is to say of an answer, by name; means are reported.
    """

    kinds: tuple[str, ...]
    case: CaseOf
    render: Render = render
    choices: Callable[[Question], tuple[str, ...]] | None = None
    answer_type: str = ""
    is_right: Callable[[EvalCase, Answer], bool] = _is_exact
    measure: Callable[[EvalCase, Answer], dict[str, float]] | None = None
    say: Callable[[Answer], str] = _text_of


WORLD_KINDS = (*EVAL_KINDS, "describe")
SUITES: dict[str, Suite] = {
    "tiny-world": Suite(WORLD_KINDS, eval_case),
    "tiny-world-photo": Suite(WORLD_KINDS, eval_case, photography.render),
    "tiny-world-scale": Suite(SCALE_KINDS, eval_scale_case),
    "tiny-world-rooms": Suite(ROOM_KINDS, eval_room_case, render_room, choices_of_room),
    "tiny-world-when": Suite(
        TIMED_KINDS, eval_timed_case, answer_type="when", is_right=is_found, measure=measure_interval, say=say_interval
    ),
    "tiny-world-wide": Suite(tuple(TIERS), eval_wide_case, render_either, choices_of),
}
"""By name; `tiny-world-photo` asks the questions of `tiny-world` of the second camera's pictures. The kinds of
`tiny-world-wide` are tiers, each wider than `tiny-world` in one respect."""
DEFAULT_SUITE = "tiny-world"
WIDTH, HEIGHT = 640, 480
"""Of the frames that are asked about, px."""
