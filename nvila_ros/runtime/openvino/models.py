"""OpenVINO on the CPU: the tower and the projector, and the decoder where many tokens come at once.

The models are built from spec and weights (`parts`), a few decoder layers to a model, so that only one stage's float
form is in memory at a time. They are stateless: past keys and values are read from an `AppendCache` in place, and the
new rows are written there.

With quantized weights, activations are quantized to eight bits in groups of 128 inputs. Groups of 64 take a tenth
longer; with groups larger than those of the weights the plugin computes in float, three times as slowly.

Shapes: N tiles, C channels, H W pixels, P patches, E vision width, G visual tokens, L tokens in this call, R tokens
whose logits are wanted, D decoder width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nvila_ros.models.quantized import Weight, Weights
from nvila_ros.models.spec import DecoderSpec, ModelSpec
from nvila_ros.runtime.append import AppendCache, NewTokens
from nvila_ros.runtime.openvino.api import ov
from nvila_ros.runtime.openvino.parts import (
    DYNAMIC_GROUP,
    build_head,
    build_projector,
    build_stage,
    build_vision,
)
from nvila_ros.runtime.openvino.weights import WeightStore

STAGE_LAYERS = 14  # of the decoder in one model: the fewer, the less memory is used twice while a model loads
TOWER_PROBE = "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"
DECODER_PROBE = "llm.model.layers.0.mlp.up_proj.weight"


class CompiledModel:
    """A compiled model whose weights the plugin has packed, so that their original form is out of memory."""

    def __init__(self, model: ov.Model, store: WeightStore, threads: int) -> None:
        self._store = store  # must outlive the model
        self.request = ov.Core().compile_model(model, "CPU", _config(threads)).create_infer_request()
        # With changing shapes the plugin packs when it first runs.
        shapes = {port.any_name: port.partial_shape for port in self.request.model_inputs}
        if any(shape.is_dynamic for shape in shapes.values()):
            self.run({name: _smallest(name, shape) for name, shape in shapes.items()}, {})
        store.give_back()

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Read and write arrays in place; the first output is returned, and overwritten by the next run."""
        for name, array in outputs.items():
            self.request.set_tensor(name, ov.Tensor(array, shared_memory=True))
        return self.request.infer(dict(inputs), share_inputs=True, share_outputs=True)[0]


class OpenvinoVision:
    """The tower and the projector, in integers where their weights are."""

    def __init__(self, spec: ModelSpec, weights: Weights, store: WeightStore, threads: int = 0) -> None:
        attention = attention_type(weights[TOWER_PROBE])
        self._vision = CompiledModel(build_vision(spec.vision, weights, store, attention), store, threads)
        self._projector = CompiledModel(
            build_projector(spec.projector, spec.vision.grid, weights, store), store, threads
        )

    def vision(self, tile_NCHW: np.ndarray) -> np.ndarray:
        """Return the features of tiles, (N, P, E)."""
        return _each(self._vision, "tile", tile_NCHW)

    def project(self, feat_NPE: np.ndarray) -> np.ndarray:
        """Return the visual tokens, (N, G, D)."""
        return _each(self._projector, "feat", feat_NPE)


class OpenvinoDecoder:
    """`Decoder` over a model for each few layers, and one for the head."""

    def __init__(self, spec: DecoderSpec, weights: Weights, head: Weight, store: WeightStore, threads: int = 0) -> None:
        self._vocab_size = spec.vocab_size
        attention = attention_type(weights[DECODER_PROBE])
        starts = range(0, spec.num_layers, STAGE_LAYERS)
        self._runs = [range(start, min(start + STAGE_LAYERS, spec.num_layers)) for start in starts]
        self._stages = [
            CompiledModel(build_stage(spec, run, weights, store, attention), store, threads) for run in self._runs
        ]
        self._head = CompiledModel(build_head(spec, head, weights, store), store, threads)

    def run(self, new: NewTokens, cache: AppendCache) -> np.ndarray:
        """Append new tokens to the cache and return the wanted logits, (R, V)."""
        start, end = cache.length, cache.length + len(new.embeds_LD)
        tables = {"cos": new.cos_LS, "sin": new.sin_LS, "mask": new.mask_LM}
        inputs = {name: table[None, None] for name, table in tables.items()} | {"rows": new.rows_R}
        hidden = new.embeds_LD[None]
        for stage, layers in zip(self._stages, self._runs, strict=True):
            buffers = {name: cache.buffer_by_name[name] for i in layers for name in (f"k_{i}", f"v_{i}")}
            past = {f"past_{name}": buffer[:start] for name, buffer in buffers.items()}
            rows = {f"new_{name}": buffer[start:end] for name, buffer in buffers.items()}
            hidden = stage.run({"hidden": hidden, **inputs, **past}, rows)
        logits_RV = np.empty((len(new.rows_R), self._vocab_size), np.float32)
        self._head.run({"hidden": hidden}, {"logits": logits_RV[None]})
        return logits_RV


def attention_type(weight: Weight) -> ov.Type:
    """Return the type of attention: beside quantized weights bfloat16, where the CPU has instructions for it.

    In float32 the tower's attention would take as long as all of its matrices in eight bits, whose error is larger.
    """
    can_halve = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ov.Type.bf16 if can_halve and not isinstance(weight, np.ndarray) else ov.Type.f32


def _config(threads: int) -> dict[str, object]:
    config: dict[str, object] = {
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # a camera's callbacks need a core while the model runs
        "INFERENCE_PRECISION_HINT": "f32",  # else all float operations become bfloat16 where the CPU has it
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": DYNAMIC_GROUP,
    }
    return config | ({"INFERENCE_NUM_THREADS": threads} if threads else {})


def _smallest(name: str, shape: ov.PartialShape) -> np.ndarray:
    """Return an input of one new token and no past."""
    least = 0 if name.startswith("past_") else 1
    dtype = np.int64 if name == "rows" else np.float32
    return np.zeros([least if size.is_dynamic else size.get_length() for size in shape], dtype)


def _each(part: CompiledModel, name: str, arrays: np.ndarray) -> np.ndarray:
    """Run a model of one tile on each."""
    return np.concatenate([part.run({name: np.ascontiguousarray(array[None])}, {}).copy() for array in arrays])
