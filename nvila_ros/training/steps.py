"""One training step: loss, gradients, clipping, update; on a GPU as a CUDA graph for each shape of batch.

A model of a few million parameters leaves a GPU idle while Python starts a thousand kernels a step. Replayed as a graph
they take a tenth of the time. The batches come in few shapes: the first of a shape is stepped kernel by kernel, the
second is captured, and from then on the graph is replayed over arrays of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from nvila_ros.training.batches import Batch

LossOf = Callable[[Batch[Tensor]], tuple[Tensor, Tensor]]
"""Returns the loss of a batch and the share of right predictions, without waiting for the device."""
_MAX_NORM = 1.0


class Stepper:
    """Takes steps one after the other.

    Args:
        loss_of: the loss.
        parameters: whose gradients are clipped together.
        optimizer: of all that learns; `capturable`, with tensors as learning rates, where graphs are used.
        has_graphs: whether steps are captured.
    """

    def __init__(
        self, loss_of: LossOf, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, *, has_graphs: bool
    ) -> None:
        self._loss_of, self._parameters, self._optimizer = loss_of, parameters, optimizer
        self._has_graphs = has_graphs
        self._device = parameters[0].device
        self._captured: dict[tuple[object, ...], _Captured | None] = {}
        self._stream = torch.cuda.Stream() if has_graphs else None
        self._pool = torch.cuda.graph_pool_handle() if has_graphs else None

    def __call__(self, batch: Batch[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Take a step; returns its loss and share of right predictions, on the device."""
        if not self._has_graphs:
            return self._step(to_device(batch, self._device))
        key = shape_key(batch)
        if key not in self._captured:
            self._captured[key] = None
            return self._step_aside(to_device(batch, self._device))
        captured = self._captured[key]
        if captured is None:
            captured = self._captured[key] = self._capture(to_device(batch, self._device))
        else:
            for static, array in zip(arrays_of(captured.batch), arrays_of(batch), strict=True):
                static.copy_(torch.from_numpy(array), non_blocking=True)
        captured.graph.replay()
        return captured.loss.clone(), captured.right.clone()

    def _step(self, batch: Batch[Tensor]) -> tuple[Tensor, Tensor]:
        self._optimizer.zero_grad(set_to_none=True)
        loss, right = self._loss_of(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, _MAX_NORM)
        self._optimizer.step()
        return loss.detach(), right.detach()

    def _step_aside(self, batch: Batch[Tensor]) -> tuple[Tensor, Tensor]:
        """Step on a stream of its own, as what is captured later must have been run before."""
        assert self._stream is not None
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = self._step(batch)
        torch.cuda.current_stream().wait_stream(self._stream)
        return result

    def _capture(self, batch: Batch[Tensor]) -> _Captured:
        graph = torch.cuda.CUDAGraph()
        self._optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            loss, right = self._step(batch)
        return _Captured(graph, batch, loss, right)


class _Captured:
    """A graph, the batch whose arrays it reads, and where it leaves its results."""

    def __init__(self, graph: torch.cuda.CUDAGraph, batch: Batch[Tensor], loss: Tensor, right: Tensor) -> None:
        self.graph, self.batch, self.loss, self.right = graph, batch, loss, right


def to_device(batch: Batch[np.ndarray], device: torch.device) -> Batch[Tensor]:
    """Return a batch with tensors in place of its arrays."""

    def moved(value: object) -> object:
        if is_dataclass(value) and not isinstance(value, type):
            return replace(value, **{field.name: moved(getattr(value, field.name)) for field in fields(value)})
        return torch.from_numpy(value).to(device) if isinstance(value, np.ndarray) else value

    result = moved(batch)
    assert isinstance(result, Batch)
    return result


def arrays_of(batch: object) -> Iterator:
    """Yield the arrays or tensors of a batch, in the order of its fields."""
    assert is_dataclass(batch)
    for field in fields(batch):
        value = getattr(batch, field.name)
        if is_dataclass(value):
            yield from arrays_of(value)
        elif isinstance(value, (np.ndarray, Tensor)):
            yield value


def shape_key(batch: Batch[np.ndarray]) -> tuple[object, ...]:
    """Return what two batches have in common that one graph serves; visual tokens stand at the same places in both."""
    places = batch.chats.visual_V.tobytes() if batch.chats is not None else b""
    has = tuple(getattr(batch, field.name) is not None for field in fields(batch))
    shapes = tuple(array.shape for array in arrays_of(batch))
    return has, shapes, places, batch.grids, batch.merge_scale, batch.pool
