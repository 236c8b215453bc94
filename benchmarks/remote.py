"""Whether a model behind our own HTTP door answers as the same model here, token for token, and what the way costs.

`nvila serve` runs as a process of its own; the backend `remote` asks it over the loopback, with pictures as PNG, so
that nothing is lost on the way. The questions are those of the suites on single frames and on clips, of every answer
type: text with the probabilities of its tokens, yes or no, choices, integers, JSON, and follow-ups of conversations.
Prints a table and, last, one JSON line; exits with 1 where an answer differs.

    .venv/bin/python -m benchmarks.remote --questions 200
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from benchmarks.served import served_process
from nvila_ros.remote.model import RemoteModel
from nvila_ros.remote.settings import RemoteSettings
from nvila_ros.request import Request
from nvila_ros.serving.pipeline import VisionLanguageModel, load_model
from nvila_ros.tools.options import positive, print_json
from nvila_ros.types import NS_PER_S, Answer, Frame, Query
from nvila_ros.world.questions import EVAL_KINDS, eval_case
from nvila_ros.world.rendering import render

WIDTH, HEIGHT = 160, 120
SCHEMA = '{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"],"additionalProperties":false}'
TOOLS = ("detect(person|box)", "read()", "none")
FORMS = {
    "text": {"top_logprobs": 3},
    "yes_no": {"answer_type": "yes_no"},
    "choices": {"choices": ("up", "down", "left", "right", "red", "circle", "2")},
    "integer": {"answer_type": "integer", "minimum": 0, "maximum": 9},
    "many integers": {"answer_type": "integer", "minimum": 0, "maximum": 999},
    "json": {"answer_type": "json", "json_schema": SCHEMA, "max_tokens": 24},
    "tool": {"answer_type": "tool", "choices": TOOLS},
    "when": {"answer_type": "when"},
    "conversation": {},
    "follow-up": {},
}


@dataclass(frozen=True, slots=True)
class ComparedCase:
    """A question, as both are asked it.

    Attributes:
        form: of `FORMS`.
        query: what is asked.
        frames: what it is about; of a follow-up none, since its conversation has them.
    """

    form: str
    query: Query
    frames: tuple[Frame, ...]


def compared_cases(num_questions: int) -> Iterator[ComparedCase]:
    """Yield questions: the kinds of the suite in turn, and the forms of answers in turn."""
    forms = list(FORMS)
    conversation = 0
    for index in range(num_questions):
        form, kind = forms[index % len(forms)], EVAL_KINDS[index % len(EVAL_KINDS)]
        case = eval_case(kind, index)
        frames = tuple(
            Frame(image=render(case.scene, t_s, WIDTH, HEIGHT), stamp_ns=round((index * 10 + t_s) * NS_PER_S))
            for t_s in case.times_s
        )
        conversation += form == "conversation"
        is_follow_up = form == "follow-up"
        name = f"talk{conversation}" if form in ("conversation", "follow-up") else ""
        query = Query(
            query_id=f"q{index:06d}",
            question=case.question.text,
            num_frames=len(frames),
            conversation=name,
            is_follow_up=is_follow_up,
            **FORMS[form],
        )
        yield ComparedCase(form, query, () if is_follow_up else frames)


def ask(model: VisionLanguageModel | RemoteModel, case: ComparedCase) -> Answer:
    """Return a model's answer, also one that is none."""
    answers: list[Answer] = []
    model.answer_all([Request(case.query, answers.append)], case.frames)
    return answers[0]


def difference(here: Answer, there: Answer) -> str:
    """Return in which respect two answers differ; empty where they are the same, token for token."""
    tokens = [[token.token for token in answer.logprobs] for answer in (here, there)]
    tops = [[[name for name, _ in token.top] for token in answer.logprobs] for answer in (here, there)]
    shares = [[*answer.probabilities, *(t.logprob for t in answer.logprobs)] for answer in (here, there)]
    same = {
        "finish reason": here.finish_reason is there.finish_reason,
        "text": here.text == there.text,
        "choices": here.choices == there.choices,
        "tokens": tokens[0] == tokens[1] and tops[0] == tops[1],
        "probabilities": len(shares[0]) == len(shares[1])
        and all(abs(a - b) < 1e-4 for a, b in zip(*shares, strict=True)),
        "frames": here.frames == there.frames,
        "length": here.counts.num_answer_tokens == there.counts.num_answer_tokens
        and here.counts.num_prompt_tokens == there.counts.num_prompt_tokens,
    }
    return ", ".join(name for name, is_same in same.items() if not is_same)


def compare(
    here: VisionLanguageModel, there: RemoteModel, cases: Sequence[ComparedCase]
) -> dict[str, list[tuple[str, float, float]]]:
    """Return of each form of answer, for each question: the difference, and the seconds here and there."""
    found: dict[str, list[tuple[str, float, float]]] = {}
    for case in cases:
        first, second = ask(here, case), ask(there, case)
        row = difference(first, second), first.timings.total_s, second.timings.total_s
        found.setdefault(case.form, []).append(row)
    return found


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--questions", type=positive, default=200, metavar="N")
    parser.add_argument("--model", default="nvila-tiny")
    args = parser.parse_args()
    here = load_model(args.model, threads=1)
    cases = list(compared_cases(args.questions))
    with served_process("world", "--model", args.model, "--threads", "1", "--rate", "1") as url:
        there = RemoteModel(RemoteSettings(url=f"{url}/v1", jpeg_quality=0, max_side=0))
        found = compare(here, there, cases)
    table = Table("answers", "asked", "the same", "seconds here", "there", "more by")
    differing = []
    for form, rows in found.items():
        differing += [f"{form}: {fault}" for fault, _, _ in rows if fault]
        seconds = [statistics.median(row[place] for row in rows) for place in (1, 2)]
        same = sum(not fault for fault, _, _ in rows)
        cells = (len(rows), same, *(f"{s:.4f}" for s in (*seconds, seconds[1] - seconds[0])))
        table.add_row(form, *map(str, cells))
    Console(highlight=False, width=100).print(table)
    for line in differing[:10]:
        print(line)
    flat = [row for rows in found.values() for row in rows]
    more = sorted(there_s - here_s for _, here_s, there_s in flat)
    print_json(
        {
            "model": dataclasses.asdict(here.info),
            "asked": len(flat),
            "the_same": len(flat) - len(differing),
            "more_s_median": round(statistics.median(more), 4),
            "more_s_p95": round(more[int(0.95 * (len(more) - 1))], 4),
            "counters": there.counters(),
        }
    )
    return 1 if differing else 0


if __name__ == "__main__":
    raise SystemExit(main())
