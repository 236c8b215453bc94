r"""One record of a data set to one sample: turns of text and media, checked before any medium is opened.

    {"id": 7, "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\nWhat is this?"},
                                                  {"from": "gpt", "value": "A cat."}]}

`record_media` says which keys name media. A medium belongs to the turn in which its tag `<image>` or `<video>` stands
and is shown before the text of that turn, wherever the tag stands, since that is how the node asks. Where no turn has a
tag, all media lead the first. The line break behind a tag, and the one before a tag at the end, are not part of the
text. Refused are media of one turn with text between them, since such a text would lose what it refers to, and a video
beside other media of its turn, which no query shows. So finetune, prune and eval read the same sample.

With `"independent": true` every turn is a conversation of its own behind the media of the first: it does not see the
others, and the media are read once for all of them.

`question` and `answer` are short for one turn; `answers` lists several that are right, of which the first is learned.
Other keys are kept.

LLaVA's `preprocess_multimodal` moves the tag to the front of its turn, as here. VILA's `LLaVADataset` removes all tags
and puts all media before the first turn; its `LLaVANextDataset` leaves images between the texts.

Source: NVLabs/VILA `data/dataset_impl/llava.py`; haotian-liu/LLaVA `train/train.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvila_ros.training.conversations.bad_samples import SampleError
from nvila_ros.training.conversations.record_media import IMAGE, VIDEO, MediaFolder, Medium, media_of
from nvila_ros.video.windowing import OWN, Window

_TAG = re.compile(r"(<image>|<video>|<vila/video>)\n?")
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class SampleTurn:
    """What the user shows and asks, and the answer to it.

    Attributes:
        media: shown before the text.
        text: may be empty where media are shown.
        answer: without outer blanks.
    """

    media: tuple[Medium, ...]
    text: str
    answer: str

    @property
    def parts(self) -> tuple[Medium | str, ...]:
        """Media and text in the order of the prompt."""
        return (*self.media, self.text) if self.text else self.media


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation.

    Attributes:
        name: file and record, for errors.
        group: the sub-dataset that it belongs to.
        is_independent: whether each turn stands alone behind the media of the first.
    """

    name: str
    turns: tuple[SampleTurn, ...]
    group: str
    is_independent: bool = False


def parse_record(
    record: Any, name: str, media_folder: Path, group: str, *, allow_outside: bool = False, window: Window = OWN
) -> Sample:
    """Return the sample that a parsed record holds; its media are not opened yet.

    Args:
        record: as JSON holds it.
        name: of the record, for errors.
        media_folder: what its paths are relative to.
        group: the sub-dataset.
        allow_outside: whether media may lie outside the folder.
        window: which values of pictures of more than eight bits are shown.

    Raises:
        SampleError: the record breaks a rule of the format.
    """
    said = [_message(message, name) for message in _conversation(record, name)]
    _check_order([role for role, _ in said], name)
    questions, answers = [text for _, text in said[::2]], [text.strip() for _, text in said[1::2]]
    for answer in answers:
        if not answer:
            raise SampleError("empty_answer", name, "an answer must hold text, got none")
        if _TAG.search(answer):
            raise SampleError("media_count", name, f"media stand in the user's turns only, got the answer {answer!r}")
    media = media_of(record, name, MediaFolder(media_folder, allow_outside, window))
    shown = _place_media(questions, media, name)
    turns = tuple(SampleTurn(*turn, answer) for turn, answer in zip(shown, answers, strict=True))
    return Sample(name, turns, group, _is_independent(record, turns, name))


def _is_independent(record: Mapping[str, Any], turns: Sequence[SampleTurn], name: str) -> bool:
    found = record.get("independent", False)
    if not isinstance(found, bool):
        raise SampleError("malformed", name, f"independent must be true or false, got {found!r:.80}")
    if found and any(turn.media for turn in turns[1:]):
        raise SampleError("media_order", name, "media of independent turns must all stand in the first")
    if found and not all(turn.text.strip() for turn in turns):
        raise SampleError("empty_question", name, "an independent turn must ask something, got no text")
    return found


def _conversation(record: Any, name: str) -> list[Any]:
    if isinstance(record, Mapping) and isinstance(record.get("conversations"), list):
        return list(record["conversations"])
    answers = right_answers(record)
    if not answers or not isinstance(record.get("question"), str):
        rule = "a record must be an object with a list of conversations, or with a question and an answer"
        raise SampleError("malformed", name, rule)
    return [{"from": "human", "value": record["question"]}, {"from": "gpt", "value": answers[0]}]


def right_answers(record: Any) -> list[str]:
    """Return what is right of a record with one question, by `answers` or by `answer`; none of any other record."""
    found = record.get("answers", record.get("answer")) if isinstance(record, Mapping) else None
    answers = found if isinstance(found, list) else [found]
    texts = [answer for answer in answers if isinstance(answer, str)]
    return [text for text in texts if text.strip()] or texts if len(texts) == len(answers) else []


def _message(message: Any, name: str) -> tuple[str, str]:
    if not isinstance(message, Mapping) or not isinstance(message.get("value"), str):
        raise SampleError("malformed", name, f"a message must have from and value, both text, got {message!r:.80}")
    sender = message.get("from")
    if not isinstance(sender, str) or sender not in _ROLES:
        raise SampleError("unknown_role", name, f"a message must be from human or gpt, got {sender!r}")
    return _ROLES[sender], message["value"]


def _check_order(roles: Sequence[str], name: str) -> None:
    if not roles or len(roles) % 2 or list(roles) != ["user", "assistant"] * (len(roles) // 2):
        raise SampleError("turn_order", name, f"human and gpt must take turns, human first, gpt last, got {roles}")


def _place_media(
    questions: Sequence[str], media: dict[str, list[Medium]], name: str
) -> list[tuple[tuple[Medium, ...], str]]:
    """Return the media and the text of each of the user's turns."""
    num_tags = sum(len(_TAG.findall(text)) for text in questions)
    num_media = sum(map(len, media.values()))
    if not num_tags:
        questions = ["<image>" * len(media[IMAGE]) + "<video>" * len(media[VIDEO]) + questions[0], *questions[1:]]
    elif num_tags != num_media:
        raise SampleError("media_count", name, f"one tag per medium, got {num_tags} tags and {num_media} media")
    # Data made of videos alone often says <image> for one.
    waiting = {"<image>": media[IMAGE] or media[VIDEO], "<video>": media[VIDEO], "<vila/video>": media[VIDEO]}
    return [_place_turn(text, waiting, name) for text in questions]


def _place_turn(question: str, waiting: dict[str, list[Medium]], name: str) -> tuple[tuple[Medium, ...], str]:
    """Return the media and the text of a turn; its media are taken from those that wait for a tag."""
    before, *rest = _TAG.split(question)
    tags, texts = rest[::2], rest[1::2]  # the pattern's one group parts a text into text, tag, text, ..
    if any(text.strip() for text in texts[:-1]):
        rule = "media must stand together in their turn, before its text, got text between them"
        raise SampleError("media_order", name, f"{rule} in {question!r:.80}; write the tags first")
    shown: list[Medium] = []
    for tag in tags:
        if not waiting[tag]:
            raise SampleError("media_count", name, f"no medium is left for a tag {tag}")
        shown.append(waiting[tag].pop(0))
    if len(shown) > 1 and any(medium.kind == VIDEO for medium in shown):
        raise SampleError("media_order", name, f"a video must be alone in its turn, got {len(shown)} media")
    text = _join(before, texts[-1]) if tags else question
    if not shown and not text.strip():
        raise SampleError("empty_question", name, "a user's turn must hold text or a medium, got neither")
    return tuple(shown), text


def _join(before: str, behind: str) -> str:
    """Return the text of a turn without its tags."""
    if not before.strip():
        return behind if behind.strip() else ""
    return before.removesuffix("\n") + behind if not behind.strip() else before + behind
