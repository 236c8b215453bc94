"""Responses of services that the middleware gives up on are sent again.

Fast DDS waits 0.1 s until it has discovered where a response goes, then rclpy warns and drops it: the answer to the
first question of a program that has just started is lost on a busy machine, and its asker waits in vain.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

from rclpy.service import Service

TEXT = "failed to send response (timeout)"
"""How rclpy's warning begins."""
NUM_TRIES = 10
"""Each takes the 0.1 s for which the middleware waits."""


def persistent(service: Service, warn: Callable[[str], object]) -> Service:
    """Let a service send a response again that was dropped; one whose asker is gone is not.

    All services of the process should be such: rclpy raises there from now on where it would warn.

    Args:
        service: its `send_response` is replaced.
        warn: takes what to log where all tries were in vain.
    """
    send = service.send_response
    warnings.filterwarnings("error", message=re.escape(TEXT), category=RuntimeWarning)

    def send_response(response: Any, header: Any) -> None:
        for _ in range(NUM_TRIES):
            try:
                send(response, header)
            except (RuntimeWarning, SystemError) as error:  # the latter of C++ that returns though it has warned
                if TEXT not in f"{error} {error.__cause__}":
                    raise
            else:
                return
        warn(f"{service.srv_name}: a response was lost, since its asker was not discovered within {NUM_TRIES / 10:g} s")

    service.send_response = send_response
    return service
