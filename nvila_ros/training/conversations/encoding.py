"""A sample to token ids, labels and tiles: the ids of the node's prompts, each followed by its answer.

The functions that answer queries also make the tiles and the prompt here. Answers and the stop token of each are
learned; the system's text, questions and media are not.

Shapes: B blocks that the projector reads, G visual tokens of a block, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nvila_ros.models.spec import ModelSpec
from nvila_ros.prompt.chat import PromptPart, ask, open_chat
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.training.conversations.bad_samples import SampleError
from nvila_ros.training.conversations.record_media import read_medium
from nvila_ros.training.conversations.samples import Sample, SampleTurn
from nvila_ros.training.token_labels import IGNORE
from nvila_ros.visual.encode import arrange
from nvila_ros.visual.views import View, clip_length, view_clip, view_image, view_images


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """What the model reads of a sample.

    Attributes:
        ids_L: int64, with `PLACEHOLDER` for visual tokens; without the last token, which is only a label.
        labels_L: int64, the id that should follow each token, `IGNORE` where none is learned.
        views: of the media, in prompt order.
        branch_L: int64, 0 of what all turns see, k of turn k where turns do not see each other; None where they do.
    """

    ids_L: np.ndarray
    labels_L: np.ndarray
    views: tuple[View, ...]
    branch_L: np.ndarray | None = None

    @property
    def learned_ids(self) -> np.ndarray:
        """The tokens that are learned, in order, (T,) int64."""
        return self.labels_L[self.labels_L != IGNORE]

    @property
    def positions(self) -> np.ndarray:
        """Of each token, (L,) int64: every branch goes on behind what all of them see."""
        order_L = np.arange(len(self.ids_L))
        if self.branch_L is None:
            return order_L
        shared = int((self.branch_L == 0).sum())
        starts_L = np.searchsorted(self.branch_L, self.branch_L)
        return np.where(self.branch_L == 0, order_L, order_L - starts_L + shared)


def encode_sample(spec: ModelSpec, tokenizer: ChatTokenizer, sample: Sample) -> EncodedSample:
    """Return what a model of this spec reads of a sample; its media are opened for it.

    Raises:
        SampleError: a medium is missing or unreadable, or the sample is longer than the model's positions.
    """
    if sample.is_independent:
        return _check_length(spec, _encode_branches(spec, tokenizer, sample), sample.name)
    ids: list[int] = []
    is_learned: list[bool] = []
    views: list[View] = []
    for i, turn in enumerate(sample.turns, start=1):
        shown = _view_turn(spec, turn, sample.name)
        views += shown
        parts = [*(part for view in shown for part in layout(spec, view)), turn.text]
        asked = ask(tokenizer, parts, is_first=not ids)
        end = tokenizer.answer_end if i == len(sample.turns) else tokenizer.turn_end
        answer = [*tokenizer.encode(turn.answer), end]
        ids += asked + answer
        is_learned += [False] * len(asked) + [True] * len(answer)
    ids_L = np.array(ids, np.int64)
    labels_L = np.where(is_learned, ids_L, IGNORE)
    return _check_length(spec, EncodedSample(ids_L[:-1], labels_L[1:], tuple(views)), sample.name)


def _check_length(spec: ModelSpec, encoded: EncodedSample, name: str) -> EncodedSample:
    longest = int(encoded.positions[-1] if encoded.branch_L is None else encoded.positions.max()) + 1
    if longest > spec.decoder.max_positions:
        text = f"must fit the {spec.decoder.max_positions} positions of {spec.name}, got {longest}"
        raise SampleError("too_long", name, text)
    return encoded


def _encode_branches(spec: ModelSpec, tokenizer: ChatTokenizer, sample: Sample) -> EncodedSample:
    """Return a sample whose turns stand alone: the media once, then each question and its answer."""
    views = _view_turn(spec, sample.turns[0], sample.name)
    media = [part for view in views for part in layout(spec, view)]
    shared = open_chat(tokenizer, media) if media else []
    ids, labels, branches = list(shared), [IGNORE] * len(shared), [0] * len(shared)
    for number, turn in enumerate(sample.turns, 1):
        asked = ask(tokenizer, [*media, turn.text], is_first=True)[len(shared) :]
        answer = [*tokenizer.encode(turn.answer), tokenizer.answer_end]
        ids += [*asked, *answer[:-1]]
        labels += [*([IGNORE] * (len(asked) - 1)), *answer]
        branches += [number] * (len(asked) + len(answer) - 1)
    return EncodedSample(
        np.array(ids, np.int64), np.array(labels, np.int64), tuple(views), np.array(branches, np.int64)
    )


def _view_turn(spec: ModelSpec, turn: SampleTurn, name: str) -> list[View]:
    """Return the views of a turn's media."""
    is_alone = len(turn.media) == 1
    return [
        view_medium(spec, read_medium(medium, spec.num_video_frames, name), is_alone=is_alone) for medium in turn.media
    ]


def view_medium(spec: ModelSpec, images: Sequence[np.ndarray], *, is_alone: bool) -> View:
    """Return the view of an image or of a video's frames; only a medium that is alone in its turn is cut into tiles."""
    if len(images) == 1:
        return view_image(spec, images[0]) if is_alone else view_images(spec, images)
    length = clip_length(spec, len(images))
    return view_clip(spec, images[-length:]) if length else view_images(spec, images)


def layout(spec: ModelSpec, view: View) -> tuple[PromptPart, ...]:
    """Return how the prompt shows a view, before its visual tokens are known."""
    num_blocks = len(view.tiles)
    if view.mode == "scaled":
        rows, columns = view.grids[spec.merge_scale]
        num_blocks = rows * columns
    return arrange(spec, view, np.empty((num_blocks, spec.tokens_per_tile, 1), np.float32)).parts
