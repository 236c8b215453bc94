"""Questions about one medium as token ids: all behind the same visual tokens, or one after the other.

Asked one after the other, a question sees the answers before it, and the model learns to copy them rather than to look.
So as a rule each question is a branch: it sees the medium and itself, at the positions that it would have alone, which
is what a prompt with one question is.

Shapes: B samples, L tokens, T of them that predict an answer, V visual tokens of a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from nvila_ros.prompt.chat import PLACEHOLDER, MediaTokens, answer_frame, ask, open_chat
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.training.token_labels import IGNORE
from nvila_ros.world.named_places import Place
from nvila_ros.world.questions import Question

Array = TypeVar("Array")
PREFIX, PADDING = 0, -1
"""Owners of tokens that all branches see, and of tokens that nothing sees."""
TIMED = "timed"
"""Kind of the questions that time tokens answer."""
LENGTH_STEP, ANSWER_STEP = 32, 16
"""Rows, and their answers, come in few lengths, so that a GPU meets the same shapes again."""


@dataclass(frozen=True, slots=True)
class Chat:
    """What the decoder reads of one sample.

    Attributes:
        ids: with `PLACEHOLDER` for visual tokens; a branch's last token is not read, only predicted.
        labels: the id that should follow each token, `IGNORE` outside answers.
        positions: of each token.
        owners: `PREFIX`, else from 1 the branch that the token is of.
        columns: at the last token of a name the bin of its thing's place from the left, else `IGNORE`.
        rows: likewise from the top.
    """

    ids: list[int]
    labels: list[int]
    positions: list[int]
    owners: list[int]
    columns: list[int]
    rows: list[int]


def encode_branches(
    tokenizer: ChatTokenizer,
    media: MediaTokens,
    turns: Sequence[Question],
    places: Sequence[Sequence[Place]] = (),
) -> Chat:
    """Return the questions side by side, each as if it were the only one.

    Args:
        tokenizer: of the model.
        media: what they are asked of.
        turns: the questions.
        places: of what each of them names; none labels none.
    """
    shared = open_chat(tokenizer, [media])
    frame = answer_frame(tokenizer)
    silent = [IGNORE] * len(shared)
    chat = Chat(list(shared), [*silent], list(range(len(shared))), [PREFIX] * len(shared), [*silent], [*silent])
    for owner, turn in enumerate(turns, start=1):
        asked = tokenizer.encode(turn.text) + frame
        answer = _answer(tokenizer, turn)
        branch = [*asked, *answer][:-1]
        chat.ids.extend(branch)
        chat.labels.extend([IGNORE] * (len(asked) - 1) + answer)
        chat.positions.extend(range(len(shared), len(shared) + len(branch)))
        chat.owners.extend([owner] * len(branch))
        start = len(chat.columns)
        chat.columns.extend([IGNORE] * len(branch))
        chat.rows.extend([IGNORE] * len(branch))
        for place in places[owner - 1] if places else ():
            last = start + len(tokenizer.encode(turn.text[: place.end])) - 1
            chat.columns[last], chat.rows[last] = place.column, place.row
    return chat


def encode_chat(tokenizer: ChatTokenizer, media: MediaTokens, turns: Sequence[Question]) -> Chat:
    """Return the questions as one conversation, each seeing all before it."""
    ids, labels = _encode_turns(tokenizer, media, turns)
    silent = [IGNORE] * len(ids)
    return Chat(ids, labels, list(range(len(ids))), [PREFIX] * len(ids), silent, silent)


def _encode_turns(
    tokenizer: ChatTokenizer, media: MediaTokens, turns: Sequence[Question]
) -> tuple[list[int], list[int]]:
    """Return the ids of a conversation and, shifted by one, the labels of its answers."""
    ids: list[int] = []
    is_answer: list[bool] = []
    for i, turn in enumerate(turns):
        asked = ask(tokenizer, [turn.text] if i else [media, turn.text], is_first=not i)
        answer = _answer(tokenizer, turn)
        ids += asked + answer
        is_answer += [False] * len(asked) + [True] * len(answer)
    labels = [token if counts else IGNORE for token, counts in zip(ids, is_answer, strict=True)]
    return ids[:-1], labels[1:]


def _answer(tokenizer: ChatTokenizer, turn: Question) -> list[int]:
    encode = tokenizer.encode_marked if turn.kind == TIMED else tokenizer.encode
    return [*encode(turn.answer), tokenizer.answer_end]


@dataclass(frozen=True, slots=True)
class Rows(Generic[Array]):
    """Chats of equal length, as arrays of numpy or of torch.

    Attributes:
        ids_BL: right-padded with 0, int64.
        positions_BL: likewise with 0.
        owner_BL: likewise with `PADDING`, which nothing but padding sees.
        column_BL: likewise with `IGNORE`.
        row_BL: likewise.
        answer_BT: where a chat has labels, right-padded with 0, int64.
        labels_BT: the id that should follow each of those, right-padded with `IGNORE`, int64.
        visual_V: where the visual tokens are, the same in all chats, int64.
    """

    ids_BL: Array
    positions_BL: Array
    owner_BL: Array
    column_BL: Array
    row_BL: Array
    answer_BT: Array
    labels_BT: Array
    visual_V: Array


def pad_chats(chats: Sequence[Chat]) -> Rows[np.ndarray]:
    """Return chats of one medium each, all laid out alike."""

    def padded(rows: Sequence[Sequence[int]], fill: int, step: int = LENGTH_STEP) -> np.ndarray:
        longest = -(-max(map(len, rows)) // step) * step
        array_BL = np.full((len(rows), longest), fill, np.int64)
        for row_L, values in zip(array_BL, rows, strict=True):
            row_L[: len(values)] = values
        return array_BL

    ids_BL = padded([chat.ids for chat in chats], 0)
    answers = [[place for place, label in enumerate(chat.labels) if label != IGNORE] for chat in chats]
    labels = [[chat.labels[place] for place in places] for chat, places in zip(chats, answers, strict=True)]
    return Rows(
        ids_BL=ids_BL,
        positions_BL=padded([chat.positions for chat in chats], 0),
        owner_BL=padded([chat.owners for chat in chats], PADDING),
        column_BL=padded([chat.columns for chat in chats], IGNORE),
        row_BL=padded([chat.rows for chat in chats], IGNORE),
        answer_BT=padded(answers, 0, ANSWER_STEP),
        labels_BT=padded(labels, IGNORE, ANSWER_STEP),
        visual_V=np.flatnonzero(ids_BL[0] == PLACEHOLDER),
    )
