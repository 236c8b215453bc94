"""Packed rows through the model in torch, with gradients where they are wanted.

Shapes: N tiles, P patches, E vision width, B blocks that the projector reads, G visual tokens, L tokens of a row,
T learned tokens, D decoder width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nvila_ros.models.nvila import Nvila
from nvila_ros.models.spec import ModelSpec
from nvila_ros.prompt.chat import PLACEHOLDER
from nvila_ros.training.conversations.packing import PackedRow
from nvila_ros.training.losses import merge_scales
from nvila_ros.training.token_labels import IGNORE
from nvila_ros.visual.encode import arrange
from nvila_ros.visual.pooling import pool_tokens
from nvila_ros.visual.tiles import normalize_tiles
from nvila_ros.visual.views import View

TILES_AT_ONCE = 32
"""Tiles of one call of the tower, which bounds the memory of its activations."""


def learned_log_probs(
    model: Nvila, row: PackedRow, tiles_at_once: int = TILES_AT_ONCE, nothing: Tensor | None = None
) -> Tensor:
    """Return the log probability of each learned token of a row, (T,) float32, in order; as `learned_hidden`."""
    hidden_TD = learned_hidden(model, row, tiles_at_once, nothing)
    id_T = torch.from_numpy(row.labels_L[row.labels_L != IGNORE]).to(hidden_TD.device)
    logits_TV = model.llm.head(hidden_TD).float()  # a sum over the vocabulary is too much for bfloat16
    return logits_TV.log_softmax(-1).gather(1, id_T[:, None])[:, 0]


def learned_hidden(
    model: Nvila, row: PackedRow, tiles_at_once: int = TILES_AT_ONCE, nothing: Tensor | None = None
) -> Tensor:
    """Return the hidden state that predicts each learned token, (T, D).

    Args:
        model: in float32 or bfloat16.
        row: of samples.
        tiles_at_once: tiles of one call of the tower.
        nothing: a zero that is added to the embeddings, so that what made it takes part in the backward pass.
    """
    device = model.llm.model["embed_tokens"].weight.device
    with torch.device(device):
        ids_L, owner_L, positions_L, branch_L = (
            torch.from_numpy(array).to(device) for array in (row.ids_L, row.owner_L, row.positions_L, row.branch_L)
        )
        embeds_LD = model.llm.embed(ids_L.clamp(min=0))
        if row.views:
            visual_GD = see_views(model, row.views, tiles_at_once).to(embeds_LD.dtype)
            embeds_LD = embeds_LD.masked_scatter((ids_L == PLACEHOLDER)[:, None], visual_GD)
        if nothing is not None:
            embeds_LD = embeds_LD + nothing.to(embeds_LD.dtype)
        is_shared_LL = (branch_L == 0) | (branch_L[:, None] == branch_L)
        sees_LL = ((owner_L[:, None] == owner_L) & is_shared_LL).tril()
        hidden_LD = model.llm(embeds_LD[None], positions_L=positions_L, sees_LM=sees_LL)[0]
        return hidden_LD[torch.from_numpy(row.labels_L != IGNORE).to(device)]


def see_views(model: Nvila, views: Sequence[View], tiles_at_once: int = TILES_AT_ONCE) -> Tensor:
    """Return the visual tokens of views in prompt order, (G, D)."""
    tiles = [tile for view in views for tile in view.tiles]
    feat_NPE = torch.cat([_see(model, tiles[i : i + tiles_at_once]) for i in range(0, len(tiles), tiles_at_once)])
    by_view = feat_NPE.split([len(view.tiles) for view in views])
    blocks = [_merge(model.spec, view, feat) for view, feat in zip(views, by_view, strict=True)]
    visual_BGD = model.project(torch.cat(blocks)).split([len(block) for block in blocks])
    return torch.cat([_arrange(model.spec, view, visual) for view, visual in zip(views, visual_BGD, strict=True)])


def _see(model: Nvila, tiles: Sequence[np.ndarray]) -> Tensor:
    weight = model.vision_tower["vision_model"].embeddings.patch_embedding.weight
    tile_NCHW = torch.from_numpy(normalize_tiles(tiles, model.spec.pixel_dtype))
    return model.vision(tile_NCHW.to(weight.device, weight.dtype))


def _merge(spec: ModelSpec, view: View, feat_NPE: Tensor) -> Tensor:
    """Return what the projector reads of a view, as `visual.encode.merge_features` does."""
    if view.mode == "scaled":
        return merge_scales(feat_NPE[None], view.grids, spec.merge_scale)
    return feat_NPE.repeat(1, 1, max(len(spec.scales), 1))


def _arrange(spec: ModelSpec, view: View, visual_BGD: Tensor) -> Tensor:
    """Return a view's visual tokens in prompt order, (G, D).

    The functions that answer queries only reshape and average, which tensors know by the same names as arrays.
    """
    if view.mode == "clip":
        width = visual_BGD.shape[-1]
        return torch.cat([pool_tokens(visual_BGD, pool).reshape(-1, width) for pool in spec.video_pools])
    return arrange(spec, view, visual_BGD).visual_GD
