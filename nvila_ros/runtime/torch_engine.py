"""Torch eager: the reference backend, as slow and obvious as it may be."""

from __future__ import annotations

import numpy as np
import torch

from nvila_ros.models.checkpoint import Checkpoint
from nvila_ros.models.decoder import KvCache
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.threads import set_threads
from nvila_ros.runtime.checks import check_append, check_copy, check_tree, check_truncation
from nvila_ros.runtime.contract import Tree


class TorchCache(KvCache):
    """The decoder's own cache with the engine's view of it."""

    @property
    def capacity(self) -> int:
        """Tokens that fit."""
        return self.k.shape[3]

    def truncate(self, length: int) -> None:
        """Drop all tokens from `length` on."""
        check_truncation(self, length)
        self.length = length

    def copy_prefix(self, source: TorchCache, length: int) -> None:
        """Replace the content by the first `length` tokens of another cache."""
        check_copy(self, source, length)
        self.k[:, :, :, :length] = source.k[:, :, :, :length]
        self.v[:, :, :, :length] = source.v[:, :, :, :length]
        self.length = length


class TorchEngine:
    """`Engine` over the reference model in fp32."""

    precision = "fp32"
    batch_tiles = 1

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.spec = checkpoint.spec
        self.model = load_torch_model(checkpoint)
        # The decoder amplifies the projector's rounding most of all: logits of the golden cases differ by up to 8e-5
        # with sums in float32 and 5e-5 with these.
        self.model.mm_projector.double()

    @torch.inference_mode()
    def vision(self, tile_NCHW: np.ndarray) -> np.ndarray:
        """Return the features of tiles, (N, P, E)."""
        return self.model.vision(torch.from_numpy(tile_NCHW)).numpy()

    @torch.inference_mode()
    def project(self, feat_NPE: np.ndarray) -> np.ndarray:
        """Return the visual tokens, (N, G, D)."""
        return self.model.project(torch.from_numpy(feat_NPE).double()).float().numpy()

    @torch.inference_mode()
    def downsample(self, feat_NPE: np.ndarray) -> np.ndarray:
        """Return what the projector's first map reads, (N, G, r * r * E), to be compared with the reference's."""
        return self.model.mm_projector.layers[0](torch.from_numpy(feat_NPE)).numpy()

    @torch.inference_mode()
    def embed(self, ids_L: np.ndarray) -> np.ndarray:
        """Return the embeddings of token ids, (L, D)."""
        return self.model.llm.embed(torch.from_numpy(ids_L)).numpy()

    def new_cache(self, capacity: int) -> TorchCache:
        """Return an empty cache for `capacity` tokens."""
        return TorchCache(self.spec.decoder, capacity)

    @torch.inference_mode()
    def forward(self, embeds_LD: np.ndarray, cache: TorchCache) -> np.ndarray:
        """Append L tokens to the cache and return the logits after the last one, (V,)."""
        check_append(cache, len(embeds_LD))
        hidden_BLD = self.model.llm(torch.from_numpy(embeds_LD)[None], cache)
        return self.model.llm.head(hidden_BLD[0, -1]).numpy()

    @torch.inference_mode()
    def forward_tree(self, embeds_LD: np.ndarray, cache: TorchCache, tree: Tree) -> np.ndarray:
        """Append L tokens of several branches and return the wanted logits, (R, V)."""
        check_tree(cache, len(embeds_LD), self.spec.decoder.max_positions, tree)
        positions_L, sees_LM = torch.from_numpy(tree.positions_L), torch.from_numpy(tree.sees_LM)
        hidden_BLD = self.model.llm(torch.from_numpy(embeds_LD)[None], cache, positions_L, sees_LM)
        return self.model.llm.head(hidden_BLD[0, tree.wanted_R]).numpy()

    @torch.inference_mode()
    def forward_all(self, embeds_LD: np.ndarray) -> np.ndarray:
        """Return the logits after each of L tokens of a prompt, (L, V)."""
        return self.model.llm.head(self.model.llm(torch.from_numpy(embeds_LD)[None]))[0].numpy()


def load_torch_model(checkpoint: Checkpoint) -> Nvila:
    """Return the reference model in fp32, ready for inference."""
    with torch.device("meta"):
        model = Nvila(checkpoint.spec)
    state = {key: torch.from_numpy(array) for key, array in checkpoint.weights().items()}
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def load(checkpoint: Checkpoint, threads: int = 0) -> TorchEngine:
    """Load a checkpoint; `threads` 0 takes as many as the model keeps busy."""
    set_threads(checkpoint.spec, threads)
    return TorchEngine(checkpoint)
