"""Constrained decoding: at each step the tokens with which the answer can still become JSON of a schema.

The grammar works on bytes: a token is allowed if its bytes continue the text so far, however that was cut into tokens.
So decoding that takes the likeliest allowed token gives the model's own answer wherever that conforms. Every byte has
a token of its own, so an answer that has begun can always go on.

Source: llguidance, https://github.com/guidance-ai/llguidance.

Shapes: V vocabulary.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Protocol

import numpy as np

from nvila_ros.errors import BackendError, QueryError
from nvila_ros.generation.grammar_compile import compile_schema, reason_of, try_schema
from nvila_ros.prompt.answer_kinds import Constrained, schema_error
from nvila_ros.prompt.tokenizer import ChatTokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

NUM_KEPT = 32  # compiled schemas; each a few megabytes at most before its first answer


class Constraint(Protocol):
    """The tokens that may come next in one answer; holds the state of the answer so far."""

    def allowed(self) -> np.ndarray:
        """Return which tokens may come next, (V,) bool; always one at least, the stop token where the value may end."""
        ...

    def push(self, token: int) -> None:
        """Append one of the tokens that were last allowed, the stop token excepted."""
        ...

    @property
    def is_finished(self) -> bool:
        """Whether nothing but the stop token can follow; it may be known one step late."""
        ...


class Grammars:
    """Makes constraints for one tokenizer; the vocabulary and the last schemas are compiled once.

    The vocabulary, half a second and 50 MB for 150,000 tokens, is compiled when the first constraint is asked for.

    Args:
        tokenizer: what decodes the tokens.
        vocab_size: V, the number of logits; rows without text are never allowed.
        stop_id: the token that ends an answer.
    """

    def __init__(self, tokenizer: ChatTokenizer, vocab_size: int, stop_id: int) -> None:
        self._tokenizer, self._vocab_size, self._stop_id = tokenizer, vocab_size, stop_id
        self._compile = functools.lru_cache(NUM_KEPT)(self._compile_anew)

    def constrain(self, kind: Constrained) -> Constraint:
        """Return a constraint at the beginning of an answer; at most a few seconds, and once for a schema.

        Raises:
            QueryError: the schema is not satisfiable, not supported, or takes too much time or memory, or this machine
                is too busy to try it.
            BackendError: llguidance is not installed.
        """
        try:
            compiled = self._compile(kind.schema)
        except TimeoutError as error:  # which says nothing about the schema, so it is not kept
            rule = "json_schema must be one that can be tried"
            raise QueryError(f"{rule}, but {error}: this machine is busy; ask again") from error
        if isinstance(compiled, str):
            raise schema_error(compiled)
        return _JsonConstraint(compiled.deep_copy(), self._vocab_size)

    def _compile_anew(self, schema: str) -> LLMatcher | str:
        """Return the grammar or why there is none; that is kept too, so that asking again costs nothing."""
        vocabulary = self._vocabulary
        if reason := try_schema(schema):
            return reason
        matcher = compile_schema(vocabulary, schema)
        return reason_of(matcher) or matcher

    @functools.cached_property
    def _vocabulary(self) -> LLTokenizer:
        try:
            import llguidance
        except ModuleNotFoundError as error:
            raise BackendError("JSON and wide integers need 'llguidance'; install it beside nvila_ros") from error
        tokens = _Tokens(self._tokenizer, self._vocab_size, self._stop_id)
        return llguidance.LLTokenizer(llguidance.TokenizerWrapper(tokens), slices=llguidance.LLTokenizer.json_slices())


class _Tokens:
    """The vocabulary in llguidance's terms."""

    bos_token_id = None

    def __init__(self, tokenizer: ChatTokenizer, vocab_size: int, stop_id: int) -> None:
        self.tokens = tokenizer.token_bytes(vocab_size)
        self.tokens[stop_id] = b"<stop>"
        self.eos_token_id, self.special_token_ids = stop_id, [stop_id]
        self._encode = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


class _JsonConstraint:
    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size
        self._allowed_V = np.zeros(vocab_size, bool)

    def allowed(self) -> np.ndarray:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        self._allowed_V = np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(bool)
        return self._allowed_V

    def push(self, token: int) -> None:
        assert self._allowed_V[token], f"token {token} was not allowed"
        self._matcher.consume_token(token)
        self._check()

    @property
    def is_finished(self) -> bool:
        return self._matcher.is_stopped()

    def _check(self) -> None:
        """A failed matcher would allow the stop token alone, amid a value."""
        if self._matcher.is_error():
            raise QueryError(f"json_schema became too complex amid the answer: {reason_of(self._matcher)}; simplify it")
