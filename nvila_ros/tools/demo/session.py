"""One camera's questions: each is asked when its scene allows it, and again where the scene changed meanwhile.

In: a client that asks over ROS, and what the camera sees. Out: one `QuizResult` per question.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape

from nvila_ros.errors import NvilaError, ServerError
from nvila_ros.tools.demo.questions import KnownWorld, QuizItem, find_truth, pose
from nvila_ros.tools.demo.report import QuizResult
from nvila_ros.types import NS_PER_S, Answer
from nvila_ros.world.frame_source import FilmSource, WorldSource
from nvila_ros.world.questions import Question

SCENE_S = 4.0
"""How long `LiveWorld` shows a scene."""
LEAD_S = 1.0
"""A camera's first moving scene begins about this long after its first frame: time for questions about single frames,
and soon after there is a clip of motion."""
SESSION_S = 60.0
"""How long one camera's questions may take."""
MAX_TRIES = 4
"""How often a question is asked where the scene changes meanwhile."""
DISCOVERY_S = 5.0
"""How long the node may take to find a camera that others see already."""
MAX_TOKENS = 64


class DemoError(RuntimeError):
    """Something did not come in time."""


class QuestionClient(Protocol):
    """Asks the node."""

    def now_ns(self) -> int:
        """Return the ROS clock."""
        ...

    def rest(self, duration_s: float) -> None:
        """Only receive messages, for this long."""
        ...

    def ask(self, question: str, on_piece: Callable[[str], None] | None, **fields: Any) -> Answer:
        """Ask by the service, or where pieces are wanted by the action."""
        ...


@dataclass(frozen=True, slots=True)
class DemoCamera:
    """One camera: its parameters, what it shows for a given epoch, and its questions."""

    title: str
    parameters: dict[str, Any]
    make_world: Callable[[int], WorldSource | FilmSource]
    items: tuple[QuizItem, ...]


def choose_epoch(spawned_ns: int, start_s: float) -> int:
    """Return the epoch for a camera that needs start_s to start, such that it soon shows a moving scene.

    Standing and moving scenes alternate; the first one stands. The epoch never lies after the camera's first frame,
    even if that comes at once.
    """
    epoch_ns = spawned_ns + round((start_s + LEAD_S - SCENE_S) * NS_PER_S)
    turn_ns = round(2 * SCENE_S * NS_PER_S)
    return epoch_ns - turn_ns * max(0, -(-(epoch_ns - spawned_ns) // turn_ns))


class CameraSession:
    """Asks one camera's questions.

    Args:
        client: asks.
        title: of the camera.
        world: what the camera sees.
        spawned_ns: when the camera's process was started; older frames are another camera's.
        since_ns: stamp of its first frame that was received.
        console: shows each answer as it comes.
    """

    def __init__(
        self,
        client: QuestionClient,
        title: str,
        world: KnownWorld,
        *,
        spawned_ns: int,
        since_ns: int,
        console: Console,
    ) -> None:
        self._client, self._title, self._world, self._console = client, title, world, console
        self._spawned_ns, self._since_ns = spawned_ns, since_ns

    def run(self, items: Sequence[QuizItem]) -> list[QuizResult]:
        """Return one result per item, in their order.

        Raises:
            DemoError: a question could not be asked, or no answer came.
        """
        pending, num_tries, results = list(items), Counter[QuizItem](), {}
        end_s = time.monotonic() + SESSION_S
        while pending and time.monotonic() < end_s:
            posed = self._pose(pending)
            if posed is None:
                self._client.rest(0.02)
                continue
            result = self._ask(*posed)
            if not self._is_of_this_camera(result):
                self._client.rest(0.2)
                continue
            num_tries[result.item] += 1
            is_settled = result.answer is None or result.truth is not None
            if is_settled or num_tries[result.item] == MAX_TRIES:
                results[result.item] = result
                pending.remove(result.item)
        if pending:
            raise DemoError(f"{self._title}: no time came to ask about {', '.join(item.kind for item in pending)}")
        return [results[item] for item in items]

    def _pose(self, pending: Sequence[QuizItem]) -> tuple[QuizItem, Question] | None:
        now_ns = self._client.now_ns()
        for item in pending:
            question = pose(self._world, item, now_ns, self._since_ns, SCENE_S)
            if question is not None:
                return item, question
        return None

    def _is_of_this_camera(self, result: QuizResult) -> bool:
        """Whether the node has found this camera, and no longer looks at the one before or at none."""
        is_new = self._client.now_ns() - self._since_ns < DISCOVERY_S * NS_PER_S
        return not is_new or self._has_filmed(result.stamps_ns)

    def _has_filmed(self, stamps_ns: Sequence[int]) -> bool:
        return bool(stamps_ns) and stamps_ns[0] >= self._spawned_ns

    def _ask(self, item: QuizItem, question: Question) -> QuizResult:
        """Ask once, and print the answer: piece by piece where it is streamed."""
        pieces: list[str] = []

        def on_piece(text: str) -> None:
            if not pieces:
                self._console.print(f"  {escape(question.text)} ", end="")
            pieces.append(text)
            self._console.print(escape(text), end="", style="bold", soft_wrap=True)

        answer, error = self._request(item, question, on_piece if item.endpoint == "action" else None)
        stamps_ns = [frame.stamp_ns for frame in answer.frames] if answer is not None else []
        has_filmed = self._has_filmed(stamps_ns)
        if pieces:
            self._console.print()
        elif has_filmed and answer is not None:
            self._console.print(f"  {escape(question.text)} [bold]{escape(answer.text)}")
        truth = find_truth(self._world, item, question, stamps_ns) if has_filmed else None
        return QuizResult(camera=self._title, item=item, asked=question, truth=truth, answer=answer, error=error)

    def _request(
        self, item: QuizItem, question: Question, on_piece: Callable[[str], None] | None
    ) -> tuple[Answer | None, str]:
        """Return the answer, or why there is none.

        Raises:
            DemoError: the node does not respond.
        """
        window = {"window_s": item.window_s} if item.window_s else {}
        try:
            answer = self._client.ask(
                question.text, on_piece, num_frames=item.num_frames, max_tokens=MAX_TOKENS, **window
            )
        except ServerError as error:
            raise DemoError(str(error)) from error
        except NvilaError as error:
            return None, str(error)
        return answer, ""
