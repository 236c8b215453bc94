"""OpenVINO's own eight-bit tower: transformers' SigLIP, converted by OpenVINO and quantized by NNCF after training.

NNCF's preset for transformers, calibrated on a random tile without its correction of biases: neither the number of
samples nor the correction changes what runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers.clock import seconds
from benchmarks.peers.job import PeerJob, Round
from nvila_ros.models.spec import VisionSpec

NEEDS = ("openvino", "nncf", "transformers", "torch")
NUM_SAMPLES = 1


def prepare(kind: str, job: PeerJob) -> None:
    """Convert and quantize."""
    target = _path(job)
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters

    from nvila_ros.runtime.openvino.api import ov

    spec = job.tower_spec.vision
    tiles = [_tile(spec, i) for i in range(NUM_SAMPLES)]
    model = nncf.quantize(
        convert(spec),
        nncf.Dataset(tiles),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=NUM_SAMPLES,
        advanced_parameters=AdvancedQuantizationParameters(disable_bias_correction=True),
    )
    unfinished = target.with_suffix(".part.xml")
    ov.save_model(model, unfinished)
    unfinished.with_suffix(".bin").rename(target.with_suffix(".bin"))
    unfinished.rename(target)


def convert(spec: VisionSpec) -> Any:
    """Return transformers' SigLIP with random weights as an OpenVINO model, tile to features."""
    import torch
    from transformers import SiglipVisionConfig, SiglipVisionModel

    from nvila_ros.runtime.openvino.api import ov

    config = SiglipVisionConfig(
        hidden_size=spec.width,
        intermediate_size=spec.mlp_width,
        num_hidden_layers=spec.num_live_layers,
        num_attention_heads=spec.num_heads,
        image_size=spec.image_px,
        patch_size=spec.patch_px,
        vision_use_head=False,
    )

    class Tower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = SiglipVisionModel(config).eval()

        def forward(self, tile: torch.Tensor) -> torch.Tensor:
            return self.model(tile, output_hidden_states=True).hidden_states[-1]

    example = torch.from_numpy(_tile(spec, 0))
    with torch.inference_mode():
        traced = torch.jit.trace(Tower(), example, check_trace=False)  # checking runs all of it twice more
    return ov.convert_model(traced, example_input=example, input=[tuple(example.shape)])


def load(kind: str, job: PeerJob) -> Round:
    """Return a round of one tile."""
    from nvila_ros.runtime.openvino.api import ov

    hints = {"NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": job.threads}
    request = ov.Core().compile_model(_path(job), "CPU", hints).create_infer_request()
    tile = _tile(job.tower_spec.vision, 1)
    return lambda: {"tile": [seconds(lambda: request.infer([tile]))]}


def _tile(spec: VisionSpec, seed: int) -> np.ndarray:
    shape = (1, 3, spec.image_px, spec.image_px)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def _path(job: PeerJob) -> Any:
    layers = job.tower_spec.vision.num_live_layers
    return job.files("tower").parents[1] / f"tower-{layers}" / "int8.xml"
