"""`Engine` over TensorRT plans: memory taken when it is loaded, one stream, a cache that is never copied.

Tried without a GPU only, against a stand-in that runs the same graphs by the same pointers (tests/runtime).

Plans take float16 where the seam has float32. A cache in the append form is told by pointers: `new` is bound right
behind `past`, whose rows are a multiple of what TensorRT aligns to. One in place is bound as input and output at once,
so that a step of one token runs on the same addresses and shapes each time: it is captured as a CUDA graph after the
first and launched from then on. In the append form the past grows with every step, and each would be a graph of its
own, so there all steps are started kernel by kernel.

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
from nvila_ros.export.graph import GraphForm
from nvila_ros.models.build import Build
from nvila_ros.models.shapes import EMBEDDING
from nvila_ros.models.spec import ModelSpec
from nvila_ros.runtime.checks import check_append, check_tree
from nvila_ros.runtime.contract import Source, Tree
from nvila_ros.runtime.rotary import rotary_tables
from nvila_ros.runtime.tensorrt import api
from nvila_ros.runtime.tensorrt.builder import DECODE, PREFILL, Limits, part_profiles
from nvila_ros.runtime.tensorrt.cache import DeviceCache
from nvila_ros.runtime.tensorrt.cuda import Cuda
from nvila_ros.runtime.tensorrt.machine import find_machine
from nvila_ros.runtime.tensorrt.part import Part, load_plan
from nvila_ros.runtime.tensorrt.plans import choose_plans, map_plan, read_records, rebuild

FLOOR = np.float16(-6e4)  # of a mask in float16, which has no -1e9
_log = logging.getLogger(__name__)


class TensorRtEngine:
    """`Engine` over three plans of one build.

    Args:
        spec: of the model.
        plans: anything that holds bytes, by part.
        embedding_VD: rows may lie on disk; a step reads one.
        form: of the decoder's graph.
        limits: that the plans were built for.
        precision: what to tell of it.
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
        # A prompt that plans have no room for is refused like one beyond the model's positions.
        capacity = min(limits.capacity, spec.decoder.max_positions)
        self.spec, self.precision = replace(spec, decoder=replace(spec.decoder, max_positions=capacity)), precision
        self.batch_tiles = limits.max_tiles
        self._is_in_place = form.decoder == "in_place"
        self.use_graphs = use_graphs and self._is_in_place
        self._limits, self._cuda, self._embedding_VD = limits, cuda, embedding_VD
        logger, _ = api.open_log(trt)
        runtime = trt.Runtime(logger)
        self._runtime = runtime  # it must outlive what it loads
        self._parts: dict[str, list[Part]] = {}
        for name in plans:
            engine = load_plan(trt, runtime, name, plans[name])
            profiles = part_profiles(spec, name, form, limits)
            self._parts[name] = [Part(trt, engine, cuda, i, shapes) for i, shapes in enumerate(profiles)]
        for decoder, num_rows in zip(self._parts["decoder"], (limits.max_rows, 1), strict=True):
            self._reserve_others(decoder, num_rows)
        self._last = self._parts["decoder"][PREFILL]
        self._cos, self._sin = (t.astype(np.float16) for t in rotary_tables(spec.decoder, limits.capacity))

    def _reserve_others(self, decoder: Part, num_rows: int) -> None:
        """Take the memory of what `part_profiles` does not tell."""
        vocab = self.spec.decoder.vocab_size
        decoder.allocate("start", 8)  # of one shape always, so that no profile names it
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
        """Return an empty cache for `capacity` tokens; in place it has the size of the plan's.

        Raises:
            BackendError: the plans hold fewer.
        """
        most = self._limits.capacity
        if capacity > most:
            raise BackendError(f"plans hold {most} tokens, {capacity} needed; ask less, or raise the recipe's limits")
        return DeviceCache(self._cuda, self.spec.decoder, most if self._is_in_place else capacity, self._is_in_place)

    def forward(self, embeds_LD: np.ndarray, cache: DeviceCache) -> np.ndarray:
        """Append L tokens to the cache and return the logits after the last one, (V,)."""
        self._append(embeds_LD, cache)
        return self.fetch_logits()

    def forward_top(self, embeds_LD: np.ndarray, cache: DeviceCache) -> tuple[np.ndarray, np.ndarray]:
        """Append L tokens and return ids and logits of the 64 likeliest next ones, best first.

        Of a large vocabulary that is a thousandth of what `forward` downloads. Where 64 are not enough,
        `fetch_logits` gives the others.
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
            # Also of a chunk of which nothing is wanted: a plan gives one row at least.
            wanted_R = tree.wanted_R[places] - first if len(places) else np.zeros(1, np.int64)
            chunk = Tree(tree.positions_L[first:last], tree.sees_LM[first:last, : start + last], wanted_R)
            self._step(embeds_LD[first:last], cache, chunk)
            if len(places):
                logits_RV[places] = self._last.fetch("logits", np.empty((len(places), logits_RV.shape[1]), np.float32))
        return logits_RV

    def _cut(self, num_tokens: int, wanted_R: np.ndarray) -> list[tuple[int, int]]:
        """Return where chunks begin and end that hold no more tokens, and wanted ones, than the limits allow."""
        wanted_L = np.bincount(wanted_R, minlength=num_tokens)
        cuts, taken = [0], 0
        for i, is_wanted in enumerate(wanted_L):
            if i - cuts[-1] == self._limits.max_chunk or taken + is_wanted > self._limits.max_rows:
                cuts.append(i)
                taken = 0
            taken += is_wanted
        return list(zip(cuts, [*cuts[1:], num_tokens], strict=True))

    def _append(self, embeds_LD: np.ndarray, cache: DeviceCache) -> None:
        """Append tokens in a run; the logits after the last one stay on the device."""
        for first in range(0, len(embeds_LD), self._limits.max_chunk):
            chunk = embeds_LD[first : first + self._limits.max_chunk]
            positions_L = np.arange(cache.length, cache.length + len(chunk))
            sees_LM = np.arange(cache.length + len(chunk)) <= positions_L[:, None]
            self._step(chunk, cache, Tree(positions_L, sees_LM, np.array([len(chunk) - 1])))

    def _step(self, embeds_LD: np.ndarray, cache: DeviceCache, tree: Tree) -> None:
        """Append one chunk; its logits lie with `self._last`."""
        start, end = cache.length, cache.length + len(embeds_LD)
        # Checked here: TensorRT drops what is written beyond a cache without a word.
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

    def _give_append(self, decoder: Part, cache: DeviceCache, tree: Tree) -> None:
        decoder.give("cos", self._cos[tree.positions_L])
        decoder.give("sin", self._sin[tree.positions_L])
        decoder.give("mask", np.where(tree.sees_LM, np.float16(0), FLOOR))
        start = cache.length
        shape = (start, self.spec.decoder.num_kv_heads, self.spec.decoder.head_size)
        for name, buffer in cache.buffer_by_name.items():
            decoder.bind(f"past_{name}", buffer.pointer, shape)
            decoder.bind(f"new_{name}", buffer.pointer + start * cache.row_bytes)

    def _give_in_place(self, decoder: Part, cache: DeviceCache, tree: Tree) -> None:
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

    def _run_captured(self, decoder: Part, cache: DeviceCache) -> None:
        """Launch what was captured of this cache's steps; the first one runs, and is captured for those to come."""
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


def load(source: Source, threads: int = 0) -> TensorRtEngine:
    """Load the plans of a build that were made on this machine.

    Everything that a plan depends on is compared before TensorRT sees a byte of it: a plan is code.

    Args:
        source: a build.
        threads: of no effect; the GPU computes.

    Raises:
        BackendError: it is no build, no plan of it fits this machine, or there is no TensorRT or GPU here.
        CheckpointError: a file of the build is not as it was built.
    """
    if not isinstance(source, Build):
        raise BackendError("tensorrt runs builds, got a checkpoint; quantize and compile it with nvila build RECIPE")
    flavours = dict.fromkeys(record.machine.flavour for record in read_records(source))
    if not flavours:
        raise BackendError(f"{source.path} holds no plans; {rebuild(source.path)}")
    trt, machine, cuda = find_machine(flavours)
    plans = choose_plans(source, machine)
    record = plans["decoder"]
    mapped = {part: map_plan(source.path, plans[part]) for part in plans}
    embedding_VD = source.map_tensor(EMBEDDING)
    return TensorRtEngine(source.spec, mapped, embedding_VD, record.form, record.limits, source.precision, trt, cuda)
