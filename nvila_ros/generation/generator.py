"""Prompts to answers: what prompts share is read once, and each answer goes its own way behind it.

A single text is told in one long run, which leaves its tokens in the prefix cache for whatever follows. Everything else
branches: all questions and all their choices go through the decoder in one call, then texts side by side, a token each.

Shapes: L tokens, G visual tokens, R tokens whose logits are wanted, D decoder width, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from nvila_ros.errors import QueryError, ShapeError
from nvila_ros.generation.branches import Branch, TreeBatch
from nvila_ros.generation.decode import most_likely, score_sequences
from nvila_ros.generation.grammar import Constraint, Grammars
from nvila_ros.generation.pieces import TextStream
from nvila_ros.generation.prefix import CachedPrefix, PrefixCache, identify, shared_length
from nvila_ros.prompt.answer_kinds import AnswerKind, Constrained, Scored, parse_kind
from nvila_ros.prompt.chat import PLACEHOLDER
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.request import Ledger, Ledgers
from nvila_ros.runtime.contract import Engine, TopEngine
from nvila_ros.types import FinishReason


@dataclass(slots=True)
class Plan:
    """One query on its way.

    Attributes:
        ids_L: its whole prompt.
        visual_GD: what stands in place of the placeholders.
        kind: what may be answered.
        sequences: token ids of each spelling of each choice with its stop token; none where text is told.
        constraint: what the text must keep to, if anything.
        branch: its rows behind the shared prefix.
    """

    ledger: Ledger
    ids_L: np.ndarray
    visual_GD: np.ndarray
    kind: AnswerKind
    sequences: list[list[int]]
    constraint: Constraint | None
    branch: Branch = field(default_factory=Branch)

    @property
    def num_more(self) -> int:
        """Rows that its answer may take behind the prompt."""
        return sum(map(len, self.sequences)) or self.ledger.query.max_tokens


class Generator:
    """Owns the decoder's caches."""

    def __init__(self, engine: Engine, tokenizer: ChatTokenizer, num_prefixes: int) -> None:
        self._engine, self._tokenizer = engine, tokenizer
        vocab_size = engine.spec.decoder.vocab_size
        self._never_sampled = tokenizer.never_sampled(vocab_size)
        self._grammars = Grammars(tokenizer, vocab_size, tokenizer.im_end)
        self._top = engine if isinstance(engine, TopEngine) else None
        self.prefixes = PrefixCache(engine, num_prefixes)

    def plan(self, ledger: Ledger, ids_L: np.ndarray, visual_GD: np.ndarray) -> Plan:
        """Return how a query is to be answered, told its prompt.

        Raises:
            QueryError: what may be answered is not well told, or no grammar can be made of it.
        """
        query = ledger.query
        kind = parse_kind(query.answer_type, query.choices, query.minimum, query.maximum, query.json_schema)
        spellings = kind.spellings if isinstance(kind, Scored) else ()
        sequences = [[*self._tokenizer.encode(spelling), self._tokenizer.im_end] for spelling in spellings]
        constraint = self._grammars.constrain(kind) if isinstance(kind, Constrained) else None
        return Plan(ledger, ids_L, visual_GD, kind, sequences, constraint)

    def say(self, plans: Sequence[Plan], work: Ledgers) -> None:
        """Answer queries whose prompts show the same frames; each plan's ledger is ended.

        Raises:
            StopWork: nobody waits for an answer any more.
        """
        if len(plans) == 1 and not plans[0].sequences:
            self._tell(plans[0], work)
            return
        for group in _groups(plans, self._engine.spec.decoder.max_positions):
            self._branch(group, work)

    def _tell(self, plan: Plan, work: Ledgers) -> None:
        """Read one prompt and decode behind it until the stop token or the limit."""
        plan.ledger.enter("prefill_s")
        embeds_LD = embed_prompt(self._engine, plan.ids_L, plan.visual_GD)
        keys_L2 = identify(plan.ids_L, plan.visual_GD)
        # The last token is read in any case, since its logits are wanted.
        with self.prefixes.take(keys_L2[:-1], len(plan.ids_L) + plan.num_more) as trunk:
            plan.ledger.count(num_reused_tokens=trunk.length)
            logits_V = trunk.prefill(embeds_LD, keys_L2, work.check)
            plan.ledger.enter("decode_s")
            token = self._choose_token(plan, logits_V)
            while token is not None and self._tell_token(plan, token):
                work.check()
                token = self._following(trunk, plan, token)

    def _branch(self, plans: Sequence[Plan], work: Ledgers) -> None:
        """Read what the prompts share, then score choices and decode texts side by side."""
        own = Ledgers(plan.ledger for plan in plans)
        own.enter("prefill_s")
        visual_GD = plans[0].visual_GD
        first_L2 = identify(plans[0].ids_L, visual_GD)
        shared_L = self._shared(plans, first_L2)
        keys_L2 = first_L2[: len(shared_L)]
        num_rows = sum(len(plan.ids_L) - len(shared_L) + plan.num_more for plan in plans)
        with self.prefixes.take(keys_L2, len(shared_L) + num_rows) as trunk:
            for plan in plans:
                plan.ledger.count(num_reused_tokens=trunk.length)
            trunk.prefill(embed_prompt(self._engine, shared_L, visual_GD), keys_L2, work.check)
            grove = TreeBatch(self._engine, trunk.cache)
            texts = self._begin(grove, plans, len(shared_L), work, own)
            while texts:
                work.check()
                texts = self._step(grove, texts)

    def _shared(self, plans: Sequence[Plan], first_L2: np.ndarray) -> np.ndarray:
        """Return the ids that all prompts begin with; of one alone, those of its media, or all that is known.

        Args:
            plans: of the queries.
            first_L2: identities of the first one's prompt.
        """
        first_L = plans[0].ids_L
        if len(plans) > 1:
            return first_L[: min(shared_length(first_L[:-1, None], plan.ids_L[:-1, None]) for plan in plans)]
        num_media = int(np.flatnonzero(first_L == PLACEHOLDER).max(initial=-1)) + 1
        return first_L[: min(max(num_media, self.prefixes.find(first_L2)), len(first_L) - 1)]

    def _begin(
        self, grove: TreeBatch, plans: Sequence[Plan], num_shared: int, work: Ledgers, own: Ledgers
    ) -> list[tuple[Plan, np.ndarray]]:
        """Read the questions and all choices; return the texts to be told, with the logits of their first token."""
        for plan in plans:
            grove.add(plan.branch, plan.ids_L[num_shared:].tolist())
            for ids in plan.sequences:
                grove.follow(plan.branch.fork(), ids)
        logits, followed = grove.grow()
        own.enter("decode_s")
        work.check()
        log_probs = (each.log_prob for each in followed)
        for plan, logits_V in zip(plans, logits, strict=True):
            mine = list(itertools.islice(log_probs, sum(len(ids) - 1 for ids in plan.sequences)))
            if plan.sequences and plan.ledger.answer is None:
                _choose(plan, logits_V, mine)
        return [(plan, logits_V) for plan, logits_V in zip(plans, logits, strict=True) if not plan.sequences]

    def _step(self, grove: TreeBatch, texts: Sequence[tuple[Plan, np.ndarray]]) -> list[tuple[Plan, np.ndarray]]:
        """Tell the next token of each text that has not ended; return those that go on, with their next logits."""
        going = []
        for plan, logits_V in texts:
            token = None if plan.ledger.answer else self._choose_token(plan, logits_V)
            if token is not None and self._tell_token(plan, token):
                grove.add(plan.branch, [token])
                going.append(plan)
        return list(zip(going, grove.grow()[0], strict=True))

    def _following(self, trunk: CachedPrefix, plan: Plan, token: int) -> int | None:
        """Append a token and return the one after it."""
        if plan.constraint is not None or self._top is None:
            return self._choose_token(plan, trunk.append_token(token))
        allowed = [best for best in trunk.append_top(self._top, token) if best not in self._never_sampled]
        return allowed[0] if allowed else self._choose_token(plan, self._top.fetch_logits())

    def _choose_token(self, plan: Plan, logits_V: np.ndarray) -> int | None:
        """Return the likeliest token that may come next; None where the answer ends, since nothing may."""
        if plan.constraint is None:
            return most_likely(logits_V, self._never_sampled)
        try:
            token = int(np.where(plan.constraint.allowed(), logits_V, -np.inf).argmax())
            if token != self._tokenizer.im_end:
                plan.constraint.push(token)
        except QueryError as error:  # a schema may turn out too complex only as it is followed
            plan.ledger.end(FinishReason.INVALID, str(error))
            return None
        return token

    def _tell_token(self, plan: Plan, token: int) -> bool:
        """Tell a token and return whether the answer goes on behind it."""
        ledger = plan.ledger
        ledger.stream = ledger.stream or TextStream(self._tokenizer.decode)
        if token == self._tokenizer.im_end:
            ledger.end(FinishReason.STOP)
            return False
        ledger.count_token()
        ledger.tell(ledger.stream.push(token))
        if ledger.counts.num_answer_tokens == ledger.query.max_tokens:
            ledger.end(FinishReason.LENGTH)
            return False
        return True


def _choose(plan: Plan, logits_V: np.ndarray, log_probs: Sequence[float]) -> None:
    """Answer with the likeliest of the choices."""
    assert isinstance(plan.kind, Scored), "only choices are scored"
    spelled = score_sequences(logits_V, iter(log_probs), plan.sequences)
    probabilities = plan.kind.combine(spelled)
    best = int(probabilities.argmax())
    told = int(np.where(plan.kind.owners == best, spelled, -1).argmax())
    plan.ledger.choices = plan.kind.names
    plan.ledger.probabilities = tuple(probabilities.tolist())
    plan.ledger.count(num_answer_tokens=len(plan.sequences[told]) - 1)
    plan.ledger.tell(plan.kind.names[best])
    plan.ledger.end(FinishReason.STOP)


def _groups(plans: Sequence[Plan], num_rows: int) -> Iterator[list[Plan]]:
    """Yield plans in groups whose prompts and answers fit a cache of so many rows, however little they share."""
    group: list[Plan] = []
    taken = 0
    for plan in plans:
        needed = len(plan.ids_L) - len(plan.visual_GD) + plan.num_more
        if group and taken + needed > num_rows - len(plan.visual_GD):
            yield group
            group, taken = [], 0
        group.append(plan)
        taken += needed
    if group:
        yield group


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
