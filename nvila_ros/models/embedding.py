"""Embedding tables that cost nothing to declare."""

from __future__ import annotations

import torch
from torch import nn


def embedding(num_rows: int, width: int) -> nn.Embedding:
    """Return a table with torch's initial values; on the meta device, one without values.

    `nn.Embedding` initializes its values also on the meta device, for which torch imports its compiler: 1.8 s.
    """
    if torch.get_default_device().type != "meta":
        return nn.Embedding(num_rows, width)
    return nn.Embedding.from_pretrained(torch.empty(num_rows, width), freeze=False)
