"""The loss of time tokens: a time nearly right is nearly as good.

Where the label is a time token, the target is spread over all N of them by a Gaussian around it, so that a model's
probabilities over times are smooth: their mean is finer than the likeliest token, and their spread is an error bar.
Everywhere else it is plain cross-entropy, and the mean is over all labels. Source: NVLabs/VILA `soft_cross_entropy`.

Shapes: T labels, V vocabulary, N time tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from nvila_ros.training.token_labels import IGNORE

STD = 1.0
"""Of the target, in time tokens; upstream's `soft_ce_std`."""


def soft_time_loss(logits_TV: Tensor, label_T: Tensor, time_ids: Sequence[int], std: float = STD) -> Tensor:
    """Return the mean loss, a scalar; of no labels 0. Nothing here waits for the device.

    Args:
        logits_TV: before each label.
        label_T: int64; `IGNORE` counts for nothing.
        time_ids: of the time tokens, in order.
        std: of the target around a time token; small is plain cross-entropy.
    """
    log_prob_TV = functional.log_softmax(logits_TV.float(), dim=-1)
    counts_T = label_T != IGNORE
    loss_T = -log_prob_TV.gather(1, label_T.clamp(min=0)[:, None])[:, 0]
    if time_ids:
        ids_N = torch.tensor(time_ids, dtype=torch.int64, device=label_T.device)
        is_time_TN = label_T[:, None] == ids_N
        soft_T = -((is_time_TN.float() @ _targets(len(time_ids), std, label_T.device)) * log_prob_TV[:, ids_N]).sum(1)
        loss_T = torch.where(is_time_TN.any(1), soft_T, loss_T)
    return (loss_T * counts_T).sum() / counts_T.sum().clamp(min=1)


def _targets(num_tokens: int, std: float, device: torch.device) -> Tensor:
    """Return the target of each time token, (N, N), whose rows add up to 1."""
    place_N = torch.arange(num_tokens, device=device)
    weight_NN = torch.exp(-((place_N - place_N[:, None]) ** 2) / (2 * std**2))
    return weight_NN / weight_NN.sum(1, keepdim=True)
