"""Responses of services that the middleware gives up on are sent again.

Fast DDS waits 0.1 s until it has discovered where a response goes, then rclpy warns and drops it: the answer to the
first question of a program that has just started is lost on a busy machine, and its asker waits in vain.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable
from typing import Any

from rclpy.service import Service

TEXT = "failed to send response (timeout)"
"""How rclpy's warning begins."""
NUM_TRIES = 10
"""Each takes the 0.1 s for which the middleware waits."""
_sending = threading.local()


def persistent(service: Service, warn: Callable[[str], object]) -> Service:
    """Let a service send a response again that was dropped; one whose asker is gone is not.

    Args:
        service: its `send_response` is replaced.
        warn: takes what to log where all tries were in vain.
    """
    send = service.send_response
    _listen()

    def send_response(response: Any, header: Any) -> None:
        for _ in range(NUM_TRIES):
            _sending.is_lost = False
            try:
                send(response, header)
                is_lost = _sending.is_lost
            finally:
                del _sending.is_lost
            if not is_lost:
                return
        warn(f"{service.srv_name}: a response was lost, since its asker was not discovered within {NUM_TRIES / 10:g} s")

    service.send_response = send_response
    return service


def _listen() -> None:
    """Hear rclpy's warning, each time, on the thread that sends; all others are shown as before."""
    warnings.filterwarnings("always", message=re.escape(TEXT), category=RuntimeWarning)
    show = warnings.showwarning
    if getattr(show, "hears_lost_responses", False):
        return

    def hear(message: Warning | str, category: type[Warning], *where: Any) -> None:
        if hasattr(_sending, "is_lost") and str(message).startswith(TEXT):
            _sending.is_lost = True
        else:
            show(message, category, *where)

    hear.hears_lost_responses = True  # type: ignore[attr-defined]
    warnings.showwarning = hear  # type: ignore[assignment]
