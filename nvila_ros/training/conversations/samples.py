r"""One record of a data set to one sample: turns of text and media, checked before any medium is opened.

    {"id": 7, "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\nWhat is this?"},
                                                  {"from": "gpt", "value": "A cat."}]}

`image` and `video` take a path or a list of paths, relative to the media folder; `bag` takes that of a ROS 2 bag, with
fields beside it that say which frames, see `bags`. Media stand where `<image>` and `<video>` do; one line break behind
a tag is how such data is written and says nothing, so the usual record reads as the node's prompts do: media, then the
question. Where no turn has a tag, all media lead the first. `question` and `answer` are short for one turn; `answers`
lists several that are right, of which the first is learned. Other keys are kept.

Source: NVLabs/VILA `data/dataset_impl/llava.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nvila_ros.errors import FrameError, NoFramesError, NvilaError, QueryError
from nvila_ros.training.conversations.bags import PLACES, BagMedium, parse_bag
from nvila_ros.video.media import ImageFiles, open_media, read_clip

IMAGE, VIDEO = "image", "video"
REASONS = (
    "malformed",
    "unknown_role",
    "turn_order",
    "empty_question",
    "empty_answer",
    "media_count",
    "media_order",
    "missing_media",
    "unreadable_media",
    "too_long",
)
"""Why a sample cannot be learned from."""
_TAG = re.compile(r"(<image>|<video>|<vila/video>)\n?")
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


class DataError(NvilaError):
    """A data set cannot be learned from."""


class SampleError(DataError):
    """A sample cannot be learned from; `reason` is one of `REASONS`, `group` its sub-dataset where that is known."""

    group = ""

    def __init__(self, reason: str, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        assert reason in REASONS, reason
        self.reason = reason


class Medium(Protocol):
    """An image or a video that a turn shows."""

    @property
    def kind(self) -> str:
        """`IMAGE` or `VIDEO`."""

    @property
    def name(self) -> str:
        """What errors call it."""

    def read(self, num_frames: int) -> list[np.ndarray]:
        """Return an image, or up to `num_frames` frames spread evenly over a video, (H, W, 3) uint8 RGB each.

        Raises:
            FileNotFoundError: it is not there.
            FrameError: it cannot be decoded.
        """


@dataclass(frozen=True, slots=True)
class FileMedium:
    """A file, or of a video also a folder of its frames."""

    kind: str
    path: Path

    @property
    def name(self) -> str:
        """Its path."""
        return str(self.path)

    def read(self, num_frames: int) -> list[np.ndarray]:
        """Return the image, or frames spread evenly over the video, as `Medium.read`."""
        if not self.path.exists():
            raise FileNotFoundError(self.name)
        if self.kind == IMAGE:
            return [ImageFiles(self.name, [self.path], 1.0).read(0)]
        video = open_media(self.path)
        try:
            return [frame.image for frame in read_clip(video, num_frames)]
        finally:
            video.close()


@dataclass(frozen=True, slots=True)
class Turn:
    """What the user said and showed, in order, and the answer to it."""

    parts: tuple[str | Medium, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation.

    Attributes:
        name: where it stands, for errors.
        group: the sub-dataset that it belongs to.
    """

    name: str
    turns: tuple[Turn, ...]
    group: str


def read_medium(medium: Medium, num_frames: int, name: str) -> list[np.ndarray]:
    """Return the frames of a sample's medium.

    Raises:
        SampleError: it is missing or cannot be decoded.
    """
    try:
        return medium.read(num_frames)
    except FileNotFoundError as error:
        fix = "check the media folder and the path in the record"
        raise SampleError("missing_media", name, f"no {medium.kind} at {medium.name}; {fix}") from error
    except (FrameError, NoFramesError, OSError, ValueError) as error:  # also a name that no file can have
        raise SampleError("unreadable_media", name, f"{medium.kind} {medium.name:.200}: {error!s:.200}") from error


def parse_record(record: Any, name: str, media_folder: Path, group: str) -> Sample:
    """Return the sample that a parsed record holds; its media are not opened yet.

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
    turns = _place_media(questions, _media(record, name, media_folder), name)
    return Sample(name, tuple(Turn(*turn) for turn in zip(turns, answers, strict=True)), group)


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


def _media(record: Mapping[str, Any], name: str, folder: Path) -> dict[str, list[Medium]]:
    media: dict[str, list[Medium]] = {IMAGE: [], VIDEO: []}
    for kind, found in media.items():
        paths = record.get(kind) or []
        paths = [paths] if isinstance(paths, str) else paths
        if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
            raise SampleError("malformed", name, f"{kind} must be a path or a list of paths, got {record[kind]!r:.80}")
        found.extend(FileMedium(kind, folder / path) for path in paths)
    bag = _bag(record, name, folder)
    if bag is not None:
        media[bag.kind].append(bag)
    return media


def _bag(record: Mapping[str, Any], name: str, folder: Path) -> BagMedium | None:
    if "bag" not in record:
        astray = [each for each in PLACES if each in record]
        if astray:
            raise SampleError("malformed", name, f"{', '.join(astray)} goes with a bag, and the record names none")
        return None
    try:
        return parse_bag(record, folder)
    except QueryError as error:
        raise SampleError("malformed", name, str(error)) from error


def _place_media(questions: Sequence[str], media: dict[str, list[Medium]], name: str) -> list[tuple[str | Medium, ...]]:
    """Return the parts of each of the user's turns, with every medium where its tag stands."""
    num_tags = sum(len(_TAG.findall(text)) for text in questions)
    num_media = sum(map(len, media.values()))
    if not num_tags:
        questions = ["<image>" * len(media[IMAGE]) + "<video>" * len(media[VIDEO]) + questions[0], *questions[1:]]
    elif num_tags != num_media:
        raise SampleError("media_count", name, f"one tag per medium, got {num_tags} tags and {num_media} media")
    # Data made of videos alone often says <image> for one.
    waiting = {"<image>": media[IMAGE] or media[VIDEO], "<video>": media[VIDEO], "<vila/video>": media[VIDEO]}
    turns = []
    for text in questions:
        parts: list[str | Medium] = []
        for piece in _TAG.split(text):
            if piece in waiting:
                if not waiting[piece]:
                    raise SampleError("media_count", name, f"no medium is left for a tag {piece}")
                parts.append(waiting[piece].pop(0))
            elif piece.strip() or (piece and parts):
                parts.append(piece)
        if not parts:
            raise SampleError("empty_question", name, "a user's turn must hold text or a medium, got neither")
        turns.append(tuple(parts))
    return turns
