"""What a training step minimises: cross entropies of dense labels and of answers.

The way from tiles to visual tokens is written here once more, in torch, since training needs its gradients; a test
compares it with the node's own.

Shapes: B samples, F frames or tiles of each, N tiles in all, P patches, E vision width, S scales, G visual tokens of a
tile, L tokens, D decoder width, T of them that predict an answer, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from nvila_ros.models.decoder import rotary_tables
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.spec import ModelSpec
from nvila_ros.training.batches import Batch
from nvila_ros.training.chats import PREFIX, Rows
from nvila_ros.training.soft_times import soft_time_loss
from nvila_ros.training.token_labels import IGNORE, NUM_EVENTS, NUM_MOMENTS, THERE
from nvila_ros.visual.tiling import Grid
from nvila_ros.world.named_places import NUM_BINS
from nvila_ros.world.scene import COLORS, DIRECTIONS, SHAPES

EncodeTiles = Callable[[Tensor], Tensor]
"""`tile_NCHW` in [-1, 1] to `feat_NPE`, float32."""


PLACE_WEIGHT = 0.3
"""Of the labels of places beside the answers'."""


class Heads(nn.Module):
    """Linear read-outs that teach densely what the questions teach sparsely; thrown away after the training."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.color = nn.Linear(spec.vision.width, len(COLORS) + 1)
        self.shape = nn.Linear(spec.vision.width, len(SHAPES) + 1)
        self.motion = nn.Linear(spec.decoder.width, len(DIRECTIONS) + 1)
        self.event = nn.Linear(spec.decoder.width, NUM_EVENTS)
        self.rank = nn.Linear(spec.decoder.width, 2)
        self.moment = nn.Linear(spec.decoder.width, NUM_MOMENTS)
        self.moving = nn.Linear(spec.decoder.width, 2)
        self.column = nn.Linear(spec.decoder.width, NUM_BINS)
        self.row = nn.Linear(spec.decoder.width, NUM_BINS)


def batch_loss(model: Nvila, heads: Heads, tower: EncodeTiles, batch: Batch[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the loss and the share of right predictions: of answer tokens, or else of objects' patches.

    Nothing here waits for the device, and all shapes follow from those of the batch, so that a GPU can replay it.
    """
    tile_NCHW = batch.tile_BFHWC.flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
    feat_NPE = tower(tile_NCHW)
    loss, right = feat_NPE.new_zeros(2)
    if batch.color_NP is not None and batch.shape_NP is not None:
        # The dense labels go on teaching beside the questions: shapes are learned slowly.
        loss, right = _patch_loss(heads, feat_NPE, batch.color_NP, batch.shape_NP)
    if batch.chats is None:
        return loss, right
    chat_loss, right = _chat_loss(model, heads, see(model, feat_NPE, batch), batch, batch.chats)
    return loss + chat_loss, right


def see(model: Nvila, feat_NPE: Tensor, batch: Batch[Tensor]) -> Tensor:
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


def _chat_loss(
    model: Nvila, heads: Heads, visual_GD: Tensor, batch: Batch[Tensor], rows: Rows[Tensor]
) -> tuple[Tensor, Tensor]:
    embeds_BLD = model.llm.embed(rows.ids_BL.clamp(min=0))
    visual_BVD = visual_GD.unflatten(0, (len(embeds_BLD), -1)).to(embeds_BLD.dtype)
    embeds_BLD = embeds_BLD.index_copy(1, rows.visual_V, visual_BVD)  # by a mask, gradients would wait for the device
    hidden_BTD, before_last_BLD = decode_branches(model, embeds_BLD, rows)
    logits_BTV = model.llm.head(hidden_BTD)
    loss = soft_time_loss(logits_BTV.flatten(0, 1), rows.labels_BT.flatten(), batch.time_ids)
    if batch.tile_BFHWC.shape[1] > 1:
        loss = loss + _token_loss(heads, before_last_BLD.index_select(1, rows.visual_V).flatten(0, 1), batch)
    for head, bins_BL in ((heads.column, rows.column_BL), (heads.row, rows.row_BL)):
        loss = loss + PLACE_WEIGHT * _mean_loss(head(before_last_BLD), bins_BL)
    is_answer_BT = rows.labels_BT != IGNORE
    return loss, ((logits_BTV.argmax(-1) == rows.labels_BT) & is_answer_BT).sum() / is_answer_BT.sum()


def _mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy over all labels but `IGNORE`, 0 where there is none."""
    total = functional.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    return total / (labels != IGNORE).sum().clamp(min=1)


def _token_loss(heads: Heads, hidden_GD: Tensor, batch: Batch[Tensor]) -> Tensor:
    """Return the loss of what the decoder makes of the visual tokens of clips."""
    labelled = [
        (heads.motion, batch.motion_NG),
        (heads.event, batch.event_NG),
        (heads.rank, batch.rank_NG),
        (heads.moment, batch.moment_NG),
        (heads.moving, batch.moving_NG),
    ]
    if batch.event_NG is not None:
        # Changes are rare, a few of a hundred tokens, and all that matters: they count once more on their own.
        labelled.append((heads.event, batch.event_NG.where(batch.event_NG > THERE, IGNORE)))
    if batch.moving_NG is not None:
        labelled.append((heads.moving, batch.moving_NG.where(batch.moving_NG > 0, IGNORE)))  # as rare
    losses = [_mean_loss(head(hidden_GD), labels) for head, labels in labelled if labels is not None]
    return torch.stack(losses).sum() if losses else hidden_GD.new_zeros(())


def decode_branches(model: Nvila, embeds_BLD: Tensor, rows: Rows[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the normed hidden states that predict answers, (B, T, D), and those before the last layer, (B, L, D).

    Each token sees what is shared and its own branch, up to itself. The last layer computes the few that predict
    answers: of others nothing but their keys and values is of use there.
    """
    owner_BL = rows.owner_BL
    is_shown_BLM = (owner_BL[:, None] == owner_BL[:, :, None]) | (owner_BL == PREFIX)[:, None]
    sees_B1LM = is_shown_BLM.tril()[:, None]
    rotary = rotary_tables(model.spec.decoder, rows.positions_BL[:, None])
    *layers, last = model.llm.model["layers"]
    hidden_BLD = embeds_BLD
    for layer in layers:
        hidden_BLD = layer(hidden_BLD, *rotary, None, sees_B1LM)
    answer_BTD = last(hidden_BLD, *rotary, None, sees_B1LM, rows.answer_BT)
    return model.llm.model["norm"](answer_BTD), hidden_BLD


def _patch_loss(heads: Heads, feat_NPE: Tensor, color_NP: Tensor, shape_NP: Tensor) -> tuple[Tensor, Tensor]:
    color, shape = heads.color(feat_NPE), heads.shape(feat_NPE)
    loss = functional.cross_entropy(color.flatten(0, 1), color_NP.flatten())
    loss = loss + functional.cross_entropy(shape.flatten(0, 1), shape_NP.flatten())
    is_object = color_NP > 0
    hits = (color.argmax(-1) == color_NP) & (shape.argmax(-1) == shape_NP) & is_object
    return loss, hits.sum() / is_object.sum().clamp(min=1)
