"""How many threads torch is given for a model: few where its products are small.

Threads of one product wait for one another. Where a product takes microseconds, a thread that shares its core with
another process makes each of them wait for the scheduler, which takes milliseconds: with one busy core of two, a build
of nvila-tiny took 283 s on two threads and 18 s on one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nvila_ros.models.spec import ModelSpec

WEIGHTS_PER_THREAD = 1 << 20
"""Of the largest matrix of a layer; below, a second thread gains less than 10 % on an idle machine."""


def useful_threads(spec: ModelSpec) -> int:
    """Return how many threads the layers of a model keep busy, at least 1."""
    largest = max(part.width * part.mlp_width for part in (spec.vision, spec.decoder))
    return max(1, largest // WEIGHTS_PER_THREAD)


@contextmanager
def limit_threads(spec: ModelSpec) -> Iterator[None]:
    """Give torch no more threads than a model keeps busy, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, useful_threads(spec)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def set_threads(spec: ModelSpec, threads: int) -> None:
    """Give torch `threads` threads; 0: as many as the model keeps busy, and no more than torch had."""
    torch.set_num_threads(threads or min(torch.get_num_threads(), useful_threads(spec)))
