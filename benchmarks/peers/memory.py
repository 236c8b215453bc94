"""How fast memory can be read, measured in turns with the runtimes that it bounds."""

from __future__ import annotations

from benchmarks.peers.job import PeerJob, Round
from nvila_ros.tools.bench import read_bandwidth

NEEDS = ()
GB = 1e9


def prepare(kind: str, job: PeerJob) -> None:
    """Write nothing."""


def load(kind: str, job: PeerJob) -> Round:
    """Return a round that reads: the seconds of one GB."""
    return lambda: {"read": [GB / read_bandwidth(job.threads)]}
