"""What ways to fine-tune are compared on: the synthetic world under a lamp, and random samples of any size.

Samples are encoded once and lie in memory; a source of `Numbers` names them to the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.spec import ModelSpec
from nvila_ros.prompt.chat import PLACEHOLDER
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.runtime.loading import find_checkpoint
from nvila_ros.training.conversations.encoding import EncodedSample, encode_sample
from nvila_ros.training.conversations.record_media import IMAGE
from nvila_ros.training.conversations.samples import Sample, SampleTurn
from nvila_ros.training.moments import draw_moment
from nvila_ros.training.token_labels import IGNORE
from nvila_ros.visual.encode import arrange
from nvila_ros.visual.views import view_images
from nvila_ros.world.questions import conversation
from nvila_ros.world.rendering import render
from nvila_ros.world.scene import Scene, scene_rng

MODEL = "nvila-tiny"
KINDS = ("color", "shape", "count", "exist", "where")
SEED_BASE = 3 << 29  # of scenes that nothing else draws
HELD_OUT_BASE = SEED_BASE + (1 << 28)
LAMP = (0.2, 0.35, 1.0)
"""Share of red, green and blue that is left."""
ROWS = 168  # of a frame that is filmed, before the resize to a tile
CONTEXT = 300


@dataclass(frozen=True, slots=True)
class LitFrame:
    """A frame under the lamp, filmed when it is asked for."""

    scene: Scene
    t_s: float
    name: str
    kind: str = IMAGE

    def read(self, num_frames: int) -> list[np.ndarray]:
        """Return the one frame, (`ROWS`, width, 3) uint8 RGB."""
        frame = render(self.scene, self.t_s, round(ROWS * self.scene.aspect), ROWS)
        return [np.rint(frame * np.array(LAMP)).astype(np.uint8)]


@dataclass(frozen=True, slots=True)
class Numbers:
    """Samples that lie encoded in memory, as a source: each is its number."""

    size: int
    name: str = "numbers"

    def __len__(self) -> int:
        return self.size

    def read(self, index: int) -> Sample:
        """Return a sample that says its number alone."""
        return Sample(str(index), (), self.name)

    def line(self, index: int) -> bytes:
        """Return its number."""
        return str(index).encode()

    def digest(self) -> str:
        """Return what stands for all."""
        return str(self.size)


def film(seed: int, num_turns: int) -> EncodedSample:
    """Return what the model reads of a sample under the lamp."""
    spec, tokenizer = _reader()
    rng = scene_rng(seed)
    scene, t_s = draw_moment(rng)
    while not (turns := conversation(rng, scene, num_turns, KINDS, t_s=t_s)):
        scene, t_s = draw_moment(rng)
    frame = LitFrame(scene, t_s, str(seed))
    shown = tuple(SampleTurn(() if k else (frame,), turn.text, turn.answer) for k, turn in enumerate(turns))
    return encode_sample(spec, tokenizer, Sample(str(seed), shown, "lamp"))


@lru_cache(maxsize=1)
def _reader() -> tuple[ModelSpec, ChatTokenizer]:
    """Return what a filming process opens, once."""
    checkpoint = open_checkpoint(find_checkpoint(MODEL))
    return checkpoint.spec, ChatTokenizer.from_folder(checkpoint.tokenizer_folder)


def sample_of(spec: ModelSpec) -> EncodedSample:
    """Return an image of one tile and text behind it, of which a third is learned."""
    rng = np.random.default_rng(0)
    px = spec.vision.image_px
    view = view_images(spec, [rng.integers(0, 256, (px, px, 3), np.uint8)])
    num_visual = len(arrange(spec, view, np.empty((1, spec.tokens_per_tile, 1), np.float32)).visual_GD)
    text = rng.integers(0, min(1000, spec.decoder.vocab_size), CONTEXT - num_visual)
    ids = np.concatenate([np.full(num_visual, PLACEHOLDER), text])
    labels = np.where(np.arange(CONTEXT) < CONTEXT * 2 // 3, IGNORE, ids)
    return EncodedSample(ids, labels, (view,))


def random_model(spec: ModelSpec, device: str) -> Nvila:
    """Return a model of random weights, made where it is used."""
    with torch.device("meta"):
        model = Nvila(spec)
    model = model.to_empty(device=device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.02)
            else:
                parameter.fill_(float(not name.endswith("bias")))
    return model.requires_grad_(False)
