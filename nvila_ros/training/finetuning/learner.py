"""A row's loss as one module, so that what wraps modules for several ranks can wrap it.

Every call goes through tower, projector and decoder, whatever the row holds: ranks meet in each of them, and a
parameter that one rank's rows leave out would let the others wait for ever.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from nvila_ros.errors import ConfigError
from nvila_ros.models.nvila import Nvila
from nvila_ros.training.conversations.forward import TILES_AT_ONCE, learned_log_probs, see_views
from nvila_ros.training.conversations.packing import PackedRow
from nvila_ros.training.finetuning.settings import FP32, Settings
from nvila_ros.training.finetuning.tuning import layers_of
from nvila_ros.training.ranks import Ranks
from nvila_ros.visual.views import view_images


class Learner(nn.Module):
    """`PackedRow` to the sum of its learned tokens' negative log probabilities, a float32 scalar."""

    def __init__(self, model: Nvila, tiles_at_once: int = TILES_AT_ONCE) -> None:
        super().__init__()
        self.model, self._tiles_at_once = model, tiles_at_once
        px = model.spec.vision.image_px
        self._blank = view_images(model.spec, [np.zeros((px, px, 3), np.uint8)])

    def forward(self, row: PackedRow) -> Tensor:
        """Return the loss of a row, summed."""
        # As in rows with media, the tower comes first and its tokens go into the decoder: so ranks meet in one order in
        # the backward pass too, where gradients reach a frozen decoder's first layer only through them.
        nothing = None if row.views else 0.0 * see_views(self.model, (self._blank,)).float().sum()
        return -learned_log_probs(self.model, row, self._tiles_at_once, nothing).sum()


def share_out(model: Nvila, settings: Settings, ranks: Ranks, device: torch.device) -> nn.Module:
    """Return the learner over a prepared model on its device, wrapped for the ranks.

    Each has the whole model and they exchange gradients (DDP), or where sharded its share of every layer (FSDP2). Both
    average gradients over the ranks.

    Raises:
        ConfigError: it is to be sharded, and there is one process only.
    """
    if settings.is_sharded:
        if not torch.distributed.is_initialized():
            raise ConfigError("--shard spreads a model over processes; start it with torchrun --nproc-per-node N")
        # A rank with more tiles may not go through the tower more often than the others.
        learner = Learner(model, tiles_at_once=sys.maxsize)
        mesh = init_device_mesh(device.type, (ranks.world_size,))
        for layer in layers_of(model):
            fully_shard(layer, mesh=mesh)
        return fully_shard(learner, mesh=mesh)
    learner = Learner(model)
    return learner if ranks.world_size == 1 else DistributedDataParallel(learner)


@contextmanager
def exchanged(learner: nn.Module, *, is_last: bool) -> Iterator[None]:
    """Exchange gradients in the backward passes within only where it is the last row of a step."""
    held: AbstractContextManager[None] = nullcontext()
    if isinstance(learner, FSDPModule):
        learner.set_requires_gradient_sync(is_last)
    elif isinstance(learner, DistributedDataParallel) and not is_last:
        held = learner.no_sync()
    with held:
        yield


def in_precision(settings: Settings, device: torch.device) -> torch.autocast:
    """Return the context in which a row is computed."""
    return torch.autocast(device.type, torch.bfloat16, enabled=settings.precision != FP32)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor on the CPU, put together where ranks hold shares of it; then all ranks must ask for it."""
    tensor = tensor.detach()
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.cpu()


def whole_if(keeps: bool, tensor: Tensor) -> Tensor | None:
    """Return `whole` where it is kept; other ranks take part in putting it together and hold nothing of it."""
    if not keeps and not isinstance(tensor.detach(), DTensor):
        return None
    gathered = whole(tensor)
    return gathered if keeps else None


def as_held(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor as another one is held: on its device, this rank's share where it is shared."""
    tensor = tensor.to(like.device)
    return distribute_tensor(tensor, like.device_mesh, like.placements) if isinstance(like, DTensor) else tensor
