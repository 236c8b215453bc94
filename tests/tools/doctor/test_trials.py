"""Trials of backends: what works, what differs, and children that crash, hang or refuse."""

import sys
from typing import Any

import pytest

from nvila_ros.tools.doctor import trial, trials
from nvila_ros.tools.doctor.trials import REFERENCE, Subject, TrialOutcome


def figures(**changes: Any) -> dict[str, Any]:
    answers = [list(pair) for pair in REFERENCE]
    return {"precision": "fp32", "answers_s": 9.0, "load_s": 1.0, "answers": answers} | changes


def test_reference_is_what_torch_answers() -> None:
    answers = trial.run("nvila-tiny", "torch", "fp32")["answers"]

    assert [text for text, _ in answers] == [text for text, _ in REFERENCE]
    assert [probability for _, probability in answers] == pytest.approx([want for _, want in REFERENCE], abs=1e-4)


def test_backend_that_is_here_works() -> None:
    tried = trials.try_backend(Subject("onnxruntime", "auto", ("onnxruntime",), ""))

    assert (tried.outcome, tried.cure) == (TrialOutcome.WORKS, "")
    assert "fp32" in tried.detail


def test_other_answers_or_probabilities_are_named_with_their_cure() -> None:
    other = [["red", 0.9], *map(list, REFERENCE[1:])]
    near = [[text, probability - 0.05] for text, probability in REFERENCE]

    wrong = trials.judge("cpu", 0.15, figures(answers=other), "", "")
    exact, rounded = (trials.judge("cpu", tolerance, figures(answers=near), "", "") for tolerance in (0.01, 0.15))

    assert wrong.outcome is exact.outcome is TrialOutcome.DIFFERS
    assert "question 0: red 0.900, expected purple 1.000" in wrong.detail
    assert "do not use this backend here" in wrong.cure
    assert rounded.outcome is TrialOutcome.WORKS


def test_probability_that_is_no_number_differs() -> None:
    answers = [[text, float("nan")] for text, _ in REFERENCE]

    assert trials.judge("cpu", 0.15, figures(answers=answers), "", "").outcome is TrialOutcome.DIFFERS


def test_missing_package_is_named_with_its_cure() -> None:
    tried = trials.try_backend(Subject("cpu", "w8", ("no_such_runtime",), "pip install it"))

    assert (tried.outcome, tried.detail, tried.cure) == (TrialOutcome.ABSENT, "needs no_such_runtime", "pip install it")


def test_model_that_does_not_load_says_why() -> None:
    tried = trials.try_backend(Subject("onnxruntime", "w8", (), "pip install it"))

    assert tried.outcome is TrialOutcome.FAILS
    assert "precision w8 is for backend cpu alone" in tried.detail


@pytest.mark.parametrize(
    ("code", "limit_s", "cause"),
    [
        ("import os; os.kill(os.getpid(), 11)", 60, "was killed by SIGSEGV"),
        ("import time; time.sleep(600)", 0.5, "did not end within 0.5 s"),
        ("import sys; sys.exit('no room\\nat all')", 60, "no room at all"),
        ("print('hello')", 60, "printed no figures"),
        ("pass", 60, "printed no figures"),
    ],
)
def test_child_that_gives_no_figures_is_one_line(code: str, limit_s: float, cause: str) -> None:
    assert trials.run_child([sys.executable, "-c", code], limit_s) == (None, cause)
