"""Memory and time of a fine-tuning run, on a CPU or a GPU."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.process_usage import peak_resident_bytes, reset_peak, resident_bytes
from nvila_ros.training.finetuning.run import TuningRun
from nvila_ros.training.finetuning.tuning import count_parameters


class Measured:
    """What one run takes and gives.

    Attributes:
        peak_bytes: at the peak while it learns: of the GPU's memory what tensors take, of a CPU's what the process has
            grown by.
        step_s: of each step.
        learned: parameters that learn.
        accuracy: share of right answers.
    """

    def __init__(self, device: str) -> None:
        self._device, self._before = device, memory(device)[0]
        self.peak_bytes, self.learned, self.accuracy = 0, 0, 0.0
        self.step_s: list[float] = []

    def begin(self, run: TuningRun) -> None:
        """Take note of the model, and forget what making it took for a moment."""
        self.learned, _ = count_parameters(run.model)
        tidy(self._device)
        if self._device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            reset_peak()

    def time(self, take: Callable[[], Any]) -> None:
        """Take a step."""
        started_s = time.perf_counter()
        take()
        if self._device == "cuda":
            torch.cuda.synchronize()
        self.step_s.append(time.perf_counter() - started_s)

    def end(self) -> None:
        """Take note of the peak."""
        self.peak_bytes = memory(self._device)[1] - self._before


@contextmanager
def measured(device: str) -> Iterator[Measured]:
    """Measure what is done within."""
    tidy(device)
    found = Measured(device)
    yield found
    found.end()


def memory(device: str) -> tuple[int, int]:
    """Return the bytes that are in use, and the most since the peak was forgotten."""
    if device == "cuda":
        return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    return resident_bytes(), peak_resident_bytes()


def tidy(device: str) -> None:
    """Give back what nothing needs any more."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    else:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
