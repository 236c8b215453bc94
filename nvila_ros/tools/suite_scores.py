"""How the questions of a suite go: right answers, and where answers have probabilities, how far these can be trusted.

Calibration is measured on a second asking with the closed set of answers as choices, which is how a robot gets
probabilities. ECE is the expected calibration error over `NUM_BINS` even bins (Naeini et al., AAAI 2015).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.table import Table

from nvila_ros.tools.asking import QueryModel
from nvila_ros.tools.suites import DEFAULT_SUITE, HEIGHT, SUITES, WIDTH, Render, Suite
from nvila_ros.types import Answer, Frame, Query
from nvila_ros.world.questions import EvalCase, is_correct
from nvila_ros.world.rendering import render

NUM_SHOWN_WRONG = 3
MAX_TOKENS = 64
"""Of an answer."""
NUM_BINS = 15
SURE = 0.99
"""Probability from which on an answer counts as sure."""


def bins_of(confidence: np.ndarray, num_bins: int = NUM_BINS) -> np.ndarray:
    """Return the bin of each confidence in [0, 1], of bins of equal width."""
    return np.minimum((confidence * num_bins).astype(np.int64), num_bins - 1)


def calibration_error(confidence: np.ndarray, is_right: np.ndarray, num_bins: int = NUM_BINS) -> float:
    """Return the expected calibration error: |confidence - accuracy| of each bin, weighted by the answers in it.

    Args:
        confidence: (N,) probability of each answer, N >= 1.
        is_right: (N,) 1 where it is true, else 0.
        num_bins: of equal width.
    """
    gaps = np.bincount(bins_of(confidence, num_bins), confidence - is_right)
    return float(np.abs(gaps).sum() / len(confidence))


@dataclass(slots=True)
class SuiteScore:
    """How the questions of one kind or tier went.

    Attributes:
        wrong: the cases answered wrong, and the answers.
        chosen: of each question with choices the probability of the likeliest, and whether that was the true one.
        measures: what else the suite measures, by name, of each answer that has it.
    """

    num_asked: int = 0
    wrong: list[tuple[EvalCase, str]] = field(default_factory=list)
    chosen: list[tuple[float, bool]] = field(default_factory=list)
    measures: dict[str, list[float]] = field(default_factory=dict)

    @property
    def num_right(self) -> int:
        """Questions answered right."""
        return self.num_asked - len(self.wrong)

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0 where nothing was asked."""
        return self.num_right / self.num_asked if self.num_asked else 0.0

    @property
    def calibration_error(self) -> float:
        """Expected calibration error of the likeliest choices, 0 where nothing was chosen."""
        return calibration_error(*np.array(self.chosen, np.float64).T) if self.chosen else 0.0

    @property
    def means(self) -> dict[str, float]:
        """The mean of each measure, by name."""
        return {name: float(np.mean(values)) for name, values in self.measures.items()}

    @property
    def num_sure(self) -> int:
        """Choices with a probability of at least `SURE`."""
        return sum(probability >= SURE for probability, _ in self.chosen)

    @property
    def sure_and_wrong(self) -> float:
        """Share of wrong ones among the sure choices, 0 where none is sure."""
        num_wrong = sum(probability >= SURE and not is_right for probability, is_right in self.chosen)
        return num_wrong / self.num_sure if self.num_sure else 0.0


OnCase = Callable[[str, int, EvalCase, Answer], None]
"""Takes each case after its answer: kind, index, case, answer."""


def score(
    model: QueryModel,
    kinds: Sequence[str],
    num_questions: int,
    on_case: OnCase,
    *,
    suite: Suite = SUITES[DEFAULT_SUITE],
) -> dict[str, SuiteScore]:
    """Ask `num_questions` cases of each kind of a suite."""
    scores: dict[str, SuiteScore] = {}
    for kind in kinds:
        scores[kind] = SuiteScore()
        for index in range(num_questions):
            case = suite.case(kind, index)
            answer = ask_case(model, case, f"{kind}-{index}", suite.render, answer_type=suite.answer_type)
            scores[kind].num_asked += 1
            if not suite.is_right(case, answer):
                scores[kind].wrong.append((case, suite.say(answer)))
            for name, value in suite.measure(case, answer).items() if suite.measure else ():
                scores[kind].measures.setdefault(name, []).append(value)
            _score_choices(model, case, f"{kind}-{index}", suite, scores[kind])
            on_case(kind, index, case, answer)
    return scores


def _score_choices(model: QueryModel, case: EvalCase, query_id: str, suite: Suite, into: SuiteScore) -> None:
    """Ask once more with choices, where the suite has some, and note how probable the likeliest is."""
    choices = suite.choices(case.question) if suite.choices is not None else ()
    if not choices:
        return
    answer = ask_case(model, case, query_id, suite.render, choices)
    if answer.probabilities:
        into.chosen.append((max(answer.probabilities), is_correct(case.question, answer.text)))


def film_case(case: EvalCase, render: Render = render) -> list[Frame]:
    """Return the frames of a case, in order of their times."""
    return [Frame(image=render(case.scene, t, WIDTH, HEIGHT), stamp_ns=round(t * 1e9)) for t in case.times_s]


def ask_case(
    model: QueryModel,
    case: EvalCase,
    query_id: str,
    render: Render = render,
    choices: tuple[str, ...] = (),
    *,
    answer_type: str = "",
) -> Answer:
    """Film the frames of a case and ask its question, with choices, for a type of answer or freely."""
    frames = film_case(case, render)
    question = case.question.text
    query = Query(
        query_id=query_id,
        question=question,
        num_frames=len(frames),
        max_tokens=MAX_TOKENS,
        choices=choices,
        answer_type=answer_type,
    )
    return model.answer(query, frames)


def as_dict(scores: dict[str, SuiteScore]) -> dict[str, object]:
    """Return the accuracy of each kind and over all questions, and where there are choices their calibration."""
    num_asked = sum(each.num_asked for each in scores.values())
    overall = sum(each.num_right for each in scores.values()) / num_asked
    found: dict[str, object] = {**{kind: each.accuracy for kind, each in scores.items()}, "overall": overall}
    means = {kind: each.means for kind, each in scores.items() if each.measures}
    if means:
        found["measures"] = means
    chosen = {kind: each for kind, each in scores.items() if each.chosen}
    if chosen:
        found["ece"] = {kind: each.calibration_error for kind, each in chosen.items()}
        found["sure"] = {kind: each.num_sure for kind, each in chosen.items()}
        found["sure_and_wrong"] = {kind: each.sure_and_wrong for kind, each in chosen.items()}
    return found


def as_table(scores: dict[str, SuiteScore]) -> Table:
    """Return a table of the scores, with a few wrong answers of each kind."""
    has_choices = any(each.chosen for each in scores.values())
    calibration = ("ECE", f"p >= {SURE}", "of those wrong") if has_choices else ()
    names = sorted({name for each in scores.values() for name in each.measures})
    table = Table("kind", "asked", "right", "accuracy", *names, *calibration, "answer instead of the truth")
    for column in table.columns[1:-1]:
        column.justify = "right"
    for kind, each in scores.items():
        shown = [f"{text!r} for {case.question.answer!r}" for case, text in each.wrong[:NUM_SHOWN_WRONG]]
        trust = (f"{each.calibration_error:.3f}", str(each.num_sure), f"{each.sure_and_wrong:.3f}")
        row = (kind, str(each.num_asked), str(each.num_right), f"{each.accuracy:.3f}")
        measured = [f"{each.means[name]:.3f}" if name in each.means else "" for name in names]
        row = (*row, *measured, *(trust if has_choices else ()), ", ".join(shown))
        table.add_row(*(text.replace("[", r"\[") for text in row))
    return table
