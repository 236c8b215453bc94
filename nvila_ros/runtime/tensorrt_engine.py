"""`Engine` over TensorRT plans: buffers allocated when it is loaded, one stream, a cache that is never copied.

Tried without a GPU only, against a stand-in that runs the same graphs by the same pointers (tests/runtime).

Plans take float16 where the seam has float32. A cache in the append form is told by pointers: `new` is bound right
behind `past`, whose rows are a multiple of what TensorRT aligns to. One in place is bound as input and output at once.

Shapes: N tiles, C channels, H W pixels, P patches, E vision width, G visual tokens, L tokens in this call, T past
tokens, M tokens of the cache, D decoder width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from nvila_ros.errors import BackendError
from nvila_ros.export.graph import GraphForm
from nvila_ros.models.spec import DecoderSpec, ModelSpec
from nvila_ros.runtime import tensorrt_api as api
from nvila_ros.runtime.rotary import causal_mask, rotary_tables
from nvila_ros.runtime.tensorrt_builder import DECODE, PREFILL, Limits, part_profiles
from nvila_ros.runtime.tensorrt_cuda import ALIGNMENT, Buffer, Cuda

FLOOR = np.float32(-6e4)  # of a mask in float16, which has no -1e9


class DeviceCache:
    """Keys and values of one sequence on the device."""

    def __init__(self, cuda: Cuda, spec: DecoderSpec, capacity: int) -> None:
        self.row_bytes = 2 * spec.num_kv_heads * spec.head_size  # of one token in one layer, float16
        names = [f"{key}_{i}" for i in range(spec.num_layers) for key in "kv"]
        self.buffer_by_name = {name: Buffer(cuda, capacity * self.row_bytes) for name in names}
        # In place, attention reads rows that no token has filled: what is hidden by a mask must still be a number.
        for buffer in self.buffer_by_name.values():
            cuda.clear(buffer.pointer, buffer.num_bytes)
        self.capacity = capacity
        self.length = 0

    def truncate(self, length: int) -> None:
        """Forget all tokens from `length` on."""
        assert 0 <= length <= self.length, f"cannot cut {self.length} tokens to {length}"
        self.length = length


class Part:
    """One plan with its context and the buffers of its inputs and outputs."""

    def __init__(self, trt: Any, runtime: Any, cuda: Cuda, name: str, plan: bytes) -> None:
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BackendError(f"TensorRT {trt.__version__} cannot load the plan of {name}; build it on this device")
        self._engine, self._cuda = engine, cuda  # a context does not keep its engine alive
        self._context = engine.create_execution_context()
        self._profile = 0  # a first context starts with it
        self._buffers: dict[str, Buffer] = {}

    def use(self, profile: int) -> None:
        """Take another profile; shapes and addresses must be given anew."""
        if profile != self._profile:
            self._check(self._context.set_optimization_profile_async(profile, self._cuda.stream), "profile")
            self._cuda.wait()
            self._profile = profile

    def allocate(self, name: str, num_bytes: int) -> Buffer:
        """Return the buffer of an input or output, the same as long as it is large enough."""
        if name not in self._buffers or self._buffers[name].num_bytes < num_bytes:
            self._buffers[name] = Buffer(self._cuda, num_bytes)
        return self._buffers[name]

    def give(self, name: str, array: np.ndarray) -> None:
        """Copy an input to the device."""
        array = np.ascontiguousarray(array)
        buffer = self.allocate(name, array.nbytes)
        self._cuda.upload(array, buffer.pointer)
        self.bind(name, buffer.pointer, array.shape)

    def bind(self, name: str, pointer: int, shape: tuple[int, ...] | None = None) -> None:
        """Let an input or output lie at an address; inputs tell their shape."""
        assert pointer % ALIGNMENT == 0, f"{name} must lie at a multiple of {ALIGNMENT}, got {pointer}"
        if shape is not None:
            self._check(self._context.set_input_shape(name, shape), name)
        self._check(self._context.set_tensor_address(name, pointer), name)

    def reserve(self, name: str, shape: tuple[int, ...], dtype: Any) -> Buffer:
        """Let an output lie in a buffer of this part's own."""
        buffer = self.allocate(name, prod(shape) * np.dtype(dtype).itemsize)
        self.bind(name, buffer.pointer)
        return buffer

    def run(self) -> None:
        """Start on what is bound."""
        self._check(self._context.execute_async_v3(self._cuda.stream), "run")

    def _check(self, is_done: bool, what: str) -> None:
        if not is_done:
            raise BackendError(f"TensorRT refused {what}; its log says why")


class TensorRtEngine:
    """`Engine` over three plans of one build."""

    def __init__(
        self,
        spec: ModelSpec,
        plans: Mapping[str, bytes],
        embedding_VD: np.ndarray,
        form: GraphForm,
        limits: Limits,
        precision: str,
        trt: Any,
        cuda: Cuda,
    ) -> None:
        self.spec, self.precision = spec, precision
        self._form, self._limits, self._cuda = form, limits, cuda
        self._embedding_VD = embedding_VD
        logger, _ = api.open_log(trt)
        runtime = trt.Runtime(logger)
        self._runtime = runtime  # it must outlive the engines
        self._parts = {name: Part(trt, runtime, cuda, name, plan) for name, plan in plans.items()}
        for part in self._parts:
            self._allocate_inputs(part)
        self._cos, self._sin = (t.astype(np.float16) for t in rotary_tables(spec.decoder, limits.capacity))

    def _allocate_inputs(self, part: str) -> None:
        """Take the memory of the largest inputs, so that no later call takes more."""
        for shapes in part_profiles(self.spec, part, self._form, self._limits):
            for name, (_, _, largest) in shapes.items():
                if not name.startswith("past_"):  # which lie in the caches
                    self._parts[part].allocate(name, 2 * prod(largest))

    def vision(self, tile_NCHW: np.ndarray) -> np.ndarray:
        """Return the features of tiles, (N, P, E)."""
        vision = self.spec.vision
        return self._run_tiles("vision", "tile", tile_NCHW, "feat", (vision.num_patches, vision.width))

    def project(self, feat_NPE: np.ndarray) -> np.ndarray:
        """Return the visual tokens, (N, G, D)."""
        shape = (self.spec.tokens_per_tile, self.spec.decoder.width)
        return self._run_tiles("projector", "feat", feat_NPE, "visual", shape)

    def embed(self, ids_L: np.ndarray) -> np.ndarray:
        """Return the embeddings of token ids, (L, D)."""
        return self._embedding_VD[ids_L].astype(np.float32, copy=False)

    def new_cache(self, capacity: int) -> DeviceCache:
        """Return an empty cache for `capacity` tokens; in place it has the size of the plan's."""
        assert capacity <= self._limits.capacity, f"plans hold {self._limits.capacity} tokens, {capacity} needed"
        is_fixed = self._form.decoder == "in_place"
        return DeviceCache(self._cuda, self.spec.decoder, self._limits.capacity if is_fixed else capacity)

    def forward(self, embeds_LD: np.ndarray, cache: DeviceCache) -> np.ndarray:
        """Append L tokens to the cache and return the logits after the last one, (V,)."""
        # Checked here: TensorRT drops what is written beyond a cache without a word.
        needed = cache.length + len(embeds_LD)
        assert needed <= cache.capacity, f"cache holds {cache.capacity} tokens, {needed} needed"
        for first in range(0, len(embeds_LD), self._limits.max_chunk):
            chunk = embeds_LD[first : first + self._limits.max_chunk].astype(np.float16)
            logits = self._step(chunk, cache)
        logits_V = np.empty(self.spec.decoder.vocab_size, np.float32)
        self._cuda.download(logits.pointer, logits_V)
        return logits_V

    def _step(self, embeds_LD: np.ndarray, cache: DeviceCache) -> Buffer:
        decoder, start = self._parts["decoder"], cache.length
        decoder.use(DECODE if len(embeds_LD) == 1 and start else PREFILL)
        decoder.give("embeds", embeds_LD)
        bind = self._bind_in_place if self._form.decoder == "in_place" else self._bind_append
        bind(decoder, cache, start, start + len(embeds_LD))
        num_top = min(64, self.spec.decoder.vocab_size)
        decoder.reserve("top_logits", (num_top,), np.float32)
        decoder.reserve("top_ids", (num_top,), np.int64)
        logits = decoder.reserve("logits", (self.spec.decoder.vocab_size,), np.float32)
        decoder.run()
        cache.length = start + len(embeds_LD)
        return logits

    def _bind_append(self, decoder: Part, cache: DeviceCache, start: int, end: int) -> None:
        decoder.give("cos", self._cos[start:end])
        decoder.give("sin", self._sin[start:end])
        decoder.give("mask", np.maximum(causal_mask(end - start, end), FLOOR).astype(np.float16))
        shape = (start, self.spec.decoder.num_kv_heads, self.spec.decoder.head_size)
        for name, buffer in cache.buffer_by_name.items():
            decoder.bind(f"past_{name}", buffer.pointer, shape)
            decoder.bind(f"new_{name}", buffer.pointer + start * cache.row_bytes)

    def _bind_in_place(self, decoder: Part, cache: DeviceCache, start: int, end: int) -> None:
        half = self.spec.decoder.head_size // 2
        decoder.give("cos", self._cos[None, start:end, :half])
        decoder.give("sin", self._sin[None, start:end, :half])
        decoder.give("mask", np.arange(cache.capacity) <= np.arange(start, end)[:, None])
        decoder.give("start", np.array([start], np.int64))
        shape = (1, self.spec.decoder.num_kv_heads, cache.capacity, self.spec.decoder.head_size)
        for name, buffer in cache.buffer_by_name.items():
            decoder.bind(f"past_{name}", buffer.pointer, shape)
            decoder.bind(f"present_{name}", buffer.pointer)

    def _run_tiles(self, name: str, source: str, array: np.ndarray, target: str, shape: tuple[int, int]) -> np.ndarray:
        part, size = self._parts[name], self._limits.max_tiles
        done = np.empty((len(array), *shape), np.float16)
        for first in range(0, len(array), size):
            tiles = array[first : first + size].astype(np.float16)
            part.give(source, tiles)
            buffer = part.reserve(target, (size, *shape), np.float16)
            part.run()
            self._cuda.download(buffer.pointer, done[first : first + len(tiles)])
        return done.astype(np.float32)
