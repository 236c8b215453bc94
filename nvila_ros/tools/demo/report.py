"""What the demo shows of its answers: a table, captions of the picture, and the JSON line."""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.markup import escape
from rich.table import Table

from nvila_ros.tools.ask import tokens_per_s
from nvila_ros.tools.demo.questions import QuizItem
from nvila_ros.types import Answer
from nvila_ros.world.questions import Question, is_correct


@dataclass(frozen=True, slots=True, kw_only=True)
class QuizResult:
    """One question of the demo and its answer.

    Attributes:
        camera: title of the camera.
        asked: the question as asked.
        truth: the question with the answer that is true of the frames; None where it cannot be known.
        answer: None where there is none.
        error: why there is no answer.
    """

    camera: str
    item: QuizItem
    asked: Question
    truth: Question | None
    answer: Answer | None = None
    error: str = ""

    @property
    def is_right(self) -> bool:
        """Whether the answer is known to be true."""
        return self.answer is not None and self.truth is not None and is_correct(self.truth, self.answer.text)

    @property
    def stamps_ns(self) -> tuple[int, ...]:
        """Captures of the frames that the answer is about, oldest first."""
        return tuple(frame.stamp_ns for frame in self.answer.frames) if self.answer is not None else ()


def summarize(results: Sequence[QuizResult], num_asked: int, num_dropped: int) -> dict[str, object]:
    """Return the demo's last line as plain values."""
    answers = [result.answer for result in results if result.answer is not None]
    return {
        "answers": len(answers),
        "correct": sum(result.is_right for result in results),
        "asked": num_asked,
        "ttft_s_median": round(statistics.median(a.timings.ttft_s for a in answers), 4) if answers else None,
        "frames_dropped": num_dropped,
    }


def as_table(results: Sequence[QuizResult]) -> Table:
    """Return the table of all answers, one section for each camera."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("question", min_width=18)
    for name in ("answer", "truth"):
        table.add_column(name, overflow="fold")
    table.add_column("", min_width=2)
    for name in ("frames", "age\nms", "TTFT\nms", "tokens\nper s"):
        table.add_column(name, justify="right")
    camera = ""
    for result in results:
        if result.camera != camera:
            camera = result.camera
            table.add_section()
            table.add_row(f"[bold cyan]{escape(camera)}")
        table.add_row(*_cells(result))
    return table


def _cells(result: QuizResult) -> list[str]:
    asked, answer = escape(result.asked.text), result.answer
    if answer is None:
        return [asked, f"[red]{escape(result.error)}", "", "[red]x"]
    truth, mark = "?", "[dim]?"
    if result.truth is not None:
        truth, mark = result.truth.answer, "[green]ok" if result.is_right else "[red]no"
    speed = tokens_per_s(answer.counts.num_answer_tokens, answer.timings.decode_s)
    numbers = [str(len(answer.frames)), f"{answer.age_s * 1e3:.0f}", f"{answer.timings.ttft_s * 1e3:.0f}"]
    return [asked, f"[bold]{escape(answer.text)}", truth, mark, *numbers, f"{speed:.0f}" if speed else "-"]


def captions(result: QuizResult, answer: Answer) -> list[str]:
    """Return the small lines of the picture: when its frames were captured, and how the answer came about."""
    first, last = (_clock(stamp_ns) for stamp_ns in (result.stamps_ns[0], result.stamps_ns[-1]))
    count = len(result.stamps_ns)
    when = f"captured {last}" if count == 1 else f"{count} frames captured {first} to {last}"
    truth = f", truth: {result.truth.answer}" if result.truth is not None else ""
    age_ms, ttft_ms = answer.age_s * 1e3, answer.timings.ttft_s * 1e3
    return [
        f"{result.camera}, {when} UTC{truth}",
        f"answered {age_ms:.0f} ms after the newest capture, first token {ttft_ms:.0f} ms, "
        f"{answer.model} {answer.backend} {answer.precision}",
    ]


def _clock(stamp_ns: int) -> str:
    moment = datetime.datetime.fromtimestamp(stamp_ns // 10**9, datetime.timezone.utc)
    return f"{moment:%H:%M:%S}.{stamp_ns // 10**6 % 1000:03d}"
