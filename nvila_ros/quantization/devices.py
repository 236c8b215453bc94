"""Where layers are searched: on a GPU, if torch sees one that holds a layer, or on the CPU."""

from __future__ import annotations

import logging

import torch

from nvila_ros.errors import ConfigError, size_text

_log = logging.getLogger(__name__)


def choose_device(quantize_on: str, gpu_bytes: int) -> str:
    """Return where torch searches the layers, `cpu` or `cuda`.

    Args:
        quantize_on: one of these, or `auto`: the GPU where there is one with room.
        gpu_bytes: what a GPU needs.

    Raises:
        ConfigError: the GPU is wanted, and there is none that holds a layer.
    """
    if quantize_on == "cpu" or (quantize_on == "auto" and not torch.cuda.is_available()):
        return "cpu"
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0
    if gpu_bytes <= free:
        return "cuda"
    why = f"searching a layer there needs about {size_text(gpu_bytes)}, and torch sees {size_text(free)} free on a GPU"
    if quantize_on == "cuda":
        raise ConfigError(f"--quantize-on must be a device that this machine has, got cuda: {why}; leave it out")
    _log.info("quantizing on the CPU: %s", why)
    return "cpu"
