"""The prompt that the model was trained on: the frame of its template with text and media in the user's turns.

Visual tokens are `PLACEHOLDER` in the ids, one per row of the projector's output; text that an encoder puts around them
is ordinary ids. Text is tokenized piece by piece between specials and media, so a newline and the text after it merge
as they do upstream. Source: NVLabs/VILA `conversation.py`, `media.py`, `media_encoder.py` and `tokenizer_image_token`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nvila_ros.prompt.tokenizer import MEDIA_NAMES, ChatTokenizer

PLACEHOLDER = -1


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
    system: str = "",
) -> np.ndarray:
    """Return the ids of a whole prompt, (L,) int64, ready for the answer's first token.

    Args:
        tokenizer: of the checkpoint.
        parts: of the user's last turn.
        turns: earlier turns of a conversation, the user's parts and the answer of each.
        system: of the system turn; empty is the template's.
    """
    users = [*(parts for parts, _ in turns), parts]
    ids = ask(tokenizer, users[0], is_first=True, system=system)
    for (_, answer), following in zip(turns, users[1:], strict=True):
        ids += [*tokenizer.encode(answer), tokenizer.turn_end, *ask(tokenizer, following, is_first=False)]
    return np.array(ids, dtype=np.int64)


def ask(tokenizer: ChatTokenizer, parts: Sequence[PromptPart], *, is_first: bool, system: str = "") -> list[int]:
    """Return the ids of a user's turn, with the system's before the first one, up to where its answer begins."""
    template = tokenizer.template
    before = _opening(tokenizer, system) if is_first else [(template.next_turn, True)]
    return _turn(tokenizer, before, parts, template.reply, is_first)


def open_chat(tokenizer: ChatTokenizer, parts: Sequence[PromptPart]) -> list[int]:
    """Return system turn and first user turn, without the frame of the answer."""
    return _turn(tokenizer, _opening(tokenizer, ""), parts, "", is_first=True)


def answer_frame(tokenizer: ChatTokenizer) -> list[int]:
    """Return the end of the user's turn and the start of the assistant's, behind text."""
    return tokenizer.encode_marked(tokenizer.template.reply)


def _opening(tokenizer: ChatTokenizer, system: str) -> list[tuple[str, bool]]:
    template = tokenizer.template
    return [(template.before_system, True), (system or template.system, False), (template.opening, True)]


def _turn(
    tokenizer: ChatTokenizer,
    before: Sequence[tuple[str, bool]],
    parts: Sequence[PromptPart],
    after: str,
    is_first: bool,
) -> list[int]:
    texts, media = _split(parts)
    ids = list(tokenizer.first_ids) if is_first else []
    for i, text in enumerate(texts):
        around = before if i == 0 else [], [(after, True)] if i == len(media) else []
        piece = tokenizer.encode_piece([*around[0], (text, False), *around[1]], is_start=is_first or i > 0)
        if i:
            ids += [idx for run in media[i - 1].layout for idx in _run(tokenizer, run)]
            piece = piece[tokenizer.num_cut :]
        ids += piece
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
