"""A ROS domain of one's own on this machine, for a graph that must meet no other."""

from __future__ import annotations

import random
import re
import socket
from pathlib import Path

FIRST_PORT, PORTS_A_DOMAIN = 7400, 250  # of discovery, by the RTPS specification
LAST_DOMAIN = 101  # those above reach into ports that the system gives to others


SHARED_MEMORY = Path("/dev/shm")


def free_domain() -> int:
    """Return a domain id in which no participant of this machine listens, chosen at random.

    One in which killed processes have left ports of Fast DDS in shared memory is taken only where there is no other.
    The domain is this process's until it ends: of two that choose at the same time only one gets it.
    """
    domains = random.sample(range(1, LAST_DOMAIN + 1), LAST_DOMAIN)
    left = _domains_left_behind()
    domains.sort(key=lambda domain: domain in left)
    free = (domain for domain in domains if _is_free(FIRST_PORT + PORTS_A_DOMAIN * domain) and _claim(domain))
    return next(free, domains[0])


def _claim(domain: int) -> bool:
    """Claim a domain by a name that the system gives back when the process ends; whether nobody else has it."""
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(f"\0nvila_ros/domain/{domain}")
    except OSError:
        claim.close()
        return False
    claim.detach()  # stays open
    return True


def _domains_left_behind() -> set[int]:
    ports = (re.match(r"fast(?:dds|rtps)_port(\d+)", path.name) for path in SHARED_MEMORY.glob("fast*_port*"))
    return {(int(port[1]) - FIRST_PORT) // PORTS_A_DOMAIN for port in ports if port}


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
