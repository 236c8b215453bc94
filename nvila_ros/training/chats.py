"""Questions about one medium as token ids: all behind the same visual tokens, or one after the other.

Asked one after the other, a question is told what was answered before it, and learns to copy that rather than to look.
So as a rule each question is a branch: it sees the medium and itself, at the positions that it would have alone, which
is what a prompt with one question is.

Shapes: B samples, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nvila_ros.prompt.chat import Media, answer_frame, next_turn, open_chat
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.training.questions import Question
from nvila_ros.training.token_labels import IGNORE

PREFIX, PADDING = 0, -1
"""Owners of tokens that all branches see, and of tokens that nothing sees."""


@dataclass(frozen=True, slots=True)
class Chat:
    """What the decoder reads of one sample.

    Attributes:
        ids: with `PLACEHOLDER` for visual tokens; a branch's last token is not read, only told.
        labels: the id that should follow each token, `IGNORE` outside answers.
        positions: of each token.
        owners: `PREFIX`, else from 1 the branch that the token is of.
    """

    ids: list[int]
    labels: list[int]
    positions: list[int]
    owners: list[int]


def encode_branches(tokenizer: ChatTokenizer, media: Media, turns: Sequence[Question]) -> Chat:
    """Return the questions side by side, each as if it were the only one."""
    shared = len(open_chat(tokenizer, [media]))
    chat = Chat([], [], [], [])
    for owner, turn in enumerate(turns, start=1):
        ids, labels = _encode_turns(tokenizer, media, [turn])
        start = shared if chat.ids else 0
        chat.ids.extend(ids[start:])
        chat.labels.extend(labels[start:])
        chat.positions.extend(range(start, len(ids)))
        chat.owners.extend(PREFIX if position < shared else owner for position in range(start, len(ids)))
    return chat


def encode_chat(tokenizer: ChatTokenizer, media: Media, turns: Sequence[Question]) -> Chat:
    """Return the questions as one conversation, each seeing all before it."""
    ids, labels = _encode_turns(tokenizer, media, turns)
    return Chat(ids, labels, list(range(len(ids))), [PREFIX] * len(ids))


def _encode_turns(tokenizer: ChatTokenizer, media: Media, turns: Sequence[Question]) -> tuple[list[int], list[int]]:
    """Return the ids of a conversation and, shifted by one, the labels of its answers."""
    ids: list[int] = []
    is_answer: list[bool] = []
    for i, turn in enumerate(turns):
        asked = next_turn(tokenizer, [turn.text]) if i else open_chat(tokenizer, [media, turn.text])
        asked = asked + answer_frame(tokenizer)
        told = [*tokenizer.encode(turn.answer), tokenizer.im_end]
        ids += asked + told
        is_answer += [False] * len(asked) + [True] * len(told)
    labels = [token if counts else IGNORE for token, counts in zip(ids, is_answer, strict=True)]
    return ids[:-1], labels[1:]


@dataclass(frozen=True, slots=True)
class Rows:
    """Chats of equal length.

    Attributes:
        ids_BL: right-padded with 0, int64.
        labels_BL: likewise with `IGNORE`.
        positions_BL: likewise with 0.
        owner_BL: likewise with `PADDING`, which nothing but padding sees.
    """

    ids_BL: np.ndarray
    labels_BL: np.ndarray
    positions_BL: np.ndarray
    owner_BL: np.ndarray


def pad_chats(chats: Sequence[Chat]) -> Rows:
    """Return chats padded on the right."""
    longest = max(len(chat.ids) for chat in chats)

    def padded(rows: Sequence[Sequence[int]], fill: int) -> np.ndarray:
        array_BL = np.full((len(rows), longest), fill, np.int64)
        for row_L, values in zip(array_BL, rows, strict=True):
            row_L[: len(values)] = values
        return array_BL

    return Rows(
        ids_BL=padded([chat.ids for chat in chats], 0),
        labels_BL=padded([chat.labels for chat in chats], IGNORE),
        positions_BL=padded([chat.positions for chat in chats], 0),
        owner_BL=padded([chat.owners for chat in chats], PADDING),
    )
