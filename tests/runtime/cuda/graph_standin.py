"""A stand-in for CUDA graphs on torch's CPU device: it records operations once, and repeats those alone.

As on a GPU, a replay runs the recorded operations on the recorded addresses with the numbers of the capture, whatever
Python would do now; what a capture forbids ends it with an error: a value read by the host, or memory of the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

FORBIDDEN = ("_local_scalar_dense", "nonzero", "_to_copy.device", "unique", "is_pinned")


class CaptureError(RuntimeError):
    """The function did what no capture allows."""


class _Recorder(TorchDispatchMode):
    """Runs each operation and keeps it with its arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in str(func) for name in FORBIDDEN):
            raise CaptureError(f"{func} reads a value on the host")
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, tree_flatten(result)[0]))
        return result


def capture(compute: Callable[[], None]) -> Callable[[], None]:
    """Record a function and return its replay."""
    compute()  # as the warm-up of a capture
    with _Recorder() as recorder:
        compute()

    def replay() -> None:
        for func, args, kwargs, results in recorder.calls:
            for old, new in zip(results, tree_flatten(func(*args, **kwargs))[0], strict=True):
                is_same = isinstance(old, torch.Tensor) and old.data_ptr() == new.data_ptr()
                if isinstance(old, torch.Tensor) and not is_same:
                    old.copy_(new)

    return replay
