"""The prompt that NVILA was trained on: ChatML with media in the user's turn.

Visual tokens are `PLACEHOLDER` in the ids, one per row of the projector's output; text that an encoder puts around them
is ordinary ids. The user's text is tokenized piece by piece between specials and media, so a newline and the text after
it merge as they do upstream. Source: NVLabs/VILA `qwen2` conversation, `media.py` and `media_encoder.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nvila_ros.prompt.tokenizer import MEDIA_NAMES, ChatTokenizer

PLACEHOLDER = -1
SYSTEM = "You are a helpful assistant"  # without a final period, as in the checkpoints' chat template


@dataclass(frozen=True, slots=True)
class MediaTokens:
    """One media token of upstream's prompt: an image, a tile of one, or a clip.

    Attributes:
        layout: in prompt order, numbers of visual tokens, and the text around them, each tokenized by itself.
    """

    layout: tuple[int | str, ...]

    @property
    def num_visual(self) -> int:
        """Number of visual tokens."""
        return sum(run for run in self.layout if isinstance(run, int))


PromptPart = str | MediaTokens
"""An element of a user's turn: text or media, in any order."""


def build_prompt(
    tokenizer: ChatTokenizer,
    parts: Sequence[PromptPart],
    turns: Sequence[tuple[Sequence[PromptPart], str]] = (),
    *,
    system: str = SYSTEM,
) -> np.ndarray:
    """Return the ids of a whole prompt, (L,) int64, ready for the answer's first token.

    Args:
        tokenizer: of the checkpoint.
        parts: of the user's last turn.
        turns: earlier turns of a conversation, the user's parts and the answer of each.
        system: of the system turn.
    """
    users = [*(parts for parts, _ in turns), parts]
    ids = open_chat(tokenizer, users[0], system)
    for (_, answer), following in zip(turns, users[1:], strict=True):
        ids += [*answer_frame(tokenizer), *tokenizer.encode(answer), tokenizer.im_end, *next_turn(tokenizer, following)]
    return np.array(ids + answer_frame(tokenizer), dtype=np.int64)


def open_chat(tokenizer: ChatTokenizer, parts: Sequence[PromptPart], told: str = SYSTEM) -> list[int]:
    """Return system turn and first user turn, without the user's `<|im_end|>`."""
    system = [tokenizer.im_start, *tokenizer.encode(f"system\n{told}"), tokenizer.im_end]
    return [*system, *tokenizer.encode("\n"), tokenizer.im_start, *_user(tokenizer, parts)]


def next_turn(tokenizer: ChatTokenizer, parts: Sequence[PromptPart]) -> list[int]:
    """Return the ids of a next user turn behind an answer's `<|im_end|>`, without the closing frame."""
    return [*tokenizer.encode("\n"), tokenizer.im_start, *_user(tokenizer, parts)]


def answer_frame(tokenizer: ChatTokenizer) -> list[int]:
    """Return the end of the user's turn and the start of the assistant's."""
    return [tokenizer.im_end, *tokenizer.encode("\n"), tokenizer.im_start, *tokenizer.encode("assistant\n")]


def _user(tokenizer: ChatTokenizer, parts: Sequence[PromptPart]) -> list[int]:
    texts, media = _split(parts)
    texts[0] = "user\n" + texts[0]
    ids = tokenizer.encode(texts[0])
    for shown, text in zip(media, texts[1:], strict=True):
        ids += [i for run in shown.layout for i in _run(tokenizer, run)] + tokenizer.encode(text)
    return ids


def _split(parts: Sequence[PromptPart]) -> tuple[list[str], list[MediaTokens]]:
    """Return the texts before, between and behind the media; the turn as a whole is stripped of outer blanks.

    Adjacent texts are one string: a newline and a text that begins with one share a token.
    """
    texts, media = [""], []
    for part in parts:
        if isinstance(part, MediaTokens):
            media.append(part)
            texts.append("")
        else:
            texts[-1] += without_media_names(part)
    texts[0] = texts[0].lstrip()
    texts[-1] = texts[-1].rstrip()
    return texts, media


def without_media_names(text: str) -> str:
    """Return a user's text without literal media tokens, which upstream removes as well."""
    for name in MEDIA_NAMES:
        if name in text:
            text = text.replace(name, "").strip()
    return text


def _run(tokenizer: ChatTokenizer, run: int | str) -> list[int]:
    return [PLACEHOLDER] * run if isinstance(run, int) else tokenizer.encode_marked(run)
