"""Training reads the ids and sees the visual tokens that the node does; only answers and their ends are learned."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from nvila_ros.models.checkpoint import Checkpoint, open_checkpoint
from nvila_ros.prompt.chat import build_prompt
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.runtime.torch_engine import TorchEngine, load_torch_model
from nvila_ros.training.conversations.bad_samples import SampleError
from nvila_ros.training.conversations.encoding import encode_sample
from nvila_ros.training.conversations.forward import see_views
from nvila_ros.training.conversations.record_media import IMAGE, VIDEO
from nvila_ros.training.conversations.samples import Sample, SampleTurn
from nvila_ros.training.token_labels import IGNORE
from nvila_ros.types import Frame
from nvila_ros.visual.encode import VisualPrompt
from nvila_ros.visual.frame_encoder import FrameEncoder, SilentProgress
from tests.golden_cases import GOLDEN

NAMES = ("lite", "s2", "video")


@dataclass(frozen=True)
class Shown:
    """Pictures that are there already."""

    kind: str
    images: tuple[np.ndarray, ...]
    name: str = "shown"

    def read(self, num_frames: int) -> list[np.ndarray]:
        return list(self.images[:num_frames])


def picture(seed: int, width: int = 90, height: int = 70) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def film(num_frames: int) -> Shown:
    return Shown(VIDEO, tuple(picture(seed) for seed in range(num_frames)))


def still(seed: int, width: int = 90) -> Shown:
    return Shown(IMAGE, (picture(seed, width),))


MEDIA: dict[str, tuple[Shown, ...]] = {
    "none": (),
    "image": (still(0),),
    "wide image": (still(0, 260),),
    "images": (still(0), still(1), still(2)),
    "clip": (film(8),),
    "short clip": (film(3),),
    "video of one frame": (film(1),),
}


def open_golden(name: str) -> tuple[Checkpoint, ChatTokenizer]:
    checkpoint = open_checkpoint(GOLDEN / name / "ckpt")
    # The tiny decoders stop short of what images and clips at once need.
    decoder = dataclasses.replace(checkpoint.spec.decoder, max_positions=8192)
    checkpoint = dataclasses.replace(checkpoint, spec=dataclasses.replace(checkpoint.spec, decoder=decoder))
    return checkpoint, ChatTokenizer.from_folder(checkpoint.tokenizer_folder)


def see_as_the_node(checkpoint: Checkpoint, media: Sequence[Shown]) -> VisualPrompt:
    """Images are frames of cameras, a video is frames of one."""
    frames = [
        Frame(image=image, stamp_ns=i, camera=f"camera{n}")
        for n, medium in enumerate(media)
        for i, image in enumerate(medium.images)
    ]
    frame_encoder = FrameEncoder(TorchEngine(checkpoint), 0, 0.0)
    return frame_encoder.encode_frames(frames[len(frames) - frame_encoder.num_shown(frames) :], SilentProgress())


def sample_of(*turns: tuple[Sequence[Any], str]) -> Sample:
    return Sample("sample", tuple(SampleTurn(tuple(media), text, answer) for (*media, text), answer in turns), "group")


@pytest.mark.parametrize("kind", MEDIA)
@pytest.mark.parametrize("name", NAMES)
def test_prompt_and_visual_tokens_are_the_nodes(name: str, kind: str) -> None:
    checkpoint, tokenizer = open_golden(name)
    media = MEDIA[kind]

    encoded = encode_sample(checkpoint.spec, tokenizer, sample_of(([*media, "What is it?"], "a cat")))

    seen = see_as_the_node(checkpoint, media)
    prompt_L = build_prompt(tokenizer, [*seen.parts, "What is it?"])
    assert encoded.ids_L[: len(prompt_L)].tolist() == prompt_L.tolist()
    assert encoded.ids_L[len(prompt_L) :].tolist() == tokenizer.encode("a cat")
    if media:
        visual_GD = see_views(load_torch_model(checkpoint), encoded.views).numpy()
        assert np.abs(visual_GD - seen.visual_GD).max() < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_every_turn_follows_the_prompt_that_the_node_would_ask_with(name: str) -> None:
    checkpoint, tokenizer = open_golden(name)
    first, second = still(0, 260), film(8)
    turns = [([first, "What?"], "a cat"), (["Why?"], "so."), ([second, "And now?"], "gone")]

    encoded = encode_sample(checkpoint.spec, tokenizer, sample_of(*turns))

    seen = [see_as_the_node(checkpoint, media) for media in ([first], [], [second])]
    told = [([*s.parts, parts[-1]], answer) for s, (parts, answer) in zip(seen, turns, strict=True)]
    for number, (parts, answer) in enumerate(told):
        prompt_L = build_prompt(tokenizer, parts, told[:number])
        end = len(prompt_L)
        ids = [*tokenizer.encode(answer), tokenizer.answer_end]
        assert encoded.ids_L[:end].tolist() == prompt_L.tolist()
        assert encoded.labels_L[end - 1 : end - 1 + len(ids)].tolist() == ids
    all_told = [i for _, answer in turns for i in (*tokenizer.encode(answer), tokenizer.answer_end)]
    assert encoded.learned_ids.tolist() == all_told
    visual_GD = see_views(load_torch_model(checkpoint), encoded.views).numpy()
    assert np.abs(visual_GD - np.concatenate([s.visual_GD for s in seen])).max() < 1e-5


def test_label_is_the_next_token_or_none() -> None:
    checkpoint, tokenizer = open_golden("lite")

    encoded = encode_sample(checkpoint.spec, tokenizer, sample_of((["a"], "b"), (["c"], "d")))

    is_told = encoded.labels_L[:-1] != IGNORE
    assert np.array_equal(encoded.labels_L[:-1][is_told], encoded.ids_L[1:][is_told])


def test_special_tokens_in_data_are_spelled_out() -> None:
    checkpoint, tokenizer = open_golden("lite")

    encoded = encode_sample(checkpoint.spec, tokenizer, sample_of((["a<|im_end|>"], "b<|im_end|>")))

    assert (encoded.ids_L == tokenizer.answer_end).sum() == 2  # of the system and the user
    assert encoded.learned_ids.tolist().count(tokenizer.answer_end) == 1


def test_sample_must_fit_the_positions_to_the_token() -> None:
    checkpoint, tokenizer = open_golden("lite")
    sample = sample_of(([still(0), "What?"], "a cat"))
    length = len(encode_sample(checkpoint.spec, tokenizer, sample).ids_L)

    for positions, fits in ((length, True), (length - 1, False)):
        decoder = dataclasses.replace(checkpoint.spec.decoder, max_positions=positions)
        spec = dataclasses.replace(checkpoint.spec, decoder=decoder)
        if fits:
            encode_sample(spec, tokenizer, sample)
        else:
            with pytest.raises(SampleError, match=f"got {length}") as refused:
                encode_sample(spec, tokenizer, sample)
            assert refused.value.reason == "too_long"
