"""What a training step minimises: cross entropies of dense labels and of told answers.

The way from tiles to visual tokens is written here once more, in torch, since training needs its gradients; a test
holds it against the node's own.

Shapes: B samples, F frames or tiles of each, N tiles in all, P patches, E vision width, S scales, G visual tokens of a
tile, L tokens, D decoder width, T told tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nvila_ros.models.nvila import Nvila
from nvila_ros.models.spec import ModelSpec
from nvila_ros.preprocess.tiling import Grid
from nvila_ros.prompt.chat import PLACEHOLDER
from nvila_ros.training.batches import IGNORE, Batch
from nvila_ros.training.scale_batches import NUM_EVENTS, THERE
from nvila_ros.training.scenes import COLORS, DIRECTIONS, SHAPES

Tower = Callable[[Tensor], Tensor]
"""`tile_NCHW` in [-1, 1] to `feat_NPE`, float32."""


class Heads(nn.Module):
    """Linear read-outs that teach densely what the questions teach sparsely; thrown away after the training."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.color = nn.Linear(spec.vision.width, len(COLORS) + 1)
        self.shape = nn.Linear(spec.vision.width, len(SHAPES) + 1)
        self.motion = nn.Linear(spec.decoder.width, len(DIRECTIONS) + 1)
        self.event = nn.Linear(spec.decoder.width, NUM_EVENTS)
        self.rank = nn.Linear(spec.decoder.width, 2)


def batch_loss(model: Nvila, heads: Heads, tower: Tower, batch: Batch) -> tuple[Tensor, float]:
    """Return the loss and the share of right predictions: of answer tokens, or else of objects' patches."""
    tile_NCHW = torch.from_numpy(batch.tile_BFHWC).flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
    feat_NPE = tower(tile_NCHW)
    loss, right = torch.zeros(()), 0.0
    if batch.color_NP is not None:
        # The dense labels go on teaching beside the questions: shapes are learned slowly.
        loss, right = _patch_loss(heads, feat_NPE, batch)
    if batch.ids_BL is None:
        return loss, right
    told_loss, right = _chat_loss(model, heads, see(model, feat_NPE, batch), batch)
    return loss + told_loss, right


def see(model: Nvila, feat_NPE: Tensor, batch: Batch) -> Tensor:
    """Return the visual tokens of all samples in prompt order, (all, D); feat_NPE are the features of their tiles."""
    spec = model.spec
    if not batch.grids:
        visual_NGD = model.project(feat_NPE.repeat(1, 1, max(len(spec.scales), 1)))
        return visual_NGD.unflatten(0, (-1, batch.pool)).mean(1).flatten(0, 1)
    num_samples, side = len(batch.tile_BFHWC), spec.token_grid
    merged = merge_scales(feat_NPE.unflatten(0, (num_samples, -1)), batch.grids, batch.merge_scale)
    rows, columns = batch.grids[batch.merge_scale]
    blocks = model.project(merged).view(num_samples, rows, columns, side, side, -1)
    return blocks.transpose(2, 3).flatten(0, 4)  # raster order over each whole image


def merge_scales(feat_BFPE: Tensor, grids: Sequence[Grid], merge_scale: int) -> Tensor:
    """Return the projector's input, (B * rows * columns of the merged grid, P, S * E), scales side by side."""
    num_samples, _, num_patches, width = feat_BFPE.shape
    grid = round(num_patches**0.5)
    maps = []
    for (rows, columns), tiles in zip(grids, feat_BFPE.split([r * c for r, c in grids], dim=1), strict=True):
        cut = tiles.view(num_samples, rows, columns, grid, grid, width).permute(0, 5, 1, 3, 2, 4)
        maps.append(cut.reshape(num_samples, width, rows * grid, columns * grid))
    rows, columns = grids[merge_scale]
    size = (rows * grid, columns * grid)
    merged = torch.cat([functional.interpolate(each, size=size, mode="area") for each in maps], dim=1)
    blocks = merged.view(num_samples, -1, rows, grid, columns, grid).permute(0, 2, 4, 3, 5, 1)
    return blocks.reshape(num_samples * rows * columns, num_patches, -1)


def _chat_loss(model: Nvila, heads: Heads, visual_GD: Tensor, batch: Batch) -> tuple[Tensor, float]:
    ids_BL, labels_BL = torch.from_numpy(batch.ids_BL), torch.from_numpy(batch.labels_BL)
    is_visual_BL = ids_BL == PLACEHOLDER
    embeds_BLD = model.llm.embed(ids_BL.clamp(min=0))
    embeds_BLD = embeds_BLD.masked_scatter(is_visual_BL[..., None], visual_GD.float())
    hidden_BLD, before_last_BLD = _decode(model, embeds_BLD)
    is_told = labels_BL != IGNORE
    logits_TV = model.llm.head(hidden_BLD[is_told])
    loss = functional.cross_entropy(logits_TV, labels_BL[is_told])
    if batch.tile_BFHWC.shape[1] > 1:
        loss = loss + _token_loss(heads, before_last_BLD[is_visual_BL], batch)
    return loss, (logits_TV.argmax(-1) == labels_BL[is_told]).float().mean().item()


def _token_loss(heads: Heads, hidden_GD: Tensor, batch: Batch) -> Tensor:
    """Return the loss of what the decoder makes of the visual tokens of clips."""
    told = [(heads.motion, batch.motion_NG), (heads.event, batch.event_NG), (heads.rank, batch.rank_NG)]
    if batch.event_NG is not None:
        # Changes are rare, a few of a hundred tokens, and all that matters: they count once more on their own.
        told.append((heads.event, np.where(batch.event_NG > THERE, batch.event_NG, IGNORE)))
    loss = torch.zeros(())
    for head, labels in told:
        if labels is not None and (labels != IGNORE).any():
            loss = loss + functional.cross_entropy(head(hidden_GD), torch.from_numpy(labels).flatten())
    return loss


def _decode(model: Nvila, embeds_BLD: Tensor) -> tuple[Tensor, Tensor]:
    """Return the hidden states and those before the last layer, where an answer's last look still finds them."""
    seen: list[Tensor] = []
    handle = model.llm.model["layers"][-2].register_forward_hook(lambda module, args, out: seen.append(out))
    try:
        hidden_BLD = model.llm(embeds_BLD)
    finally:
        handle.remove()
    return hidden_BLD, seen[0]


def _patch_loss(heads: Heads, feat_NPE: Tensor, batch: Batch) -> tuple[Tensor, float]:
    color_NP, shape_NP = torch.from_numpy(batch.color_NP), torch.from_numpy(batch.shape_NP)
    color, shape = heads.color(feat_NPE), heads.shape(feat_NPE)
    loss = functional.cross_entropy(color.flatten(0, 1), color_NP.flatten())
    loss = loss + functional.cross_entropy(shape.flatten(0, 1), shape_NP.flatten())
    hits = ((color.argmax(-1) == color_NP) & (shape.argmax(-1) == shape_NP))[color_NP > 0]
    return loss, hits.float().mean().item()
