"""Run calibration through one layer at a time, recording the inputs of its linear maps.

Peak memory is one layer's float weights and the calibration set's activations. Every layer reads the activations of the
*float* layers before it: each layer is fitted to the function that the model was trained to be, independently of how
the layers before were quantized.

A layer may be on a GPU, with all that its searches read; activations of the whole set stay in the host's memory and
pass through it a prompt or a few tiles at a time.

Shapes: N tiles, P patches, E vision width, L tokens of a prompt, D decoder width, S head size, T sampled tokens,
K inputs of a linear map.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from nvila_ros.models import decoder, siglip
from nvila_ros.models.spec import DecoderSpec, VisionSpec

NUM_SAMPLED = 1024
"""Most tokens whose inputs are kept for searches; statistics use all tokens."""
TILES_AT_ONCE = 2  # at 1024 patches of 16 heads, a tile's attention alone is 64 MiB
TOWER, DECODER = "vision_tower.vision_model", "llm.model"

FloatWeights = Mapping[str, np.ndarray]
PartModule = TypeVar("PartModule", bound=nn.Module)


class Tap:
    """Inputs of a linear map over the calibration set.

    Attributes:
        amax_K: the largest magnitude of each input.
        sum_abs_K: sums of magnitudes, float64.
        count: tokens seen.
    """

    def __init__(self, stride: int) -> None:
        self.count, self._stride = 0, stride
        self.amax_K = self.sum_abs_K = torch.zeros(())
        self._rows: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """Record the inputs of one call, (..., K); every `stride`th token is kept."""
        if not x.numel():
            return
        x_TK = x.flatten(0, -2)
        self.amax_K = torch.maximum(self.amax_K, x_TK.abs().amax(0))
        self.sum_abs_K = self.sum_abs_K + x_TK.abs().sum(0, dtype=torch.float64)
        self._rows.append(x_TK[-self.count % self._stride :: self._stride].clone())
        self.count += len(x_TK)

    def mean_abs(self) -> Tensor:
        """Return the mean magnitude of each input, (K,)."""
        return (self.sum_abs_K / self.count).float()

    def rows(self) -> Tensor:
        """Return the kept tokens, (T, K)."""
        return torch.cat(self._rows)


@contextmanager
def listen(layer: nn.Module, names: Sequence[str], num_tokens: int) -> Iterator[dict[str, Tap]]:
    """Record the inputs of a layer's named linear maps while `num_tokens` tokens run through it."""
    taps = {name: Tap(max(1, -(-num_tokens // NUM_SAMPLED))) for name in names}
    hooks = [
        layer.get_submodule(name).register_forward_pre_hook(lambda module, args, tap=tap: tap.add(args[0]))
        for name, tap in taps.items()
    ]
    try:
        yield taps
    finally:
        for hook in hooks:
            hook.remove()


def build_part(
    kind: type[PartModule], weights: FloatWeights, name: str, *args: object, device: str = "cpu"
) -> PartModule:
    """Return a module with its weights read from `name.*`, without gradients, on a device."""
    with torch.device("meta"):
        part = kind(*args)
    state = {key: torch.from_numpy(weights[f"{name}.{key}"]) for key in part.state_dict()}
    part.load_state_dict(state, assign=True)
    return part.to(device).eval().requires_grad_(False)


@torch.inference_mode()
def embed_tiles(spec: VisionSpec, weights: FloatWeights, tile_NCHW: np.ndarray, device: str = "cpu") -> Tensor:
    """Return the inputs of the tower's first layer, (N, P, E), in the host's memory."""
    embeddings = build_part(siglip.PatchEmbeddings, weights, f"{TOWER}.embeddings", spec, device=device)
    slices = torch.from_numpy(tile_NCHW).split(TILES_AT_ONCE)
    return torch.cat([embeddings(tiles.to(device)).cpu() for tiles in slices])


@torch.inference_mode()
def run_tower_layer(layer: siglip.VisionLayer, feat_NPE: Tensor) -> None:
    """Run a layer over all tiles, a slice at a time, in place."""
    for tiles in feat_NPE.split(TILES_AT_ONCE):
        tiles.copy_(layer(tiles.to(device_of(layer))))


@torch.inference_mode()
def run_decoder_layer(spec: DecoderSpec, layer: decoder.DecoderLayer, prompts_LD: list[Tensor]) -> None:
    """Run a layer over all prompts one by one, replacing the list's entries."""
    device = device_of(layer)
    for i, hidden_LD in enumerate(prompts_LD):
        tables = decoder.rotary_tables(spec, torch.arange(len(hidden_LD), device=device))
        prompts_LD[i] = layer(hidden_LD.to(device)[None], *tables, None)[0].to(hidden_LD.device)


def device_of(layer: nn.Module) -> torch.device:
    """Return where a layer's weights are."""
    return next(layer.parameters()).device
