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
from nvila_ros.generation.generator import Generator, PreparedPrompt
from nvila_ros.generation.intervals import TimeOdds
from nvila_ros.models.spec import PUBLISHED, Overrides
from nvila_ros.prompt.chat import build_prompt
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.request import ModelInfo, Request, RequestGroup, StopWork, Turn
from nvila_ros.runtime.contract import Engine
from nvila_ros.runtime.loading import AUTO, choose_backend, find_checkpoint, load_engine, open_model
from nvila_ros.serving.conversations import ConversationStore, Exchange, all_visual
from nvila_ros.serving.localization import locate
from nvila_ros.types import Answer, FinishReason, Frame, FrameRef, OnPiece, Query, ShouldStop, Stage
from nvila_ros.video.selection import ANCHORED
from nvila_ros.visual.changes import SHOW_ALL, ChangeRule
from nvila_ros.visual.encode import VisualPrompt
from nvila_ros.visual.frame_encoder import FrameEncoder, FrameLike, SilentProgress
from nvila_ros.visual.known_world import WorldScore, WorldWatch


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLimits:
    """What is kept between questions; without any of it answers are the same, only later.

    Attributes:
        frame_bytes: of what the tower made of frames and tiles.
        num_prefixes: prompts whose keys and values are kept.
        repeat_threshold: see `visual.frame_encoder.FrameEncoder`; above 0 answers may differ.
    """

    frame_bytes: int = 256 << 20
    num_prefixes: int = 2
    repeat_threshold: float = 0.0


class VisionLanguageModel:
    """Answers queries about frames.

    Attributes:
        info: name, backend and precision, as in every answer.
        watch: judges whether what it sees is of its world.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: ChatTokenizer,
        *,
        backend: str,
        limits: CacheLimits = CacheLimits(),
        world: WorldScore | None = None,
        changes: ChangeRule = SHOW_ALL,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.info = ModelInfo(engine.spec.name, backend, engine.precision)
        self._num_positions = engine.spec.decoder.max_positions
        self._tokenizer, self._now_ns = tokenizer, now_ns
        self.watch = WorldWatch(world, engine.spec.name)
        self._frame_encoder = FrameEncoder(engine, limits.frame_bytes, limits.repeat_threshold, self.watch.see, changes)
        self._generator = Generator(engine, tokenizer, limits.num_prefixes)
        self._conversations = ConversationStore()
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
        self.answer_all([Request(query, answers.append, on_piece, should_stop=should_stop)], frames)
        if answers[0].finish_reason is FinishReason.INVALID:
            raise QueryError(answers[0].error)
        return answers[0]

    def answer_all(self, requests: Sequence[Request], frames: Sequence[FrameLike]) -> None:
        """Answer requests about the same frames in capture order, each as if it were alone.

        Args:
            requests: their windows were already resolved into `frames`; one that breaks a rule is answered INVALID. One
                that belongs to a conversation comes alone.
            frames: what the answers are about; none for text alone, or for the frames that a conversation has.

        Raises:
            Exception: as the engine does; all requests are answered before.
        """
        for request in (each for each in requests if each.query.answer_type == "when"):
            locate(self, request, frames)
        requests = [each for each in requests if each.query.answer_type != "when"]
        if not requests:
            return
        shown = frames[len(frames) - self._frame_encoder.num_shown(frames) :]
        refs = _refs(shown)
        for request in requests:
            request.begin(self.info, refs, self._now_ns)
        group = RequestGroup(requests)
        try:
            for request in requests:  # before the tower works for nothing
                self._check_length(request)
            group.check()
            num_encoded = self._frame_encoder.num_encoded
            visual = self._encode(shown, group, requests[0])
            num_encoded = self._frame_encoder.num_encoded - num_encoded
            refs = tuple(refs[index] for index in visual.shown)
            for request in group.active:
                request.frames = refs
                request.count(num_frames_dropped=len(frames) - len(refs), num_frames_encoded=num_encoded)
            self._answer_about(visual, refs, group)
        except StopWork:
            pass
        except Exception as failure:
            group.fail(failure)  # what was streamed so far has an end as well
            raise

    @property
    def frames_per_group(self) -> int:
        """Frames of a clip that the video encoder averages together, 1 for none."""
        return self._frame_encoder.frames_per_group

    @property
    def has_time_tokens(self) -> bool:
        """Whether the model can tell times by itself."""
        return bool(self._tokenizer.time_ids)

    def time_odds(self, question: str, frames: Sequence[FrameLike], request: Request) -> tuple[TimeOdds, list[int]]:
        """Return what the model says of a begin and an end, and the stamps of the frames that it was shown.

        Raises:
            StopWork: nobody waits for the answer any more.
            QueryError: the prompt is too long.
        """
        shown = frames[len(frames) - self._frame_encoder.num_shown(frames) :]
        group = RequestGroup([request])
        visual = self._encode(shown, group, request)
        ids_L = build_prompt(self._tokenizer, [*visual.parts, question])
        if len(ids_L) + 64 > self._num_positions:
            raise QueryError(self._too_long(len(ids_L), 64))
        return self._generator.locate(ids_L, visual.visual_GD, group), [shown[index].stamp_ns for index in visual.shown]

    def has_conversation(self, query: Query) -> bool:
        """Whether a query continues a conversation about the frames that it has."""
        return query.is_follow_up and query.conversation in self._conversations

    def prefetch(self, frame: FrameLike, *, is_alone: bool, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Encode a frame before a question about it comes, alone in its prompt or among others.

        Raises:
            StopWork: it should stop; checked before each tile.
        """

        def check() -> None:
            if should_stop():
                raise StopWork

        self._frame_encoder.encode(frame, SilentProgress(check), is_alone=is_alone)

    def counters(self) -> dict[str, int]:
        """Return how much work was done and how much was saved, since the model was loaded; from any thread."""
        encoder = self._frame_encoder
        return {
            "frames_encoded": encoder.num_encoded,
            "frames_found": encoder.num_found,
            "frames_shared": encoder.num_shared,
            "frames_evicted": encoder.cache.num_evicted,
            "tiles_encoded": encoder.tiles.num_encoded,
            "tiles_found": encoder.tiles.num_found,
            "tiles_shared": encoder.tiles.num_shared,
            "frame_cache_bytes": encoder.num_bytes,
            "prompt_tokens": self._num_tokens,
            "prompt_tokens_reused": self._num_reused,
            "conversations": len(self._conversations),
        }

    def warm_up(self) -> None:
        """Run the model once, so that the first question finds everything allocated."""
        pixels = np.zeros((8, 8, 3), np.uint8)
        self.answer(Query(query_id="warm-up", question="?", max_tokens=1), [Frame(image=pixels, stamp_ns=0)])
        self.watch.forget()

    def remark(self) -> str:
        """Return what people should know of the answers so far, or an empty text; from any thread."""
        return "; ".join(filter(None, (self.watch.warning(), self._frame_encoder.remark)))

    def _encode(self, frames: Sequence[FrameLike], group: RequestGroup, request: Request) -> VisualPrompt:
        return self._frame_encoder.encode_frames(frames, group, is_anchored=request.query.sampling == ANCHORED)

    def _answer_about(self, visual: VisualPrompt, frames: tuple[FrameRef, ...], group: RequestGroup) -> None:
        prompts = []
        group.enter(Stage.PREPROCESS)
        for request in group.active:
            try:
                prompts.append(self._prepare(request, visual))
                request.enter(Stage.QUEUE)  # until the decoder reads it
            except QueryError as error:
                request.end(FinishReason.INVALID, str(error))
            except BackendError as error:  # what this one needs is not installed; the others do not need it
                request.end(FinishReason.FAILED, str(error))
        try:
            self._generator.generate(prompts, group)
        finally:
            for request in (prompt.request for prompt in prompts):
                self._num_tokens += request.counts.num_prompt_tokens
                self._num_reused += request.counts.num_reused_tokens
                self._remember(request, visual, frames)

    def _check_length(self, request: Request) -> None:
        query = request.query
        num_tokens = len(self._tokenizer.encode(query.question))
        is_text = not query.choices and not query.answer_type
        if num_tokens + (query.max_tokens if is_text else 0) > self._num_positions:
            request.end(FinishReason.INVALID, self._too_long(num_tokens, query.max_tokens))

    def _too_long(self, num_tokens: int, num_more: int) -> str:
        return (
            f"prompt and answer must fit {self._num_positions} positions, got {num_tokens} and {num_more}; "
            "ask about fewer frames, ask shorter, lower max_tokens or begin a new conversation"
        )

    def _prepare(self, request: Request, visual: VisualPrompt) -> PreparedPrompt:
        """Return the prompt of a request, behind the conversation that it belongs to.

        Raises:
            QueryError: the question is empty, too long, or belongs to a conversation that is full.
        """
        query, tokenizer = request.query, self._tokenizer
        if not query.question.strip():
            raise QueryError("a question must hold text, got none")
        history = self._history(request, visual)
        turns = [([*exchange.visual.parts, exchange.question], exchange.answer) for exchange in history]
        ids_L = build_prompt(tokenizer, [*visual.parts, query.question], turns, system=query.system)
        prompt = self._generator.prepare(request, ids_L, all_visual(history, visual))
        if len(ids_L) + prompt.num_more > self._num_positions:
            raise QueryError(self._too_long(len(ids_L), prompt.num_more))
        known = [frame for exchange in history for frame in exchange.frames]
        request.frames = tuple(sorted([*known, *request.frames], key=lambda frame: frame.stamp_ns))
        request.count(num_visual_tokens=len(prompt.visual_GD), num_prompt_tokens=len(ids_L))
        return prompt

    def _history(self, request: Request, visual: VisualPrompt) -> tuple[Exchange, ...]:
        """Return what was said before: of the conversation that the model keeps, and what the request brings along.

        Raises:
            QueryError: the conversation is full.
        """
        query = request.query
        kept = self._conversations.history(query.conversation, visual) if query.conversation else ()
        return (*kept, *(self._show_turn(turn, request) for turn in request.turns))

    def _show_turn(self, turn: Turn, request: Request) -> Exchange:
        visual = self._frame_encoder.encode_frames(turn.frames, RequestGroup([request]))
        refs = _refs([turn.frames[index] for index in visual.shown])
        return Exchange(visual, refs, turn.question, turn.answer)

    def _remember(self, request: Request, visual: VisualPrompt, frames: tuple[FrameRef, ...]) -> None:
        """Keep the exchange, where it belongs to a conversation and came to its end."""
        query, answer = request.query, request.answer
        if query.conversation and answer is not None and answer.finish_reason.is_answered:
            self._conversations.add(query.conversation, Exchange(visual, frames, query.question, answer.text))


def _refs(frames: Sequence[FrameLike]) -> tuple[FrameRef, ...]:
    return tuple(FrameRef(stamp_ns=f.stamp_ns, camera=f.camera, frame_id=f.frame_id) for f in frames)


def load_model(
    model: str,
    *,
    backend: str = AUTO,
    precision: str = AUTO,
    threads: int = 0,
    overrides: Overrides = PUBLISHED,
    limits: CacheLimits = CacheLimits(),
) -> VisionLanguageModel:
    """Load a checkpoint or a build, by its folder or its name, for a backend.

    Raises:
        CheckpointError: there is no such checkpoint, or it is not whole.
        BackendError: the backend is unknown or not installed, or the precision is none that it offers.
        ConfigError: what is left out of a clip is out of its range.
    """
    changes = ChangeRule(overrides.change_threshold, overrides.key_every)
    source = open_model(find_checkpoint(model))
    backend = choose_backend(source, backend)
    source = replace(source, spec=overrides.apply(source.spec))
    tokenizer = ChatTokenizer.from_folder(source.tokenizer_folder)
    engine = load_engine(source, backend, threads, precision)
    world = WorldScore.of(source.path, source.spec.decoder.width)
    return VisionLanguageModel(engine, tokenizer, backend=backend, limits=limits, world=world, changes=changes)
