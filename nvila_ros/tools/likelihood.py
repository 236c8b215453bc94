"""The log probabilities of given answers, token by token, by which benchmarks rank choices.

All answers to one question are scored side by side after one prompt, as the node scores choices, but not normalised
over them, so that answers to different questions can be compared.

Shapes: L tokens, D decoder width, V vocabulary, R tokens whose logits are wanted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nvila_ros.errors import QueryError
from nvila_ros.generation.branches import Branch, TokenScore, TreeBatch, score_token
from nvila_ros.generation.generator import embed_prompt
from nvila_ros.generation.prefix import PrefixCache, identify
from nvila_ros.prompt.chat import build_prompt
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.runtime.contract import Engine
from nvila_ros.types import Frame
from nvila_ros.visual.frame_encoder import FrameEncoder, SilentProgress


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Of one answer, the stop token included.

    Attributes:
        log_probs: of each of its tokens behind those before it.
        is_greedy: whether each is the likeliest there, so that greedy decoding would say this answer.
    """

    log_probs: tuple[float, ...]
    is_greedy: bool


class LikelihoodScorer:
    """Owns caches of its own over an engine; belongs to the engine's thread.

    Args:
        engine: runs the model.
        tokenizer: its own.
        frame_bytes: of visual tokens kept between questions.
    """

    def __init__(self, engine: Engine, tokenizer: ChatTokenizer, frame_bytes: int = 256 << 20) -> None:
        self._engine, self._tokenizer = engine, tokenizer
        self._frame_encoder = FrameEncoder(engine, frame_bytes, repeat_threshold=0.0)
        self._prefixes = PrefixCache(engine, 1)

    def score(self, frames: Sequence[Frame], question: str, texts: Sequence[str]) -> list[Likelihood]:
        """Return how likely each text is as the whole answer to a question about frames in capture order.

        Raises:
            QueryError: a text is empty, or prompt and text exceed the model's positions.
        """
        visual = self._frame_encoder.encode_frames(frames, SilentProgress())
        ids_L = build_prompt(self._tokenizer, [*visual.parts, question])
        sequences = [[*self._tokenizer.encode(text), self._tokenizer.answer_end] for text in texts]
        room = self._engine.spec.decoder.max_positions - len(ids_L)
        for text, ids in zip(texts, sequences, strict=True):
            if not text or len(ids) > room:
                rule = f"an answer must have 1 to {room - 1} tokens behind this prompt of {len(ids_L)}"
                raise QueryError(f"{rule}, got {len(ids) - 1} of {text!r:.40}")
        return [each for group in _groups(sequences, room) for each in self._score(ids_L, visual.visual_GD, group)]

    def _score(self, ids_L: np.ndarray, visual_GD: np.ndarray, sequences: Sequence[list[int]]) -> list[Likelihood]:
        keys_L2 = identify(ids_L, visual_GD)
        # The last token is read in any case, since its logits are wanted.
        with self._prefixes.take(keys_L2[:-1], len(ids_L) + sum(map(len, sequences))) as prefix:
            logits_V = prefix.prefill(embed_prompt(self._engine, ids_L, visual_GD), keys_L2, _go_on)
            batch = TreeBatch(self._engine, prefix.cache)
            for ids in sequences:
                batch.score(Branch(), ids)
            scores = iter(batch.forward()[1])
            return [_likelihood([score_token(logits_V, ids[0]), *(next(scores) for _ in ids[1:])]) for ids in sequences]


def _likelihood(tokens: Sequence[TokenScore]) -> Likelihood:
    return Likelihood(tuple(token.log_prob for token in tokens), all(token.is_greedy for token in tokens))


def _groups(sequences: Sequence[list[int]], room: int) -> Iterator[list[list[int]]]:
    """Yield sequences in groups that fit so many rows together; each fits alone."""
    group: list[list[int]] = []
    for ids in sequences:
        if group and sum(map(len, group)) + len(ids) > room:
            yield group
            group = []
        group.append(ids)
    if group:
        yield group


def _go_on() -> None:
    """Nobody waits for the answer, so nothing stops the work."""
