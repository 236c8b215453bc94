"""The whole flow on one page: frames and questions in, answers with their times and counts out.

    frames -> visual tokens -> prompts -> what they share -> answers

Questions about the same frames are answered together. A `VisionLanguageModel` owns one engine and its caches and
belongs to one thread. It reads no clock but the steady one that it is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nvila_ros.errors import BackendError, QueryError
from nvila_ros.generation.generator import Generator, Plan
from nvila_ros.models.spec import PUBLISHED, Overrides
from nvila_ros.prompt.chat import build_prompt
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.request import Ask, Author, Ledger, Ledgers, StopWork
from nvila_ros.runtime.contract import Engine
from nvila_ros.runtime.loading import AUTO, choose_backend, find_checkpoint, load_engine, open_model
from nvila_ros.serving.conversations import Conversations, Turn, all_visual
from nvila_ros.types import Answer, FinishReason, Frame, FrameRef, OnPiece, Query, ShouldStop
from nvila_ros.visual.encode import VisualPrompt
from nvila_ros.visual.frame_encoder import FrameEncoder, FrameLike, SilentProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLimits:
    """What is kept between questions; without any of it answers are the same, only later.

    Attributes:
        frame_bytes: of visual tokens of frames.
        num_prefixes: prompts whose keys and values are kept.
        repeat_threshold: see `visual.frame_encoder.FrameEncoder`; above 0 answers may differ.
    """

    frame_bytes: int = 256 << 20
    num_prefixes: int = 2
    repeat_threshold: float = 0.0


class VisionLanguageModel:
    """Answers queries about frames."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: ChatTokenizer,
        *,
        backend: str,
        limits: CacheLimits = CacheLimits(),
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.model, self.backend, self.precision = engine.spec.name, backend, engine.precision
        self._num_positions = engine.spec.decoder.max_positions
        self._tokenizer, self._now_ns = tokenizer, now_ns
        self._frame_encoder = FrameEncoder(engine, limits.frame_bytes, limits.repeat_threshold)
        self._generator = Generator(engine, tokenizer, limits.num_prefixes)
        self._conversations = Conversations()
        self._num_tokens = self._num_reused = 0

    def answer(
        self,
        query: Query,
        frames: Sequence[FrameLike],
        *,
        on_piece: OnPiece | None = None,
        should_stop: ShouldStop | None = None,
    ) -> Answer:
        """Answer one query about frames in capture order; without frames, about text alone.

        Returns:
            The answer; stopped amid its work, it carries the text so far and the reason.

        Raises:
            QueryError: the question is empty, or prompt and answer exceed the model's positions.
        """
        answers: list[Answer] = []
        self.answer_all(
            [Ask(query=query, on_answer=answers.append, on_piece=on_piece, should_stop=should_stop)], frames
        )
        if answers[0].finish_reason is FinishReason.INVALID:
            raise QueryError(answers[0].error)
        return answers[0]

    def answer_all(self, asks: Sequence[Ask], frames: Sequence[FrameLike]) -> None:
        """Answer queries about the same frames in capture order, each as if it were alone.

        Args:
            asks: their windows were already resolved into `frames`; a query that breaks a rule is answered INVALID. One
                that belongs to a conversation comes alone.
            frames: what the answers are about; none for text alone, or for the frames that a conversation has.

        Raises:
            Exception: as the engine does; all queries are answered before.
        """
        shown = frames[len(frames) - self._frame_encoder.num_shown(frames) :]
        author = Author(self.model, self.backend, self.precision)
        refs = tuple(FrameRef(stamp_ns=f.stamp_ns, camera=f.camera, frame_id=f.frame_id) for f in shown)
        ledgers = [Ledger(ask, author, self._now_ns, refs) for ask in asks]
        work = Ledgers(ledgers)
        try:
            for ledger in ledgers:  # before the tower works for nothing
                self._check_length(ledger)
            work.check()
            num_encoded = self._frame_encoder.num_encoded
            seen = self._frame_encoder.see(shown, work)
            num_encoded = self._frame_encoder.num_encoded - num_encoded
            for ledger in work.open:
                ledger.count(num_frames_dropped=len(frames) - len(shown), num_frames_encoded=num_encoded)
            self._answer_about(seen, refs, work)
        except StopWork:
            pass
        except Exception as failure:
            work.fail(failure)  # what was told of it so far has an end as well
            raise

    def knows(self, query: Query) -> bool:
        """Whether a query goes on with a conversation about the frames that it has."""
        return query.is_follow_up and query.conversation in self._conversations

    def prefetch(self, frame: FrameLike, *, is_alone: bool, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Encode a frame before a question about it comes, alone in its prompt or among others.

        Raises:
            StopWork: it should stop; asked before each tile.
        """

        def check() -> None:
            if should_stop():
                raise StopWork

        self._frame_encoder.encode(frame, SilentProgress(check), is_alone=is_alone)

    def counters(self) -> dict[str, int]:
        """Return how much work was done and how much was spared, since the model was loaded; from any thread."""
        frame_encoder = self._frame_encoder
        return {
            "frames_encoded": frame_encoder.num_encoded,
            "frames_found": frame_encoder.num_found,
            "frames_shared": frame_encoder.num_shared,
            "frames_evicted": frame_encoder.cache.num_evicted,
            "frame_cache_bytes": frame_encoder.cache.num_bytes,
            "prompt_tokens": self._num_tokens,
            "prompt_tokens_reused": self._num_reused,
            "conversations": len(self._conversations),
        }

    def warm_up(self) -> None:
        """Run the model once, so that the first question finds everything allocated."""
        pixels = np.zeros((8, 8, 3), np.uint8)
        self.answer(Query(query_id="warm-up", question="?", max_tokens=1), [Frame(image=pixels, stamp_ns=0)])

    def _answer_about(self, seen: VisualPrompt, frames: tuple[FrameRef, ...], work: Ledgers) -> None:
        plans = []
        work.enter("preprocess_s")
        for ledger in work.open:
            try:
                plans.append(self._plan(ledger, seen))
                ledger.enter("queue_s")
            except QueryError as error:
                ledger.end(FinishReason.INVALID, str(error))
            except BackendError as error:  # what this one needs is not installed; the others do not need it
                ledger.end(FinishReason.FAILED, str(error))
        try:
            self._generator.say(plans, work)
        finally:
            for plan in plans:
                self._num_tokens += plan.ledger.counts.num_prompt_tokens
                self._num_reused += plan.ledger.counts.num_reused_tokens
                self._remember(plan.ledger, seen, frames)

    def _check_length(self, ledger: Ledger) -> None:
        num_tokens, num_more = len(self._tokenizer.encode(ledger.query.question)), ledger.query.max_tokens
        is_told = not ledger.query.choices and not ledger.query.answer_type
        if num_tokens + (num_more if is_told else 0) > self._num_positions:
            ledger.end(FinishReason.INVALID, self._too_long(num_tokens, num_more))

    def _too_long(self, num_tokens: int, num_more: int) -> str:
        return (
            f"prompt and answer must fit {self._num_positions} positions, got {num_tokens} and {num_more}; "
            "ask about fewer frames, ask shorter, lower max_tokens or begin a new conversation"
        )

    def _plan(self, ledger: Ledger, seen: VisualPrompt) -> Plan:
        """Return the prompt of a query, with the conversation that it belongs to."""
        query, tokenizer = ledger.query, self._tokenizer
        if not query.question.strip():
            raise QueryError("a question must hold text, got none")
        turns = self._conversations.turns(query.conversation, seen) if query.conversation else ()
        told = [([*turn.seen.parts, turn.question], turn.answer) for turn in turns]
        ids_L = build_prompt(tokenizer, [*seen.parts, query.question], told)
        plan = self._generator.plan(ledger, ids_L, all_visual(turns, seen))
        if len(ids_L) + plan.num_more > self._num_positions:
            raise QueryError(self._too_long(len(ids_L), plan.num_more))
        known = [frame for turn in turns for frame in turn.frames]
        ledger.frames = tuple(sorted([*known, *ledger.frames], key=lambda frame: frame.stamp_ns))
        ledger.count(num_visual_tokens=len(plan.visual_GD), num_prompt_tokens=len(ids_L))
        return plan

    def _remember(self, ledger: Ledger, seen: VisualPrompt, frames: tuple[FrameRef, ...]) -> None:
        """Keep what was said, where it belongs to a conversation and was said to its end."""
        query, answer = ledger.query, ledger.answer
        if query.conversation and answer is not None and answer.finish_reason.is_answered:
            self._conversations.add(query.conversation, Turn(seen, frames, query.question, answer.text))


def load_model(
    model: str,
    *,
    backend: str = AUTO,
    threads: int = 0,
    overrides: Overrides = PUBLISHED,
    limits: CacheLimits = CacheLimits(),
) -> VisionLanguageModel:
    """Load a checkpoint or a build, by its folder or its name, for a backend.

    Raises:
        CheckpointError: there is no such checkpoint, or it is not whole.
        BackendError: the backend is unknown or not installed.
    """
    source = open_model(find_checkpoint(model))
    backend = choose_backend(source, backend)
    source = replace(source, spec=overrides.apply(source.spec))
    tokenizer = ChatTokenizer.from_folder(source.tokenizer_folder)
    return VisionLanguageModel(load_engine(source, backend, threads), tokenizer, backend=backend, limits=limits)
