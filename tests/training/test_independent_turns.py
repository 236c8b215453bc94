"""Independent turns are learned as if each stood alone behind the media, which are read once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.runtime.torch_engine import load_torch_model
from nvila_ros.training.conversations.bad_samples import SampleError
from nvila_ros.training.conversations.encoding import EncodedSample, encode_sample
from nvila_ros.training.conversations.forward import learned_log_probs
from nvila_ros.training.conversations.packing import join
from nvila_ros.training.conversations.samples import parse_record
from tests.golden_cases import GOLDEN

TURNS = [("What is it? ", "a cat"), ("And there, a dog?", "yes"), ("X", "nothing at all")]
CHECKPOINTS = {name: open_checkpoint(GOLDEN / name / "ckpt") for name in ("lite", "s2", "video")}


def record(turns: list[tuple[str, str]], images: list[str], **fields: Any) -> dict[str, Any]:
    said = [{"from": who, "value": text} for turn in turns for who, text in zip(("human", "gpt"), turn, strict=True)]
    return {"images": images, "conversations": said, **fields} if images else {"conversations": said, **fields}


def encode(name: str, folder: Path, fields: dict[str, Any]) -> EncodedSample:
    checkpoint = CHECKPOINTS[name]
    sample = parse_record(fields, "r", folder, "g")
    return encode_sample(checkpoint.spec, ChatTokenizer.from_folder(checkpoint.tokenizer_folder), sample)


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("num_images", [0, 1, 3])
def test_losses_are_those_of_turns_alone(name: str, num_images: int, tmp_path: Path) -> None:
    images = [f"{k}.png" for k in range(num_images)]
    for k, image in enumerate(images):
        cv2.imwrite(str(tmp_path / image), np.random.default_rng(k).integers(0, 256, (90, 120, 3), np.uint8))
    together = encode(name, tmp_path, record(TURNS, images, independent=True))
    alone = [encode(name, tmp_path, record([turn], images)) for turn in TURNS]
    model = load_torch_model(CHECKPOINTS[name])

    with torch.inference_mode():
        found_T = learned_log_probs(model, join([alone[1], together]))[len(alone[1].learned_ids) :]
        wanted_T = torch.cat([learned_log_probs(model, join([each])) for each in alone])

    assert (found_T - wanted_T).abs().max() < 2e-5
    if num_images:
        assert len(together.ids_L) < sum(len(each.ids_L) for each in alone)


def test_a_record_says_whether_its_turns_are_independent_and_shows_its_media_first(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match="must be true or false"):
        parse_record(record(TURNS, [], independent="yes"), "r", tmp_path, "g")
    turns = [TURNS[0], ("<image>What?", "a"), TURNS[2]]
    with pytest.raises(SampleError, match="must all stand in the first"):
        parse_record(record(turns, ["a.png"], independent=True), "r", tmp_path, "g")
    with pytest.raises(SampleError, match="must ask something"):
        parse_record(record([("<image>", "a"), TURNS[1]], ["a.png"], independent=True), "r", tmp_path, "g")
