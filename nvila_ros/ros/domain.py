"""A ROS domain of one's own on this machine, for a graph that must meet no other."""

from __future__ import annotations

import random
import socket

FIRST_PORT, PORTS_A_DOMAIN = 7400, 250  # of discovery, by the RTPS specification
LAST_DOMAIN = 101  # those above reach into ports that the system gives to others


def free_domain() -> int:
    """Return a domain id in which no participant of this machine listens, chosen at random."""
    domains = random.sample(range(1, LAST_DOMAIN + 1), LAST_DOMAIN)
    return next((domain for domain in domains if _is_free(FIRST_PORT + PORTS_A_DOMAIN * domain)), domains[0])


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
