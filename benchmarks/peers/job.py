"""The work of every runtime, and an environment that keeps its process off the network."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nvila_ros.models.spec import ModelSpec, ProjectorSpec, VisionSpec
from nvila_ros.models.variants import VARIANTS

Round = Callable[[], Mapping[str, list[float]]]
"""Does the work once and returns the seconds of each step by its name: `prefill` and `decode`, or `tile`."""

QUIET = {
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Environment of every child: no runtime uses the network."""


@dataclass(frozen=True, slots=True)
class PeerJob:
    """The model's shapes and what is run.

    Attributes:
        variant: name of a published one.
        layers: of the language model; 0 means all of them.
        tower_layers: of the vision tower; 0 means all that reach an answer.
        prompt: tokens of the prefill.
        tokens: decode steps behind it.
        threads: of every runtime.
        head_bits: of our map to the vocabulary, 4 or 8.
        folder: where the runtimes' files lie, to be found again by the next run.
        python: of the environment that the other runtimes are installed in; empty for our own.
    """

    variant: str
    layers: int
    tower_layers: int
    prompt: int
    tokens: int
    threads: int
    head_bits: int
    folder: str
    python: str = ""

    @property
    def decoder_spec(self) -> ModelSpec:
        """The language model, behind a tower that costs nothing."""
        spec = VARIANTS[self.variant].spec
        vision = VisionSpec(
            width=8, num_layers=2, num_heads=1, mlp_width=8, image_px=28, patch_px=14, num_live_layers=1
        )
        projector = ProjectorSpec(kind="mlp_downsample", in_width=8, out_width=spec.decoder.width)
        decoder = replace(spec.decoder, num_layers=self.layers or spec.decoder.num_layers)
        return _as_single_image(replace(spec, vision=vision, projector=projector, decoder=decoder))

    @property
    def tower_spec(self) -> ModelSpec:
        """The vision tower, before a language model that costs nothing."""
        spec = VARIANTS[self.variant].spec
        live = self.tower_layers or spec.vision.num_live_layers
        vision = replace(spec.vision, num_live_layers=live, num_layers=live + 1)
        tiny = {"width": 128, "num_layers": 1, "num_heads": 1, "num_kv_heads": 1, "mlp_width": 256, "vocab_size": 64}
        decoder = replace(spec.decoder, **tiny)
        projector = ProjectorSpec(kind="mlp_downsample", in_width=vision.width, out_width=decoder.width)
        return _as_single_image(replace(spec, vision=vision, projector=projector, decoder=decoder))

    def files(self, name: str) -> Path:
        """Return the folder of one runtime's files for these shapes."""
        layers = self.layers or VARIANTS[self.variant].spec.decoder.num_layers
        return Path(self.folder) / f"{self.variant}-{layers}" / name

    def to_json(self) -> str:
        """Return it as `from_json` reads it."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> PeerJob:
        """Return what `to_json` wrote."""
        return PeerJob(**json.loads(text))


def random_ids(job: PeerJob, index: int) -> np.ndarray:
    """Return the prompt of a round, (L,) int64: another one each time, since some runtimes keep prefixes."""
    return np.random.default_rng(index).integers(5, 400, job.prompt)


def _as_single_image(spec: ModelSpec) -> ModelSpec:
    modes: dict[str, Any] = {"image_mode": "resize", "scales": (), "video_pools": ((1, 1, 1),)}
    return replace(spec, **modes)
