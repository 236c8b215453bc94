"""The processes of one run, as torchrun starts them; a run without it is one rank of one.

Numbers travel over gloo between CPUs, also where gradients travel over NCCL between GPUs: a rank that waits for a
number need not wait for its GPU.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed

from nvila_ros.errors import ConfigError, NvilaError

LONG_WAIT = timedelta(days=7)
"""For ranks of which one may have far less to do than another."""
_LOST = re.compile(r"Connection (reset|closed) by peer|Socket closed|Broken pipe|Timed out waiting|NCCL error[^\n]*")
"""How gloo and NCCL say that another process is gone."""


class LostRankError(NvilaError):
    """Another process of the run ended, or cannot be reached."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of its run."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes files and prints."""
        return self.rank == 0

    def wait(self) -> None:
        """Go on when all ranks have come this far; one that fails ends the others through torchrun."""
        if self.world_size > 1:
            self.sum(0.0)  # not a barrier, which NCCL would run on the GPU

    def sum(self, *numbers: float) -> list[float]:
        """Return sums over the ranks, in float64."""
        return self._reduce(numbers, distributed.ReduceOp.SUM)

    def most(self, number: int) -> int:
        """Return the largest of the ranks' numbers."""
        return int(self._reduce([number], distributed.ReduceOp.MAX)[0])

    def _reduce(self, numbers: list[float] | tuple[float, ...], how: distributed.ReduceOp) -> list[float]:
        if self.world_size == 1:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.float64)
        distributed.all_reduce(values, how)
        return values.tolist()


def local_device(kind: str) -> torch.device:
    """Return this rank's own device of a kind, `cpu` or `cuda`.

    Raises:
        ConfigError: there is no GPU.
    """
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda needs a GPU that torch sees, and it sees none; take --device cpu")
    return torch.device(kind, int(os.environ.get("LOCAL_RANK", "0"))) if kind == "cuda" else torch.device("cpu")


@contextmanager
def joined(kind: str = "cpu", timeout: timedelta = LONG_WAIT) -> Iterator[Ranks]:
    """Give this process's place, as torchrun says it, and connect it to the others as long as this lasts.

    Args:
        kind: of device on which tensors are exchanged, `cpu` or `cuda`.
        timeout: after which a rank gives up on the others.

    Raises:
        LostRankError: another one ended meanwhile.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if kind == "cuda":
        torch.cuda.set_device(local_device(kind))
    if world_size == 1:
        yield Ranks()
        return
    distributed.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo", timeout=timeout)
    ranks = Ranks(distributed.get_rank(), world_size)
    try:
        yield ranks
        ranks.wait()  # one that leaves while another still works may be torn down amid its threads
    except RuntimeError as error:
        lost = _LOST.search(str(error))
        if not lost:
            raise
        raise LostRankError(
            f"another process of this run ended or cannot be reached ({lost[0]}), see what it says; "
            "run again, with as many or fewer, to go on behind what was saved"
        ) from error
    # Only where all went well: after a failure the others may never answer.
    distributed.destroy_process_group()
