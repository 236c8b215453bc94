"""The prompt that NVILA was trained on: ChatML with media in the user's turn.

Visual tokens stand in the ids as `PLACEHOLDER`, one per row that the projector gives; the newline that follows each
tile or frame is an ordinary id. The user's text is tokenized piece by piece between specials, so a newline
and the text after it merge as they do upstream. Source: NVLabs/VILA `qwen2` conversation and `media_encoder.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nvila_ros.errors import QueryError
from nvila_ros.prompt.tokenizer import ChatTokenizer

PLACEHOLDER = -1
SYSTEM = "You are a helpful assistant"  # without a final period, as in the checkpoints' chat template


@dataclass(frozen=True, slots=True)
class Media:
    """What one user turn shows.

    Attributes:
        tokens_per_block: visual tokens of each tile, image or pooled frame, in prompt order.
        has_text_newline: a single image cut into tiles has a text newline behind each tile besides the embedded one.
    """

    tokens_per_block: tuple[int, ...] = ()
    has_text_newline: bool = False


def build_prompt(tokenizer: ChatTokenizer, question: str, media: Media) -> np.ndarray:
    """Return the ids of a whole prompt, (L,) int64, ready for the answer's first token.

    Raises:
        QueryError: the question is empty.
    """
    question = question.strip()
    if not question:
        raise QueryError("a question must hold text, got none")
    return np.array(open_chat(tokenizer, media, question) + answer_frame(tokenizer), dtype=np.int64)


def open_chat(tokenizer: ChatTokenizer, media: Media, question: str) -> list[int]:
    """Return system turn and first user turn, up to and without the user's `<|im_end|>`."""
    system = [tokenizer.im_start, *tokenizer.encode(f"system\n{SYSTEM}"), tokenizer.im_end]
    return [*system, *tokenizer.encode("\n"), tokenizer.im_start, *_user(tokenizer, media, question)]


def next_turn(tokenizer: ChatTokenizer, question: str) -> list[int]:
    """Return what follows an answer's `<|im_end|>` when the user asks on, without the closing frame."""
    return [*tokenizer.encode("\n"), tokenizer.im_start, *tokenizer.encode(f"user\n{question.strip()}")]


def answer_frame(tokenizer: ChatTokenizer) -> list[int]:
    """Return the end of the user's turn and the start of the assistant's."""
    return [tokenizer.im_end, *tokenizer.encode("\n"), tokenizer.im_start, *tokenizer.encode("assistant\n")]


def _user(tokenizer: ChatTokenizer, media: Media, question: str) -> list[int]:
    if not media.tokens_per_block:
        return tokenizer.encode(f"user\n{question}")
    newline = tokenizer.encode("\n")
    ids = tokenizer.encode("user\n")
    last = len(media.tokens_per_block) - 1
    for i, num_tokens in enumerate(media.tokens_per_block):
        ids += [PLACEHOLDER] * num_tokens + newline
        if media.has_text_newline and i < last:
            ids += newline
    # The last text newline is one string with the question: "\n" + "\nx" is a token of its own.
    return ids + tokenizer.encode(f"\n{question}" if media.has_text_newline else question)
