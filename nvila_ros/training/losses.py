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
from nvila_ros.training.batches import Batch
from nvila_ros.training.chats import PREFIX, Rows
from nvila_ros.training.scenes import COLORS, DIRECTIONS, SHAPES
from nvila_ros.training.token_labels import IGNORE, NUM_EVENTS, THERE

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


def batch_loss(model: Nvila, heads: Heads, tower: Tower, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the loss and the share of right predictions: of answer tokens, or else of objects' patches.

    Both stay on the model's device, so that a step waits for nothing.
    """
    with torch.device(next(model.parameters()).device):
        tile_NCHW = _tensor(batch.tile_BFHWC).flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
        feat_NPE = tower(tile_NCHW)
        loss, right = torch.zeros(()), torch.zeros(())
        if batch.color_NP is not None and batch.shape_NP is not None:
            # The dense labels go on teaching beside the questions: shapes are learned slowly.
            loss, right = _patch_loss(heads, feat_NPE, _tensor(batch.color_NP), _tensor(batch.shape_NP))
        if batch.told is None:
            return loss, right
        told_loss, right = _chat_loss(model, heads, see(model, feat_NPE, batch), batch, batch.told)
        return loss + told_loss, right


def _tensor(array: np.ndarray) -> Tensor:
    """Return an array on the device of the context."""
    return torch.from_numpy(array).to(torch.get_default_device(), non_blocking=True)


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


def _chat_loss(model: Nvila, heads: Heads, visual_GD: Tensor, batch: Batch, rows: Rows) -> tuple[Tensor, Tensor]:
    ids_BL, labels_BL = _tensor(rows.ids_BL), _tensor(rows.labels_BL)
    is_visual_BL = ids_BL == PLACEHOLDER
    embeds_BLD = model.llm.embed(ids_BL.clamp(min=0))
    embeds_BLD = embeds_BLD.masked_scatter(is_visual_BL[..., None], visual_GD.to(embeds_BLD.dtype))
    hidden_BLD, before_last_BLD = decode_branches(model, embeds_BLD, rows)
    told_T = labels_BL.flatten()
    logits_TV = model.llm.head(hidden_BLD).flatten(0, 1)
    loss = functional.cross_entropy(logits_TV, told_T, ignore_index=IGNORE)
    if batch.tile_BFHWC.shape[1] > 1 and batch.motion_NG is not None:
        is_visual_T = torch.from_numpy(np.flatnonzero(rows.ids_BL == PLACEHOLDER)).to(ids_BL.device)
        loss = loss + _token_loss(heads, before_last_BLD.flatten(0, 1)[is_visual_T], batch)
    is_told_T = told_T != IGNORE
    return loss, ((logits_TV.argmax(-1) == told_T) & is_told_T).sum() / is_told_T.sum()


def _token_loss(heads: Heads, hidden_GD: Tensor, batch: Batch) -> Tensor:
    """Return the loss of what the decoder makes of the visual tokens of clips."""
    told = [(heads.motion, batch.motion_NG), (heads.event, batch.event_NG), (heads.rank, batch.rank_NG)]
    if batch.event_NG is not None:
        # Changes are rare, a few of a hundred tokens, and all that matters: they count once more on their own.
        told.append((heads.event, np.where(batch.event_NG > THERE, batch.event_NG, IGNORE)))
    loss = torch.zeros(())
    for head, labels in told:
        if labels is not None and (labels != IGNORE).any():
            loss = loss + functional.cross_entropy(head(hidden_GD), _tensor(labels).flatten(), ignore_index=IGNORE)
    return loss


def decode_branches(model: Nvila, embeds_BLD: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """Return the hidden states and those before the last layer, where an answer's last look still finds them.

    Each token sees what is shared and its own branch, up to itself.
    """
    owner_BL, positions_BL = _tensor(rows.owner_BL), _tensor(rows.positions_BL)
    is_shown_BLM = (owner_BL[:, None] == owner_BL[:, :, None]) | (owner_BL == PREFIX)[:, None]
    seen: list[Tensor] = []
    handle = model.llm.model["layers"][-2].register_forward_hook(lambda module, args, out: seen.append(out))
    try:
        sees_B1LM = is_shown_BLM.tril()[:, None]
        hidden_BLD = model.llm(embeds_BLD, positions_L=positions_BL[:, None], sees_LM=sees_B1LM)
    finally:
        handle.remove()
    return hidden_BLD, seen[0]


def _patch_loss(heads: Heads, feat_NPE: Tensor, color_NP: Tensor, shape_NP: Tensor) -> tuple[Tensor, Tensor]:
    color, shape = heads.color(feat_NPE), heads.shape(feat_NPE)
    loss = functional.cross_entropy(color.flatten(0, 1), color_NP.flatten())
    loss = loss + functional.cross_entropy(shape.flatten(0, 1), shape_NP.flatten())
    is_object = color_NP > 0
    hits = (color.argmax(-1) == color_NP) & (shape.argmax(-1) == shape_NP) & is_object
    return loss, hits.sum() / is_object.sum().clamp(min=1)
