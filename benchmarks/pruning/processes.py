"""Processes that draw, score and train beside each other; one is this one, so that errors are seen where they are."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import cv2
import torch


class _Here(Executor):
    """Does in this process what it is given, at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@contextmanager
def workers(num_processes: int, num_threads: int) -> Iterator[Executor]:
    """Give what runs jobs, each with a number of threads; where one fails, those that wait are not begun."""
    if num_processes == 1:
        yield _Here()
        return
    spawned = multiprocessing.get_context("spawn")  # a process that has used a GPU must not be forked
    pool = ProcessPoolExecutor(num_processes, spawned, start, (num_threads,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def start(num_threads: int) -> None:
    """Let this process work with a number of threads."""
    torch.set_num_threads(num_threads)
    cv2.setNumThreads(num_threads)
