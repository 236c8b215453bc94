"""What the demo shows of its answers: one row each, the table, the picture's captions and the JSON line."""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.markup import escape
from rich.table import Table

from nvila_ros.tools.demo.questions import Item
from nvila_ros.world.questions import Question, is_correct


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer as it came over ROS, as far as the demo shows it.

    Attributes:
        error: why there is no answer; empty if there is one.
        stamps_ns: captures of the frames it is about, oldest first.
        tokens_per_s: 0 where nothing was decoded.
        model: checkpoint, backend and precision.
    """

    text: str
    error: str
    stamps_ns: tuple[int, ...]
    age_s: float
    ttft_s: float
    tokens_per_s: float
    model: str


@dataclass(frozen=True, slots=True)
class Row:
    """One question of the demo and what came of it.

    Attributes:
        asked: the question as posed.
        truth: the question with the answer that is true of the frames; None where it cannot be told.
    """

    camera: str
    item: Item
    asked: Question
    truth: Question | None
    reply: Reply

    @property
    def is_right(self) -> bool:
        """Whether the answer is known to be true."""
        return not self.reply.error and self.truth is not None and is_correct(self.truth, self.reply.text)


def summarize(rows: Sequence[Row], num_asked: int, num_dropped: int) -> dict[str, object]:
    """Return the demo's last line as plain values."""
    answered = [row for row in rows if not row.reply.error]
    return {
        "answers": len(answered),
        "correct": sum(row.is_right for row in rows),
        "asked": num_asked,
        "ttft_s_median": round(statistics.median(row.reply.ttft_s for row in answered), 4) if answered else None,
        "frames_dropped": num_dropped,
    }


def as_table(rows: Sequence[Row]) -> Table:
    """Return the table of all answers, one section for each camera."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("question", min_width=18)
    for name in ("answer", "truth"):
        table.add_column(name, overflow="fold")
    table.add_column("", min_width=2)
    for name in ("frames", "age\nms", "TTFT\nms", "tokens\nper s"):
        table.add_column(name, justify="right")
    camera = ""
    for row in rows:
        if row.camera != camera:
            camera = row.camera
            table.add_section()
            table.add_row(f"[bold cyan]{escape(camera)}")
        table.add_row(*_cells(row))
    return table


def _cells(row: Row) -> list[str]:
    asked, reply = escape(row.asked.text), row.reply
    if reply.error:
        return [asked, f"[red]{escape(reply.error)}", "", "[red]x"]
    truth, mark = "?", "[dim]?"
    if row.truth is not None:
        truth, mark = row.truth.answer, "[green]ok" if row.is_right else "[red]no"
    numbers = [f"{reply.age_s * 1e3:.0f}", f"{reply.ttft_s * 1e3:.0f}"]
    speed = f"{reply.tokens_per_s:.0f}" if reply.tokens_per_s else "-"
    return [asked, f"[bold]{escape(reply.text)}", truth, mark, str(len(reply.stamps_ns)), *numbers, speed]


def captions(row: Row) -> list[str]:
    """Return the small lines of the picture: when its frames were captured, and how the answer came about."""
    reply = row.reply
    first, last = (_clock(stamp_ns) for stamp_ns in (reply.stamps_ns[0], reply.stamps_ns[-1]))
    count = len(reply.stamps_ns)
    when = f"captured {last}" if count == 1 else f"{count} frames captured {first} to {last}"
    truth = f", truth: {row.truth.answer}" if row.truth is not None else ""
    age_ms, ttft_ms = reply.age_s * 1e3, reply.ttft_s * 1e3
    return [
        f"{row.camera}, {when} UTC{truth}",
        f"answered {age_ms:.0f} ms after the newest capture, first token {ttft_ms:.0f} ms, {reply.model}",
    ]


def _clock(stamp_ns: int) -> str:
    moment = datetime.datetime.fromtimestamp(stamp_ns // 10**9, datetime.timezone.utc)
    return f"{moment:%H:%M:%S}.{stamp_ns // 10**6 % 1000:03d}"
