"""`Engine` by torch on an NVIDIA GPU: any checkpoint in its own dtype, any build in its quantized precision.

Weights, caches, masks and the choice of the likeliest tokens stay on the device; a step uploads one embedding and
downloads 64 logits. Prompts run eagerly in chunks, steps of one token as CUDA graphs. The same code runs on torch's CPU
device, which the tests do; there it is slow.

Shapes: N tiles, C channels, H W pixels, P patches, E vision width, G visual tokens, L tokens in this call, M tokens in
the cache after it, R tokens whose logits are wanted, D decoder width, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nvila_ros.errors import BackendError
from nvila_ros.export.decoder import NUM_TOP
from nvila_ros.models.build import Build
from nvila_ros.models.quantized import name_precision
from nvila_ros.runtime.checks import check_append, check_positions, check_tree
from nvila_ros.runtime.contract import ModelSource, Tree
from nvila_ros.runtime.cuda.cache import DeviceKvCache
from nvila_ros.runtime.cuda.device import choose_dtype, why_not_on_gpu
from nvila_ros.runtime.cuda.model import load_model
from nvila_ros.runtime.cuda.steps import Capture, DecodeStep, capture_cuda

BATCH_TILES = 8  # on a GPU: enough to fill it, few enough that a cancelled query stops soon
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


class CudaEngine:
    """`Engine` and `TopEngine` over a model on a device.

    Args:
        source: an opened checkpoint or build.
        device: where it computes.
        dtype: of all that is not quantized.
        capture: of decode steps; None runs them eagerly.
    """

    def __init__(
        self, source: ModelSource, device: torch.device, dtype: torch.dtype, capture: Capture | None = None
    ) -> None:
        self.spec, self._device, self._dtype = source.spec, device, dtype
        self.precision = name_precision(source.weights()) if isinstance(source, Build) else NAMES[dtype]
        self.batch_tiles = BATCH_TILES if device.type == "cuda" else 1
        self._model = load_model(source, dtype, device)
        with torch.inference_mode():
            self._step = DecodeStep(self._model.llm, min(NUM_TOP, self.spec.decoder.vocab_size), capture)

    @torch.inference_mode()
    def vision(self, tile_NCHW: np.ndarray) -> np.ndarray:
        """Return the features of tiles, (N, P, E)."""
        return _numpy(self._model.vision(self._upload(tile_NCHW)))

    @torch.inference_mode()
    def project(self, feat_NPE: np.ndarray) -> np.ndarray:
        """Return the visual tokens, (N, G, D)."""
        return _numpy(self._model.project(self._upload(feat_NPE)))

    @torch.inference_mode()
    def embed(self, ids_L: np.ndarray) -> np.ndarray:
        """Return the embeddings of token ids, (L, D)."""
        return _numpy(self._model.llm.embed(torch.from_numpy(np.asarray(ids_L, np.int64)).to(self._device)))

    def new_cache(self, capacity: int) -> DeviceKvCache:
        """Return an empty cache for `capacity` tokens."""
        with torch.inference_mode():
            return DeviceKvCache(self.spec.decoder, capacity, self._dtype, self._device)

    @torch.inference_mode()
    def forward(self, embeds_LD: np.ndarray, cache: DeviceKvCache) -> np.ndarray:
        """Append L tokens to the cache and return the logits after the last one, (V,)."""
        self._append(embeds_LD, cache)
        return self.fetch_logits()

    @torch.inference_mode()
    def forward_top(self, embeds_LD: np.ndarray, cache: DeviceKvCache) -> tuple[np.ndarray, np.ndarray]:
        """Append L tokens and return ids and logits of the likeliest next ones, best first."""
        self._append(embeds_LD, cache)
        logits, ids = self._step.top
        return ids.cpu().numpy(), logits.cpu().numpy()

    @torch.inference_mode()
    def fetch_logits(self) -> np.ndarray:
        """Return all logits after the token appended last, (V,)."""
        return self._step.logits_V.cpu().numpy().copy()

    @torch.inference_mode()
    def forward_tree(self, embeds_LD: np.ndarray, cache: DeviceKvCache, tree: Tree) -> np.ndarray:
        """Append L tokens of several branches and return the wanted logits, (R, V)."""
        check_tree(cache, len(embeds_LD), self.spec.decoder.max_positions, tree)
        positions_L, sees_LM, wanted_R = (
            torch.from_numpy(array).to(self._device) for array in (tree.positions_L, tree.sees_LM, tree.wanted_R)
        )
        hidden_BLD = self._model.llm(self._upload(embeds_LD)[None], cache, positions_L, sees_LM)
        return _numpy(self._model.llm.head(hidden_BLD[0, wanted_R]))

    def _append(self, embeds_LD: np.ndarray, cache: DeviceKvCache) -> None:
        """Append tokens; the last one's logits are in the step's outputs."""
        num_new = len(embeds_LD)
        check_append(cache, num_new)
        check_positions(np.array([cache.length + num_new - 1]), self.spec.decoder.max_positions)
        embeds = self._upload(embeds_LD)
        if num_new == 1:
            self._step.run(embeds[0], cache)
        else:
            self._step.publish(self._model.llm(embeds[None], cache)[0, -1])

    def _upload(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(self._device, self._dtype)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


def load(source: ModelSource, threads: int = 0) -> CudaEngine:
    """Load a checkpoint in its own dtype, or a build with its quantized weights; `threads` says nothing here.

    Raises:
        BackendError: torch sees no GPU, or one that is too small.
    """
    files = {info.file for info in source.tensors.values()} if isinstance(source, Build) else set()
    reason = why_not_on_gpu(source.spec, sum(file.stat().st_size for file in files))
    if reason:
        raise BackendError(f"backend cuda cannot run {source.spec.name}: {reason}; or take backend cpu")
    return CudaEngine(source, torch.device("cuda"), choose_dtype(source.spec), capture_cuda)
