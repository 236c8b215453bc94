"""Prompts to answers: what prompts share is read once, and each answer continues behind it.

A single text is decoded in one long sequence, whose tokens stay in the prefix cache for whatever follows. Everything
else branches: all questions and all their choices go through the decoder in one call, then texts side by side, a token
each.

Shapes: L tokens, G visual tokens, D decoder width, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from nvila_ros.errors import CheckpointError, QueryError, ShapeError
from nvila_ros.generation.branches import Branch, TreeBatch
from nvila_ros.generation.decode import check_finite, log_total, most_likely, score_sequences
from nvila_ros.generation.grammar import Constraint, Grammars
from nvila_ros.generation.intervals import NUM_STARTS, TimeOdds, restrict
from nvila_ros.generation.prefix import CachedPrefix, PrefixCache, identify, shared_length
from nvila_ros.prompt.answer_kinds import Constrained, Scored
from nvila_ros.prompt.chat import PLACEHOLDER
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.request import Request, RequestGroup
from nvila_ros.runtime.contract import Engine, TopEngine
from nvila_ros.types import FinishReason, Stage, TokenLogprob


@dataclass(slots=True)
class PreparedPrompt:
    """A request with all that the decoder needs for it.

    Attributes:
        ids_L: its whole prompt.
        visual_GD: stands in place of the placeholders.
        sequences: token ids of each spelling of each choice with its stop token; empty where text is decoded.
        constraint: what the text must follow, if anything.
        branch: its rows behind the shared prefix.
    """

    request: Request
    ids_L: np.ndarray
    visual_GD: np.ndarray
    sequences: list[list[int]]
    constraint: Constraint | None
    branch: Branch = field(default_factory=Branch)

    @property
    def num_more(self) -> int:
        """Rows that its answer may take behind the prompt."""
        return sum(map(len, self.sequences)) or self.request.query.max_tokens


class Generator:
    """Owns the decoder's caches."""

    def __init__(self, engine: Engine, tokenizer: ChatTokenizer, num_prefixes: int) -> None:
        self._engine, self._tokenizer = engine, tokenizer
        vocab_size = engine.spec.decoder.vocab_size
        self._never_sampled = tokenizer.never_sampled(vocab_size)
        self._never_untimed = np.union1d(self._never_sampled, np.array(tokenizer.time_ids, np.int64))
        last = max(tokenizer.time_ids, default=0)
        if last >= vocab_size:
            raise CheckpointError(f"time tokens must be rows of the embedding table, got id {last} of {vocab_size}")
        self._grammars = Grammars(tokenizer, vocab_size, tokenizer.answer_end)
        self._top = engine if isinstance(engine, TopEngine) else None
        self.prefixes = PrefixCache(engine, num_prefixes)

    def prepare(self, request: Request, ids_L: np.ndarray, visual_GD: np.ndarray) -> PreparedPrompt:
        """Return a request with its prompt, ready for the decoder.

        Raises:
            QueryError: its fields describe no kind of answer, or no grammar can be made of its schema.
        """
        kind = request.kind
        spellings = kind.spellings if isinstance(kind, Scored) else ()
        sequences = [[*self._tokenizer.encode(spelling), self._tokenizer.answer_end] for spelling in spellings]
        constraint = self._grammars.constrain(kind) if isinstance(kind, Constrained) else None
        return PreparedPrompt(request, ids_L, visual_GD, sequences, constraint)

    def generate(self, prompts: Sequence[PreparedPrompt], group: RequestGroup) -> None:
        """Answer requests whose prompts show the same frames; each is ended.

        Raises:
            StopWork: nobody waits for an answer any more.
            NumericsError: the model computed a NaN or an infinity.
        """
        if len(prompts) == 1 and not prompts[0].sequences:
            self._decode(prompts[0], group)
            return
        for fitting in _split_to_fit(prompts, self._engine.spec.decoder.max_positions):
            self._branch(fitting, group)

    def _decode(self, prompt: PreparedPrompt, group: RequestGroup) -> None:
        """Prefill one prompt and decode behind it until the stop token or the limit."""
        request = prompt.request
        request.enter(Stage.PREFILL)
        embeds_LD = embed_prompt(self._engine, prompt.ids_L, prompt.visual_GD)
        keys_L2 = identify(prompt.ids_L, prompt.visual_GD)
        # The last token is read in any case, since its logits are wanted.
        with self.prefixes.take(keys_L2[:-1], len(prompt.ids_L) + prompt.num_more) as prefix:
            request.count(num_reused_tokens=prefix.length)
            logits_V = prefix.prefill(embeds_LD, keys_L2, group.check)
            request.enter(Stage.DECODE)
            token = self._choose_token(prompt, logits_V)
            while token is not None and self._emit_token(request, token):
                group.check()
                token = self._next_token(prefix, prompt, token)

    def _branch(self, prompts: Sequence[PreparedPrompt], group: RequestGroup) -> None:
        """Prefill what the prompts share, then score choices and decode texts side by side."""
        own = RequestGroup(prompt.request for prompt in prompts)
        own.enter(Stage.PREFILL)
        visual_GD = prompts[0].visual_GD
        first_L2 = identify(prompts[0].ids_L, visual_GD)
        shared_L = self._shared(prompts, first_L2)
        keys_L2 = first_L2[: len(shared_L)]
        num_rows = sum(len(prompt.ids_L) - len(shared_L) + prompt.num_more for prompt in prompts)
        with self.prefixes.take(keys_L2, len(shared_L) + num_rows) as prefix:
            for prompt in prompts:
                prompt.request.count(num_reused_tokens=prefix.length)
            prefix.prefill(embed_prompt(self._engine, shared_L, visual_GD), keys_L2, group.check)
            batch = TreeBatch(self._engine, prefix.cache)
            texts = self._begin(batch, prompts, len(shared_L), group, own)
            while texts:
                group.check()
                texts = self._step(batch, texts)

    def _shared(self, prompts: Sequence[PreparedPrompt], first_L2: np.ndarray) -> np.ndarray:
        """Return the ids that all prompts begin with; of a single one, those of its media, or all that is cached.

        Args:
            prompts: of the requests.
            first_L2: identities of the first one's tokens.
        """
        first_L = prompts[0].ids_L
        if len(prompts) > 1:
            return first_L[: min(shared_length(first_L[:-1, None], prompt.ids_L[:-1, None]) for prompt in prompts)]
        num_media = int(np.flatnonzero(first_L == PLACEHOLDER).max(initial=-1)) + 1
        return first_L[: min(max(num_media, self.prefixes.find(first_L2)), len(first_L) - 1)]

    def _begin(
        self,
        batch: TreeBatch,
        prompts: Sequence[PreparedPrompt],
        num_shared: int,
        group: RequestGroup,
        own: RequestGroup,
    ) -> list[tuple[PreparedPrompt, np.ndarray]]:
        """Read the questions and all choices; return the texts to decode, with the logits of their first token."""
        for prompt in prompts:
            batch.add(prompt.branch, prompt.ids_L[num_shared:].tolist())
            for ids in prompt.sequences:
                batch.score(prompt.branch.fork(), ids)
        logits, scores = batch.forward()
        own.enter(Stage.DECODE)
        group.check()
        log_probs = (score.log_prob for score in scores)
        for prompt, logits_V in zip(prompts, logits, strict=True):
            own_log_probs = list(itertools.islice(log_probs, sum(len(ids) - 1 for ids in prompt.sequences)))
            if prompt.sequences and prompt.request.answer is None:
                _choose(prompt, logits_V, own_log_probs)
        return [(prompt, logits_V) for prompt, logits_V in zip(prompts, logits, strict=True) if not prompt.sequences]

    def _step(
        self, batch: TreeBatch, texts: Sequence[tuple[PreparedPrompt, np.ndarray]]
    ) -> list[tuple[PreparedPrompt, np.ndarray]]:
        """Emit the next token of each text that has not ended; return those that go on, with their next logits."""
        going = []
        for prompt, logits_V in texts:
            token = None if prompt.request.answer else self._choose_token(prompt, logits_V)
            if token is not None and self._emit_token(prompt.request, token):
                batch.add(prompt.branch, [token])
                going.append(prompt)
        return list(zip(going, batch.forward()[0], strict=True))

    def _next_token(self, prefix: CachedPrefix, prompt: PreparedPrompt, token: int) -> int | None:
        """Append a token and return the one after it."""
        is_judged = prompt.constraint is not None or prompt.request.query.top_logprobs is not None
        if is_judged or self._top is None:
            return self._choose_token(prompt, prefix.append_token(token))
        allowed = [best for best in prefix.append_top(self._top, token) if best not in self._never(prompt.request)]
        return allowed[0] if allowed else self._choose_token(prompt, self._top.fetch_logits())

    def _choose_token(self, prompt: PreparedPrompt, logits_V: np.ndarray) -> int | None:
        """Return the likeliest token that may come next; None where the answer ends, since nothing may."""
        if prompt.constraint is None:
            token = most_likely(logits_V, self._never(prompt.request))
            self._note_logprob(prompt.request, logits_V, token)
            return token
        check_finite(logits_V)
        try:
            token = int(np.where(prompt.constraint.allowed(), logits_V, -np.inf).argmax())
            if token not in self._tokenizer.stop_ids:
                prompt.constraint.push(token)
        except QueryError as error:  # a schema may turn out too complex only as it is followed
            prompt.request.end(FinishReason.INVALID, str(error))
            return None
        self._note_logprob(prompt.request, logits_V, token)
        return token

    def _note_logprob(self, request: Request, logits_V: np.ndarray, token: int) -> None:
        """Keep how likely a chosen token was, where that was asked for and it is part of the answer."""
        num_top = request.query.top_logprobs
        if num_top is None or token in self._tokenizer.stop_ids:
            return
        total = log_total(logits_V)
        likeliest = np.argpartition(-logits_V, num_top)[:num_top]
        ordered = likeliest[np.lexsort((likeliest, -logits_V[likeliest]))].tolist()
        top = tuple((self._token_bytes[i], float(logits_V[i]) - total) for i in ordered)
        request.note_logprob(TokenLogprob(self._token_bytes[token], float(logits_V[token]) - total, top))

    @cached_property
    def _token_bytes(self) -> list[bytes]:
        return self._tokenizer.token_bytes(self._engine.spec.decoder.vocab_size)

    def _never(self, request: Request) -> np.ndarray:
        """Return the ids that a text must not hold: times belong to clips."""
        return self._never_sampled if _clip_stamps(request) else self._never_untimed

    def locate(self, ids_L: np.ndarray, visual_GD: np.ndarray, group: RequestGroup) -> TimeOdds:
        """Return the probabilities of an event's begin and end behind a prompt that asks for them.

        An answer is a time token, a blank and a second one, not before the first; nothing else is looked at.

        Raises:
            StopWork: nobody waits for the answer any more.
            NumericsError: the model computed a NaN or an infinity.
        """
        times, blank = self._tokenizer.time_ids, self._tokenizer.encode(" ")
        keys_L2 = identify(ids_L, visual_GD)
        num_starts = min(NUM_STARTS, len(times))
        with self.prefixes.take(keys_L2[:-1], len(ids_L) + num_starts * (1 + len(blank))) as prefix:
            logits_V = prefix.prefill(embed_prompt(self._engine, ids_L, visual_GD), keys_L2, group.check)
            check_finite(logits_V)
            start_N = restrict(logits_V, times)
            starts_K = np.argsort(-start_N, kind="stable")[:num_starts]
            batch = TreeBatch(self._engine, prefix.cache)
            for start in starts_K:
                batch.add(Branch(), [times[start], *blank])
            group.check()
            rows = zip(batch.forward()[0], starts_K.tolist(), strict=True)
            end_KN = [restrict(logits_V, times, start) for logits_V, start in rows]
        return TimeOdds(start_N, starts_K, np.stack(end_KN))

    def _emit_token(self, request: Request, token: int) -> bool:
        """Emit a token and return whether the answer goes on behind it."""
        request.stream = request.stream or self._tokenizer.text_stream(request.query.stop, _clip_stamps(request))
        if token in self._tokenizer.stop_ids:
            request.end(FinishReason.STOP)
            return False
        request.count_token()
        request.emit(request.stream.push(token))
        if request.stream.is_stopped:
            request.end(FinishReason.STOP)
            return False
        if request.counts.num_answer_tokens == request.query.max_tokens:
            request.end(FinishReason.LENGTH)
            return False
        return True


def _clip_stamps(request: Request) -> tuple[int, ...]:
    """Return the stamps of the clip that a request is about; none of a single frame, or of several cameras."""
    is_clip = len(request.frames) > 1 and len({frame.camera for frame in request.frames}) == 1
    return tuple(frame.stamp_ns for frame in request.frames) if is_clip else ()


def _choose(prompt: PreparedPrompt, logits_V: np.ndarray, log_probs: Sequence[float]) -> None:
    """Answer with the likeliest of the choices.

    Raises:
        NumericsError: a logit is NaN or infinite.
    """
    request, kind = prompt.request, prompt.request.kind
    assert isinstance(kind, Scored), "only choices are scored"
    by_spelling = score_sequences(logits_V, iter(log_probs), prompt.sequences)
    probabilities = kind.combine(by_spelling)
    best = int(probabilities.argmax())
    spelling = int(np.where(kind.owners == best, by_spelling, -1).argmax())
    request.choices = kind.names
    request.probabilities = tuple(probabilities.tolist())
    request.count(num_answer_tokens=len(prompt.sequences[spelling]) - 1)
    request.emit(kind.names[best])
    request.end(FinishReason.STOP)


def _split_to_fit(prompts: Sequence[PreparedPrompt], num_rows: int) -> Iterator[list[PreparedPrompt]]:
    """Yield prompts in lists whose prompts and answers fit a cache of so many rows, however little they share."""
    fitting: list[PreparedPrompt] = []
    taken = 0
    for prompt in prompts:
        needed = len(prompt.ids_L) - len(prompt.visual_GD) + prompt.num_more
        if fitting and taken + needed > num_rows - len(prompt.visual_GD):
            yield fitting
            fitting, taken = [], 0
        fitting.append(prompt)
        taken += needed
    if fitting:
        yield fitting


def embed_prompt(engine: Engine, ids_L: np.ndarray, visual_GD: np.ndarray) -> np.ndarray:
    """Return the embeddings of a prompt with visual tokens in place of its placeholders, (L, D).

    Raises:
        ShapeError: the counts differ; going on would answer about the wrong pixels.
    """
    is_placeholder_L = ids_L == PLACEHOLDER
    if is_placeholder_L.sum() != len(visual_GD):
        raise ShapeError(
            f"one placeholder per visual token, got {is_placeholder_L.sum()} placeholders and {len(visual_GD)} tokens"
        )
    embeds_LD = engine.embed(np.where(is_placeholder_L, 0, ids_L)).copy()
    embeds_LD[is_placeholder_L] = visual_GD
    return embeds_LD
