"""How far a probability can be believed: held-out questions with a closed set of answers, all scored as choices.

Of every question the likeliest choice is the answer, and its probability the confidence. Prints for each kind of
question how confident and how right the answers are, then the same by bins of confidence, and, last, one JSON line.

    ECE    expected calibration error: |confidence - accuracy| of each bin, weighted by the answers in it
    luck   the ECE to expect all the same of answers that are right exactly as often as they are confident
    Brier  sum over the choices of (probability - truth)^2, 0 to 2, mean over questions
    at T   with probabilities p^(1/T), normalised anew; the one T for all kinds makes the truth likeliest on every other
           question, and it is judged on the questions in between, beside what they give without it

    .venv/bin/python -m benchmarks.calibration --questions 300
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from nvila_ros.runtime.loading import BACKENDS
from nvila_ros.serving.pipeline import VisionLanguageModel, load_model
from nvila_ros.tools.options import positive, print_json, whole
from nvila_ros.tools.suite_scores import ask_case, bins_of, calibration_error
from nvila_ros.world.questions import ANSWERS, EVAL_KINDS, eval_case

NUM_BINS = 10
NUM_DRAWS = 1000  # of right and wrong, to see what luck does
COLDEST, HOTTEST = 0.05, 20.0  # temperatures searched
CLOSED_KINDS = tuple(kind for kind in EVAL_KINDS if kind in ANSWERS)
"""Kinds whose answers are a closed set."""
SMALLEST = 1e-300  # keeps the logarithm of a probability that underflowed finite


@dataclass(frozen=True, slots=True)
class ScoredChoice:
    """What the model gave to one question: (C,) log probabilities of the choices, and which of them is true."""

    log_p: np.ndarray
    truth: int

    def at(self, temperature: float) -> ScoredChoice:
        """Return what the same logits give at another temperature."""
        scaled = self.log_p / temperature
        shifted = scaled - scaled.max()
        return ScoredChoice(shifted - np.log(np.exp(shifted).sum()), self.truth)

    @property
    def confidence(self) -> float:
        """Probability of the choice that was answered."""
        return float(np.exp(self.log_p.max()))

    @property
    def is_right(self) -> bool:
        """Whether the choice that was answered is true."""
        return int(self.log_p.argmax()) == self.truth

    @property
    def brier(self) -> float:
        """Squared distance of the probabilities from the truth."""
        return float(((np.exp(self.log_p) - (np.arange(len(self.log_p)) == self.truth)) ** 2).sum())


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="nvila-tiny", help="folder, or name of an embedded one")
    parser.add_argument("--questions", type=positive, default=300, metavar="N", help="per kind (default: 300)")
    parser.add_argument("--backend", choices=BACKENDS, default=BACKENDS[0], help="runtime (default: %(default)s)")
    parser.add_argument("--threads", type=whole, default=0, help="of the runtime, 0 for all")
    args = parser.parse_args()
    model = load_model(args.checkpoint, backend=args.backend, threads=args.threads)
    asked = {kind: [ask(model, kind, index) for index in range(args.questions)] for kind in CLOSED_KINDS}
    halves = {kind: (group[::2], group[1::2]) for kind, group in asked.items()}
    halves["overall"] = tuple(
        [choice for half in side for choice in half] for side in zip(*halves.values(), strict=True)
    )
    temperature = fit_temperature(halves["overall"][0])
    rows = {kind: measure(*pair, temperature) for kind, pair in halves.items()}
    bins = reliability([choice for group in asked.values() for choice in group])
    console = Console(highlight=False, width=110)  # a pipe has 80, which would cut numbers off
    console.print(kinds_table(rows), bins_table(bins), f"T = {temperature:.3f}")
    names = {"model": model.model, "backend": model.backend, "precision": model.precision}
    print_json({"benchmark": "calibration", **names, "temperature": temperature, "kinds": rows, "bins": bins})
    return 0


def ask(model: VisionLanguageModel, kind: str, index: int) -> ScoredChoice:
    """Ask a held-out question, with all answers that its kind has as choices."""
    case, choices = eval_case(kind, index), ANSWERS[kind]
    answer = ask_case(model, case, f"{kind}-{index}", choices=choices)
    probabilities = np.maximum(answer.probabilities, SMALLEST)
    return ScoredChoice(np.log(probabilities), choices.index(case.question.answer))


def fit_temperature(group: Sequence[ScoredChoice]) -> float:
    """Return the temperature under which the truths are least surprising.

    Their surprise is convex in one over the temperature, so a third of the interval can be dropped again and again.
    """
    low, high = 1 / HOTTEST, 1 / COLDEST

    def surprise(inverse: float) -> float:
        return -sum(choice.at(1 / inverse).log_p[choice.truth] for choice in group)

    for _ in range(40):
        third = (high - low) / 3
        if surprise(low + third) < surprise(high - third):
            high -= third
        else:
            low += third
    return 2 / (low + high)


def measure(fitted: list[ScoredChoice], held_out: list[ScoredChoice], temperature: float) -> dict[str, float]:
    """Return how confident and how right answers are, and what T does to the half that it was not fitted on."""
    group = fitted + held_out
    scaled = [each.at(temperature) for each in held_out]
    return {
        "asked": len(group),
        "accuracy": float(np.mean([each.is_right for each in group])),
        "confidence": float(np.mean([each.confidence for each in group])),
        "ece": error_of(group),
        "luck": error_by_luck(group),
        "brier": float(np.mean([each.brier for each in group])),
        "half_ece": error_of(held_out),
        "half_ece_at_t": error_of(scaled),
        "half_brier": float(np.mean([each.brier for each in held_out])),
        "half_brier_at_t": float(np.mean([each.brier for each in scaled])),
    }


def reliability(group: Sequence[ScoredChoice]) -> list[dict[str, float]]:
    """Return the bins of equal width into which answers fall by their confidence, without the empty ones."""
    confidence, is_right = confidences(group)
    bin_of = bins_of(confidence, NUM_BINS)
    return [
        {
            "low": index / NUM_BINS,
            "high": (index + 1) / NUM_BINS,
            "answers": int((bin_of == index).sum()),
            "confidence": float(confidence[bin_of == index].mean()),
            "accuracy": float(is_right[bin_of == index].mean()),
        }
        for index in np.unique(bin_of).tolist()
    ]


def confidences(group: Sequence[ScoredChoice]) -> tuple[np.ndarray, np.ndarray]:
    """Return how confident each answer is, and whether it is right, (N,) float64 each."""
    return np.array([(choice.confidence, choice.is_right) for choice in group], np.float64).T


def error_of(group: Sequence[ScoredChoice]) -> float:
    """Return the expected calibration error."""
    return calibration_error(*confidences(group), NUM_BINS)


def error_by_luck(group: Sequence[ScoredChoice]) -> float:
    """Return the mean calibration error where each answer is right by chance, as often as it is confident."""
    confidence, _ = confidences(group)
    bin_of = bins_of(confidence, NUM_BINS)
    gaps = (np.random.default_rng(0).random((NUM_DRAWS, len(group))) < confidence) - confidence
    return float(sum(np.abs(gaps[:, bin_of == k].sum(axis=1)).mean() for k in np.unique(bin_of)) / len(group))


def kinds_table(rows: dict[str, dict[str, Any]]) -> Table:
    """Return a row for each kind of question; the last four columns are of the half that T was not fitted on."""
    table = Table("kind", "asked", "right", "confident", "ECE", "luck", "Brier", "half: ECE", "at T", "Brier", "at T")
    for column in table.columns[1:]:
        column.justify = "right"
    for kind, row in rows.items():
        asked, *numbers = row.values()
        table.add_row(kind, str(asked), *(f"{number:.3f}" for number in numbers))
    return table


def bins_table(bins: Sequence[dict[str, Any]]) -> Table:
    """Return a row for each bin of confidence."""
    table = Table("confidence", "answers", "mean", "right")
    for column in table.columns[1:]:
        column.justify = "right"
    for each in bins:
        name = f"{each['low']:.1f} to {each['high']:.1f}"
        table.add_row(name, str(each["answers"]), f"{each['confidence']:.3f}", f"{each['accuracy']:.3f}")
    return table


if __name__ == "__main__":
    raise SystemExit(main())
