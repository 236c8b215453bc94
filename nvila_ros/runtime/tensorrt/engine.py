"""`Engine` over TensorRT plans: memory allocated at load, one stream, a cache that is never copied.

Tested without a GPU only, against a stand-in that runs the same graphs on the same pointers (tests/runtime).

Plans take float16 where the engine's interface has float32. In the append form, `new` is bound directly behind `past`,
whose rows are a multiple of TensorRT's alignment. In place, the cache is bound as input and output at once, so steps of
one token always have the same addresses and shapes: the first is captured as a CUDA graph, which later steps launch. In
the append form the past grows with every step, and each would need a graph of its own, so no step is captured.

Shapes: N tiles, C channels, H W pixels, P patches, E vision width, G visual tokens, L tokens in this call, R of them
whose logits are wanted, T past tokens, M tokens of the cache after it, D decoder width, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from nvila_ros.errors import BackendError
from nvila_ros.export.decoder import NUM_TOP
from nvila_ros.export.forms import GraphForm
from nvila_ros.models.build import Build
from nvila_ros.models.shapes import EMBEDDING
from nvila_ros.models.spec import ModelSpec
from nvila_ros.runtime.checks import check_append, check_tree
from nvila_ros.runtime.contract import ModelSource, Tree
from nvila_ros.runtime.rotary import rotary_tables
from nvila_ros.runtime.tensorrt import api
from nvila_ros.runtime.tensorrt.builder import DECODE, PREFILL, Limits, part_profiles
from nvila_ros.runtime.tensorrt.cache import DeviceCache
from nvila_ros.runtime.tensorrt.cuda import Cuda
from nvila_ros.runtime.tensorrt.machine import find_machine
from nvila_ros.runtime.tensorrt.plans import choose_plans, map_plan, read_records, rebuild
from nvila_ros.runtime.tensorrt.profile_context import ProfileContext, load_plan

FLOOR = np.float16(-6e4)  # of an additive mask: float16 has no -1e9
_log = logging.getLogger(__name__)


class TensorRtEngine:
    """`Engine` over three plans of one build.

    Args:
        spec: of the model.
        plans: any buffers of bytes, by part.
        embedding_VD: may be mapped from disk; a step reads one row.
        form: of the decoder's graph.
        limits: that the plans were built for.
        precision: for reports.
        trt: the vendor's module.
        cuda: the stream that everything runs on.
        use_graphs: capture steps of one token where their addresses do not change.
    """

    def __init__(
        self,
        spec: ModelSpec,
        plans: Mapping[str, Any],
        embedding_VD: np.ndarray,
        form: GraphForm,
        limits: Limits,
        precision: str,
        trt: Any,
        cuda: Cuda,
        use_graphs: bool = True,
    ) -> None:
        # A prompt longer than the plans' cache is refused like one beyond the model's positions.
        capacity = min(limits.capacity, spec.decoder.max_positions)
        self.spec, self.precision = replace(spec, decoder=replace(spec.decoder, max_positions=capacity)), precision
        self.batch_tiles = limits.max_tiles
        self._is_in_place = form.decoder == "in_place"
        self.use_graphs = use_graphs and self._is_in_place
        self._limits, self._cuda, self._embedding_VD = limits, cuda, embedding_VD
        logger, _ = api.open_log(trt)
        runtime = trt.Runtime(logger)
        self._runtime = runtime  # it must outlive the engines that it loads
        self._parts: dict[str, list[ProfileContext]] = {}
        for name in plans:
            engine = load_plan(trt, runtime, name, plans[name])
            profiles = part_profiles(spec, name, form, limits)
            self._parts[name] = [ProfileContext(trt, engine, cuda, i, shapes) for i, shapes in enumerate(profiles)]
        for decoder, num_rows in zip(self._parts["decoder"], (limits.max_rows, 1), strict=True):
            self._reserve_others(decoder, num_rows)
        self._last = self._parts["decoder"][PREFILL]
        self._cos, self._sin = (t.astype(np.float16) for t in rotary_tables(spec.decoder, limits.capacity))

    def _reserve_others(self, decoder: ProfileContext, num_rows: int) -> None:
        """Allocate inputs and outputs that `part_profiles` does not list."""
        vocab = self.spec.decoder.vocab_size
        decoder.allocate("start", 8)  # of fixed shape, so no profile has it
        decoder.reserve("logits", (num_rows, vocab), np.float32)
        decoder.reserve("top_logits", (num_rows, min(NUM_TOP, vocab)), np.float32)
        decoder.reserve("top_ids", (num_rows, min(NUM_TOP, vocab)), np.int64)

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
        """Return an empty cache for `capacity` tokens; in place it has the plan's size.

        Raises:
            BackendError: it exceeds the plans' limit.
        """
        most = self._limits.capacity
        if capacity > most:
            raise BackendError(
                f"plans have room for {most} tokens, {capacity} needed; ask less, or raise the recipe's limits"
            )
        return DeviceCache(self._cuda, self.spec.decoder, most if self._is_in_place else capacity, self._is_in_place)

    def forward(self, embeds_LD: np.ndarray, cache: DeviceCache) -> np.ndarray:
        """Append L tokens to the cache and return the logits after the last one, (V,)."""
        self._append(embeds_LD, cache)
        return self.fetch_logits()

    def forward_top(self, embeds_LD: np.ndarray, cache: DeviceCache) -> tuple[np.ndarray, np.ndarray]:
        """Append L tokens and return ids and logits of the 64 likeliest next ones, best first.

        For a large vocabulary this downloads a thousandth of what `forward` does. `fetch_logits` returns all logits.
        """
        self._append(embeds_LD, cache)
        count = min(NUM_TOP, self.spec.decoder.vocab_size)
        logits = self._last.fetch("top_logits", np.empty(count, np.float32))
        return self._last.fetch("top_ids", np.empty(count, np.int64)), logits

    def fetch_logits(self) -> np.ndarray:
        """Return the logits after the token appended last, (V,)."""
        return self._last.fetch("logits", np.empty(self.spec.decoder.vocab_size, np.float32))

    def forward_tree(self, embeds_LD: np.ndarray, cache: DeviceCache, tree: Tree) -> np.ndarray:
        """Append L tokens of several branches and return the logits after those wanted, (R, V)."""
        check_tree(cache, len(embeds_LD), len(self._cos), tree)
        start = cache.length
        logits_RV = np.empty((len(tree.wanted_R), self.spec.decoder.vocab_size), np.float32)
        for first, last in self._cut(len(embeds_LD), tree.wanted_R):
            places = np.flatnonzero((tree.wanted_R >= first) & (tree.wanted_R < last))
            # At least one row, since a plan has no empty output.
            wanted_R = tree.wanted_R[places] - first if len(places) else np.zeros(1, np.int64)
            chunk = Tree(tree.positions_L[first:last], tree.sees_LM[first:last, : start + last], wanted_R)
            self._step(embeds_LD[first:last], cache, chunk)
            if len(places):
                logits_RV[places] = self._last.fetch("logits", np.empty((len(places), logits_RV.shape[1]), np.float32))
        return logits_RV

    def _cut(self, num_tokens: int, wanted_R: np.ndarray) -> list[tuple[int, int]]:
        """Return begin and end of chunks within the limits on tokens and wanted rows."""
        wanted_L = np.bincount(wanted_R, minlength=num_tokens)
        cuts, taken = [0], 0
        for i, is_wanted in enumerate(wanted_L):
            if i - cuts[-1] == self._limits.max_chunk or taken + is_wanted > self._limits.max_rows:
                cuts.append(i)
                taken = 0
            taken += is_wanted
        return list(zip(cuts, [*cuts[1:], num_tokens], strict=True))

    def _append(self, embeds_LD: np.ndarray, cache: DeviceCache) -> None:
        """Append consecutive tokens; the logits after the last one stay on the device."""
        for first in range(0, len(embeds_LD), self._limits.max_chunk):
            chunk = embeds_LD[first : first + self._limits.max_chunk]
            positions_L = np.arange(cache.length, cache.length + len(chunk))
            sees_LM = np.arange(cache.length + len(chunk)) <= positions_L[:, None]
            self._step(chunk, cache, Tree(positions_L, sees_LM, np.array([len(chunk) - 1])))

    def _step(self, embeds_LD: np.ndarray, cache: DeviceCache, tree: Tree) -> None:
        """Append one chunk; `self._last` has its logits."""
        start, end = cache.length, cache.length + len(embeds_LD)
        # Checked here: TensorRT silently drops rows written beyond a cache.
        check_append(cache, len(embeds_LD))
        is_decode = len(embeds_LD) == 1 and start > 0
        decoder = self._last = self._parts["decoder"][DECODE if is_decode else PREFILL]
        decoder.give("embeds", embeds_LD.astype(np.float16))
        decoder.give("rows", tree.wanted_R.astype(np.int64))
        if self._is_in_place:
            self._give_in_place(decoder, cache, tree)
        else:
            self._give_append(decoder, cache, tree)
        if is_decode and self.use_graphs:
            self._run_captured(decoder, cache)
        else:
            decoder.run()
        cache.length = end

    def _give_append(self, decoder: ProfileContext, cache: DeviceCache, tree: Tree) -> None:
        decoder.give("cos", self._cos[tree.positions_L])
        decoder.give("sin", self._sin[tree.positions_L])
        decoder.give("mask", np.where(tree.sees_LM, np.float16(0), FLOOR))
        start = cache.length
        shape = (start, self.spec.decoder.num_kv_heads, self.spec.decoder.head_size)
        for name, buffer in cache.buffer_by_name.items():
            decoder.bind(f"past_{name}", buffer.pointer, shape)
            decoder.bind(f"new_{name}", buffer.pointer + start * cache.row_bytes)

    def _give_in_place(self, decoder: ProfileContext, cache: DeviceCache, tree: Tree) -> None:
        half = self.spec.decoder.head_size // 2
        decoder.give("cos", self._cos[None, tree.positions_L, :half])
        decoder.give("sin", self._sin[None, tree.positions_L, :half])
        mask = np.zeros((len(tree.sees_LM), cache.capacity), bool)
        mask[:, : tree.sees_LM.shape[1]] = tree.sees_LM
        decoder.give("mask", mask)
        decoder.give("start", np.array([cache.length], np.int64))
        shape = (1, self.spec.decoder.num_kv_heads, cache.capacity, self.spec.decoder.head_size)
        for name, buffer in cache.buffer_by_name.items():
            decoder.bind(f"past_{name}", buffer.pointer, shape)
            decoder.bind(f"present_{name}", buffer.pointer)

    def _run_captured(self, decoder: ProfileContext, cache: DeviceCache) -> None:
        """Launch this cache's captured step; without one, run the step and capture it."""
        if cache.captured and cache.captured.bindings == decoder.bindings:
            decoder.launch(cache.captured)
            return
        decoder.run()
        try:
            cache.captured = decoder.capture()
        except BackendError as error:
            _log.warning("steps of one token run without a CUDA graph from here on: %s", error)
            self.use_graphs = False

    def _run_tiles(self, name: str, source: str, array: np.ndarray, target: str, shape: tuple[int, int]) -> np.ndarray:
        part, size = self._parts[name][0], self._limits.max_tiles
        done = np.empty((len(array), *shape), np.float16)
        part.reserve(target, (size, *shape), np.float16)
        for first in range(0, len(array), size):
            tiles = array[first : first + size].astype(np.float16)
            part.give(source, tiles)
            part.run()
            part.fetch(target, done[first : first + len(tiles)])
        return done.astype(np.float32)


def load(source: ModelSource, threads: int = 0) -> TensorRtEngine:
    """Load the plans of a build that were made for this machine.

    Everything that a plan depends on is checked before TensorRT reads it, since a plan is code.

    Args:
        source: a build.
        threads: of no effect; the GPU computes.

    Raises:
        BackendError: it is no build, no plan of it fits this machine, or there is no TensorRT or GPU here.
        CheckpointError: a file of the build is missing or changed.
    """
    if not isinstance(source, Build):
        raise BackendError("tensorrt runs builds, got a checkpoint; quantize and compile it with nvila build RECIPE")
    flavours = dict.fromkeys(record.machine.flavour for record in read_records(source))
    if not flavours:
        raise BackendError(f"{source.path} has no plans; {rebuild(source.path)}")
    trt, machine, cuda = find_machine(flavours)
    plans = choose_plans(source, machine)
    record = plans["decoder"]
    mapped = {part: map_plan(source.path, plans[part]) for part in plans}
    embedding_VD = source.map_tensor(EMBEDDING)
    return TensorRtEngine(source.spec, mapped, embedding_VD, record.form, record.limits, source.precision, trt, cuda)
