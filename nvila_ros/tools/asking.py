"""A sample of a data set to the model's answers, through the flow that answers the node's queries.

The turns of a sample are asked in order, as one conversation: a later turn follows the model's own answers, as with a
user, and not those of the sample. Media are shown as in training: a single image is cut into tiles, several are not,
and the frames of a video are pooled where there are enough of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from nvila_ros.errors import QueryError
from nvila_ros.training.conversations.bad_samples import SampleError
from nvila_ros.training.conversations.record_media import Medium, read_medium
from nvila_ros.training.conversations.samples import Sample, SampleTurn
from nvila_ros.types import Answer, Frame, Query


class QueryModel(Protocol):
    """A model that answers queries, such as `pipeline.VisionLanguageModel`."""

    def answer(self, query: Query, frames: Sequence[Frame]) -> Answer:
        """Answer one query about frames in capture order."""
        ...


def ask_sample(
    model: QueryModel, sample: Sample, *, num_frames: int, max_tokens: int, choices: Sequence[str] = ()
) -> list[Answer]:
    """Return the model's answer to each turn of a sample.

    Args:
        model: answers.
        sample: its own answers are not shown.
        num_frames: most frames of a video.
        max_tokens: of the longest answer.
        choices: the only answers allowed; without any, every text is.

    Raises:
        SampleError: a medium cannot be read, a turn cannot be shown as a prompt of the node's, or is too long.
    """
    answers = []
    for number, turn in enumerate(sample.turns):
        if not turn.text.strip():
            raise SampleError("empty_question", sample.name, "a turn must ask something beside its media, got no text")
        shown = sample.turns[0] if sample.is_independent else turn
        frames = show_turn(shown, num_frames, sample.name)
        query = Query(
            query_id=f"{sample.name}, turn {number + 1}",
            question=turn.text,
            num_frames=len(frames),
            max_tokens=max_tokens,
            choices=tuple(choices),
            conversation=sample.name if len(sample.turns) > 1 and not sample.is_independent else "",
            is_follow_up=number > 0 and not frames,
        )
        try:
            answers.append(model.answer(query, frames))
        except QueryError as error:
            raise SampleError("too_long", sample.name, str(error)) from error
    return answers


def show_turn(turn: SampleTurn, num_frames: int, name: str) -> list[Frame]:
    """Return the frames of a turn's media.

    Raises:
        SampleError: a medium cannot be read.
    """
    return [frame for k, medium in enumerate(turn.media) for frame in _frames(medium, k, num_frames, name)]


def _frames(medium: Medium, number: int, num_frames: int, name: str) -> list[Frame]:
    """Return a medium's frames; each image is of a camera of its own, since only one camera's make a clip."""
    images = read_medium(medium, num_frames, name)
    return [Frame(image=image, stamp_ns=k, camera=f"{medium.name}, {number}") for k, image in enumerate(images)]
