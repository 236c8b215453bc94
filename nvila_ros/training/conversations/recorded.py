"""The answers of the node that a bag holds beside its cameras' frames, as samples.

    ros2 bag record -s mcap /front/image_raw /nvila/answer

An answer names its frames by their captures, so they are found exactly among the bag's images, on the topic that holds
all of them. Only answers that ended with a stop token are taken. They are what a model answered, not what is true: they
show where another build answers differently; before a model learns from them, somebody should check them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from nvila_ros.errors import NoFramesError
from nvila_ros.training.conversations.bad_samples import DataError, SampleError
from nvila_ros.training.conversations.samples import Sample, parse_record
from nvila_ros.types import NS_PER_S, FinishReason
from nvila_ros.video.bags import camera_topics, index_topic, open_bag
from nvila_ros.video.windowing import OWN, Window, named_window

ANSWER_TYPE = "nvila_ros/msg/Answer"


class RecordedAnswers:
    """The answers in a bag, as a `SampleSource`.

    Args:
        path: of the bag.
        group_field: a field of the records that names a record's sub-dataset, such as `model`; none makes the whole bag
            one.
        window: which values of images of more than eight bits are shown.

    Raises:
        DataError: there is no bag, or it holds no answer.
        FrameError: the bag cannot be read.
    """

    def __init__(self, path: Path, group_field: str = "", window: Window = OWN) -> None:
        self.path, self.name, self._group_field, self._window = path, path.stem, group_field, window
        try:
            self._messages = _read_answers(path)
        except FileNotFoundError as error:
            raise DataError(f"no bag at {path}; check the path") from error
        if not self._messages:
            raise DataError(f"bag {path} holds no answer of the node; record its topic ~/answer beside the images")
        self._topics = camera_topics(path)

    def __len__(self) -> int:
        return len(self._messages)

    def read(self, index: int) -> Sample:
        """Return a sample, as `SampleSource.read`.

        Raises:
            SampleError: the frames of an answer are not all in one topic of the bag, or are none.
            DataError: the record does not name its sub-dataset.
        """
        record, name = self._record(index), f"{self.path}, answer {index + 1}"
        group = record.get(self._group_field) if self._group_field else self.name
        if not isinstance(group, str) or not group:
            raise DataError(f"{name}: field {self._group_field!r} must name the sub-dataset, got {group!r:.80}")
        # The bag is the one that the user named, wherever a link to it leads.
        return parse_record(record, name, self.path.parent, group, allow_outside=True, window=self._window)

    def line(self, index: int) -> bytes:
        """Return the record of an answer, with its bag relative to the folder that the bag lies in.

        Raises:
            SampleError: as `read`.
        """
        return json.dumps(self._record(index), ensure_ascii=False).encode()

    def identity(self) -> dict[str, str]:
        """Return what determines its samples."""
        return {"digest": self.digest(), **named_window(self._window)}

    def digest(self) -> str:
        """Return the digest of all answers and of the bag's camera topics."""
        content = json.dumps([self._messages, self._topics], sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    def _record(self, index: int) -> dict[str, Any]:
        fields = self._messages[index]
        topic = self._topic_of(fields["stamps_ns"], f"{self.path}, answer {index + 1}")
        return {"id": index, "bag": self.path.name, "topic": topic, **fields}

    def _topic_of(self, stamps_ns: list[int], name: str) -> str:
        for topic in self._topics:
            try:
                index_topic(self.path, topic).at(stamps_ns)
            except NoFramesError:
                continue
            return topic
        listed = ", ".join(self._topics) or "none"
        rule = f"the {len(stamps_ns)} frames of an answer must all be on one image topic of its bag"
        raise SampleError("missing_media", name, f"{rule}; it has {listed}")


def _read_answers(path: Path) -> list[dict[str, Any]]:
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    with open_bag(path) as bag:
        chosen = [each for each in bag.connections if each.msgtype == ANSWER_TYPE]
        if not chosen:
            return []
        types = get_typestore(Stores.LATEST)
        types.register(get_types_from_msg(chosen[0].msgdef.data, ANSWER_TYPE))
        messages: list[Any] = [types.deserialize_cdr(data, ANSWER_TYPE) for _, _, data in bag.messages(chosen)]
    records = (_fields(message) for message in messages if message.finish_reason == FinishReason.STOP)
    return [each for each in records if each["answer"].strip() and each["stamps_ns"]]


def _fields(message: Any) -> dict[str, Any]:
    """Return the fields of a record for a message; a capture that occurs twice in a clip is listed once."""
    stamps_ns = sorted({stamp.sec * NS_PER_S + stamp.nanosec for stamp in message.stamps})
    fields = {"stamps_ns": stamps_ns, "question": message.question, "answer": message.text}
    choices = {"choices": list(message.choices)} if message.choices else {}
    standing = {"standing": message.standing} if message.standing else {}
    return fields | choices | standing | {"model": message.model, "precision": message.precision}
