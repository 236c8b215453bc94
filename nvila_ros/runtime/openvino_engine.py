"""OpenVINO on the CPU: a fast backend where there is no GPU, for float checkpoints and for quantized weights.

The models are built from spec and weights (`openvino_parts`), not read from our ONNX graphs: the plugin keeps a KV
cache in place only for a model with state, and those graphs hand theirs in and out, so each step would copy all of it.

Cutting a cache back is a central operation here, but the plugin's cache can only grow: reading it out and setting it
anew copies all of it. So rows cut away stay where they are and the mask hides them, since attention does not ask where
a row lies and its rotary position was given to it when it was new. Only when such rows outnumber a quarter of the
others are they swept out.

Of quantized models, activations are rounded to eight bits in groups of 128 inputs: groups of 32 decode up to a seventh
faster and prefill a quarter to a third slower, and prompts with pictures are long.

Shapes: N tiles, C channels, H W pixels, P patches, E vision width, G visual tokens, L tokens in this call, M rows of
the cache after it, D decoder width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nvila_ros.models.quantized import Int4Weight, Int8Weight, Weight, as_array
from nvila_ros.models.spec import ModelSpec
from nvila_ros.runtime.contract import Source
from nvila_ros.runtime.openvino_api import ov
from nvila_ros.runtime.openvino_parts import (
    DYNAMIC_GROUP,
    Weights,
    draw_head,
    draw_projector,
    draw_stage,
    draw_vision,
)
from nvila_ros.runtime.openvino_weights import WeightStore, quantize_rows
from nvila_ros.runtime.rotary import causal_mask, rotary_tables

STAGE_LAYERS = 14  # of the decoder in one model: the fewer, the less is held twice while a model loads
HIDDEN = np.float32(-1e9)  # finite, as in `causal_mask`
MIN_SWEEP_ROWS = 32
EMBEDDING, HEAD = "llm.model.embed_tokens.weight", "llm.lm_head.weight"
TOWER_PROBE = "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"
DECODER_PROBE = "llm.model.layers.0.mlp.up_proj.weight"


class StateCache:
    """A request for each stage, which holds the keys and values of its layers.

    Attributes:
        length: tokens held.
        capacity: tokens that fit.
    """

    def __init__(self, requests: Sequence[ov.InferRequest], capacity: int) -> None:
        self.requests = requests
        self.capacity = capacity
        self.length = 0
        self._floor_M = np.zeros(0, np.float32)  # what the mask adds to each row: 0 or HIDDEN

    def truncate(self, length: int) -> None:
        """Forget all tokens from `length` on."""
        assert 0 <= length <= self.length, f"cannot cut {self.length} tokens to {length}"
        if length == 0:
            self._reset()
        self._floor_M[self._live_rows()[length:]] = HIDDEN
        self.length = length

    def append(self, num_new: int) -> np.ndarray:
        """Make place for new tokens and return their mask, (1, 1, L, M)."""
        num_old = len(self._floor_M)
        if num_old - self.length > max(MIN_SWEEP_ROWS, self.length // 4):
            self._sweep()
            num_old = self.length
        mask_LM = np.empty((1, 1, num_new, num_old + num_new), np.float32)
        mask_LM[..., :num_old] = self._floor_M
        mask_LM[..., num_old:] = causal_mask(num_new, num_new)
        self._floor_M = np.append(self._floor_M, np.zeros(num_new, np.float32))
        self.length += num_new
        return mask_LM

    def _live_rows(self) -> np.ndarray:
        return np.flatnonzero(self._floor_M == 0)

    def _reset(self) -> None:
        for request in self.requests:
            request.reset_state()
        self._floor_M = np.zeros(0, np.float32)

    def _sweep(self) -> None:
        """Drop the hidden rows."""
        rows = self._live_rows()
        for request in self.requests:
            for state in request.query_state():
                old = state.state
                kept = ov.Tensor(old.element_type, ov.Shape([*old.shape[:2], len(rows), old.shape[3]]))
                kept.data[:] = old.data[:, :, rows]
                state.state = kept
        self._floor_M = np.zeros(len(rows), np.float32)


class Part:
    """A compiled model whose weights the plugin has packed, so that their first form needs no memory."""

    def __init__(self, model: ov.Model, store: WeightStore, config: dict[str, object]) -> None:
        self._store = store  # must outlive the model
        self._compiled = ov.Core().compile_model(model, "CPU", config)
        # With changing shapes the plugin packs when it first runs.
        if any(port.partial_shape.is_dynamic for port in self._compiled.inputs):
            shapes = [[max(size, 1) for size in port.partial_shape.get_min_shape()] for port in self._compiled.inputs]
            self.new_request().infer([np.zeros(shape, np.float32) for shape in shapes])
        store.give_back()

    def new_request(self) -> ov.InferRequest:
        """Return a request with a state of its own."""
        return self._compiled.create_infer_request()


class OpenvinoEngine:
    """`Engine` over a model each for the tower, the projector and the head, and one for every few decoder layers."""

    def __init__(self, spec: ModelSpec, weights: Weights, config: dict[str, object]) -> None:
        self.spec, self.precision = spec, _name_precision(weights)
        decoder, store = spec.decoder, WeightStore()
        self._embedding_VD = _hold_embedding(weights, store)
        attention = _attention_type(weights[DECODER_PROBE])
        config = config | {"KV_CACHE_PRECISION": attention.get_type_name()}
        starts = range(0, decoder.num_layers, STAGE_LAYERS)
        runs = [range(start, min(start + STAGE_LAYERS, decoder.num_layers)) for start in starts]
        self._stages = [Part(draw_stage(decoder, run, weights, store, attention), store, config) for run in runs]
        head = draw_head(decoder, _find_head(weights, self._embedding_VD), weights, store)
        self._head = Part(head, store, config).new_request()
        attention = _attention_type(weights[TOWER_PROBE])
        self._vision = Part(draw_vision(spec.vision, weights, store, attention), store, config).new_request()
        grid = spec.vision.grid
        self._projector = Part(draw_projector(spec.projector, grid, weights, store), store, config).new_request()
        self._store = store  # requests borrow its memory
        self._cos, self._sin = rotary_tables(decoder, decoder.max_positions)
        self._beam = np.zeros(1, np.int32)

    def vision(self, tile_NCHW: np.ndarray) -> np.ndarray:
        """Return the features of tiles, (N, P, E)."""
        return np.concatenate([_run(self._vision, tile=tile[None]).copy() for tile in tile_NCHW])

    def project(self, feat_NPE: np.ndarray) -> np.ndarray:
        """Return the visual tokens, (N, G, D)."""
        return np.concatenate([_run(self._projector, feat=feat[None]).copy() for feat in feat_NPE])

    def embed(self, ids_L: np.ndarray) -> np.ndarray:
        """Return the embeddings of token ids, (L, D)."""
        return self._embedding_VD[ids_L].astype(np.float32)

    def new_cache(self, capacity: int) -> StateCache:
        """Return an empty cache for `capacity` tokens."""
        return StateCache([stage.new_request() for stage in self._stages], capacity)

    def forward(self, embeds_LD: np.ndarray, cache: StateCache) -> np.ndarray:
        """Append L tokens to the cache and return the logits after the last one, (V,)."""
        start, end = cache.length, cache.length + len(embeds_LD)
        assert end <= cache.capacity, f"cache holds {cache.capacity} tokens, {end} needed"
        tables = {
            "cos": self._cos[None, None, start:end],
            "sin": self._sin[None, None, start:end],
            "mask": cache.append(end - start),
            "beam": self._beam,
        }
        hidden_LD = embeds_LD[None]
        for request in cache.requests:
            hidden_LD = _run(request, hidden=hidden_LD, **tables)
        return _run(self._head, hidden=hidden_LD[:, -1:])[0, 0].copy()


def load(source: Source, threads: int = 0) -> OpenvinoEngine:
    """Load a checkpoint in fp32 or a build with its quantized weights.

    Args:
        source: where the weights come from.
        threads: how many compute, the caller's among them; 0 takes every core. They sleep between calls, so a ROS
            executor beside them has the cores to itself then, and shares them while a call runs.
    """
    return load_quantized(source.spec, source.weights(), threads)


def load_quantized(spec: ModelSpec, weights: Weights, threads: int = 0) -> OpenvinoEngine:
    """Load weights of which any linear map may be quantized; see `load`.

    Activations that meet integers are rounded to eight bits: by the scale that came with the weight, else by the
    largest of each group of 128 inputs. Beside a quantized decoder, a float head is rounded to eight bits by row and
    embeddings to fp16.
    """
    config: dict[str, object] = {
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # a camera's callbacks must find a core while the model runs
        "INFERENCE_PRECISION_HINT": "f32",  # else all that is float becomes bfloat16 where the CPU has it
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": DYNAMIC_GROUP,
    }
    return OpenvinoEngine(spec, weights, config | ({"INFERENCE_NUM_THREADS": threads} if threads else {}))


def _hold_embedding(weights: Weights, store: WeightStore) -> np.ndarray:
    """Return the embeddings, (V, D): float32 where the decoder is float, else fp16."""
    is_float = isinstance(weights[DECODER_PROBE], np.ndarray)
    return store.hold(as_array(weights, EMBEDDING), np.float32 if is_float else np.float16)


def _find_head(weights: Weights, embedding_VD: np.ndarray) -> Weight:
    """Return the head, which is the array of the embeddings where they are one and stay float."""
    is_tied = HEAD not in weights  # a tied head that was quantized has a tensor of its own
    if embedding_VD.dtype == np.float32:
        return embedding_VD if is_tied else weights[HEAD]
    head = weights[EMBEDDING if is_tied else HEAD]
    return quantize_rows(head) if isinstance(head, np.ndarray) else head


def _attention_type(weight: Weight) -> ov.Type:
    """Return what attention is computed in: among quantized weights bfloat16, where the CPU multiplies it itself.

    In float32 the tower's would take as long as all of its matrices in eight bits, and their rounding is coarser.
    """
    can_halve = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ov.Type.bf16 if can_halve and not isinstance(weight, np.ndarray) else ov.Type.f32


def _name_precision(weights: Weights) -> str:
    """Return what tower and decoder compute in, judged by a weight of each."""
    names = {np.ndarray: "fp32", Int4Weight: "w4a8", Int8Weight: "w8a8"}
    return "+".join(dict.fromkeys(names[type(weights[key])] for key in (TOWER_PROBE, DECODER_PROBE)))


def _run(request: ov.InferRequest, **inputs: np.ndarray) -> np.ndarray:
    """Run on float32 arrays in place and return the output, which the request's next run overwrites."""
    inputs = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
    return request.infer(inputs, share_inputs=True, share_outputs=True)[0]
