"""Calibration data: tiles and prompt embeddings of images and clips with questions.

In: samples, of pictures and a question each. Out: all tiles of the tower and the embeddings of each prompt, visual
tokens included, computed by the functions that answer queries. The tower runs layer by layer, so a checkpoint of any
size is calibrated in the memory of one layer.

Shapes: N tiles, C channels, H W pixels, P patches, E vision width, G visual tokens, L tokens, D decoder width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import torch

from nvila_ros.errors import FrameError
from nvila_ros.models import siglip
from nvila_ros.models.checkpoint import Checkpoint
from nvila_ros.models.projector import Projector
from nvila_ros.models.spec import ModelSpec
from nvila_ros.prompt.chat import PLACEHOLDER, build_prompt
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.quantization.layers import DECODER, TOWER, build_part, embed_tiles, run_tower_layer
from nvila_ros.quantization.options import OnLayer, ignore_progress
from nvila_ros.video.media import IMAGE_SUFFIXES, open_media, read_clip
from nvila_ros.visual.encode import arrange, merge_features
from nvila_ros.visual.tiles import normalize_tiles
from nvila_ros.visual.views import View, clip_length, view_clip, view_image, view_images

QUESTIONS = (
    "Describe what you see.",
    "What is in front of the camera?",
    "How many people are there?",
    "Is there an obstacle in the way?",
    "What is happening?",
    "Read any text that is visible.",
    "Where is the nearest object?",
    "What changed?",
)
"""Used in turn for media without questions."""


@dataclass(frozen=True, slots=True)
class CalibrationSample:
    """One prompt: pictures (H, W, 3) uint8 RGB, of which several are a clip's frames in order, and a question."""

    images: tuple[np.ndarray, ...]
    question: str


@dataclass(frozen=True, slots=True)
class Calibration:
    """The calibration set.

    Attributes:
        tile_NCHW: float32 in [-1, 1], tiles of all samples.
        prompts_LD: float32, one array per sample.
    """

    tile_NCHW: np.ndarray
    prompts_LD: tuple[np.ndarray, ...]


def calibrate(
    checkpoint: Checkpoint,
    tokenizer: ChatTokenizer,
    samples: Iterable[CalibrationSample],
    on_layer: OnLayer = ignore_progress,
    device: str = "cpu",
) -> Calibration:
    """Return the tiles and prompts of calibration samples.

    Args:
        checkpoint: whose tower encodes the samples.
        tokenizer: of the checkpoint.
        samples: images or clips, each with a question.
        on_layer: called after each layer of the tower, with `calibration` as the part.
        device: of torch, where the tower runs.

    Raises:
        FrameError: there is no sample.
        CheckpointError: the checkpoint is not whole.
    """
    spec, samples = checkpoint.spec, list(samples)
    if not samples:
        raise FrameError("calibration needs at least one sample, got none; name media that can be read")
    views = [view_sample(spec, sample) for sample in samples]
    tile_NCHW = normalize_tiles([tile for view in views for tile in view.tiles], spec.pixel_dtype)
    feat_NPE = encode_tiles(checkpoint, tile_NCHW, on_layer, device)
    ends = np.cumsum([len(view.tiles) for view in views])[:-1]
    by_sample = np.split(feat_NPE, ends)
    embeds = _embed(checkpoint, tokenizer, zip(samples, views, by_sample, strict=True))
    return Calibration(tile_NCHW, tuple(embeds))


def view_sample(spec: ModelSpec, sample: CalibrationSample) -> View:
    """Return the view of a sample: a single image is tiled, several are a clip where the model takes one."""
    images = sample.images
    if len(images) == 1:
        return view_image(spec, images[0])
    length = clip_length(spec, len(images))
    return view_clip(spec, images[-length:]) if length else view_images(spec, images)


def encode_tiles(
    checkpoint: Checkpoint, tile_NCHW: np.ndarray, on_layer: OnLayer = ignore_progress, device: str = "cpu"
) -> np.ndarray:
    """Return the tower's features of tiles, (N, P, E)."""
    spec, weights = checkpoint.spec.vision, checkpoint.weights("vision_tower")
    feat_NPE = embed_tiles(spec, weights, tile_NCHW, device)
    for i in range(spec.num_live_layers):
        name = f"{TOWER}.encoder.layers.{i}"
        run_tower_layer(build_part(siglip.VisionLayer, weights, name, spec, device=device), feat_NPE)
        on_layer("calibration", i + 1, spec.num_live_layers)
    return feat_NPE.numpy()


def read_samples(folder: Path, num_frames: int) -> Iterator[CalibrationSample]:
    """Yield a sample for each image of a folder, in natural order, and one for each video in it.

    Args:
        folder: all files in it that are not images are read as videos.
        num_frames: of each video, spread evenly over it.

    Raises:
        FrameError: there is no such folder, or a file cannot be decoded.
    """
    if not folder.is_dir():
        raise FrameError(f"calibration media must be a folder of images and videos, got {str(folder)!r}")
    questions = cycle(QUESTIONS)
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    if any(path.suffix.lower() in IMAGE_SUFFIXES for path in files):
        images = open_media(folder)
        for i in range(images.num_frames):
            yield CalibrationSample((images.read(i),), next(questions))
    for path in files:
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            video = open_media(path)
            yield CalibrationSample(tuple(frame.image for frame in read_clip(video, num_frames)), next(questions))
            video.close()


@torch.inference_mode()
def _embed(
    checkpoint: Checkpoint, tokenizer: ChatTokenizer, seen: Iterable[tuple[CalibrationSample, View, np.ndarray]]
) -> Iterator[np.ndarray]:
    """Yield each sample's prompt embeddings, (L, D)."""
    spec = checkpoint.spec
    projector = build_part(Projector, checkpoint.weights("mm_projector"), "mm_projector", spec.projector).double()
    table_VD = checkpoint.tensors[f"{DECODER}.embed_tokens.weight"].read()  # as stored: it may be half of a model
    for sample, view, feat_NPE in seen:
        merged_BPE = torch.from_numpy(merge_features(spec, view, feat_NPE))
        shown = arrange(spec, view, projector(merged_BPE.double()).float().numpy())
        ids_L = build_prompt(tokenizer, [*shown.parts, sample.question])
        embeds_LD = table_VD[np.maximum(ids_L, 0)].astype(np.float32)
        embeds_LD[ids_L == PLACEHOLDER] = shown.visual_GD
        yield embeds_LD
