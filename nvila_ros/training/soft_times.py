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

STD = 1.0
"""Of the target, in time tokens; upstream's `soft_ce_std`."""


def soft_time_loss(logits_TV: Tensor, label_T: Tensor, time_ids: Sequence[int], std: float = STD) -> Tensor:
    """Return the mean loss, a scalar; of no labels 0.

    Args:
        logits_TV: before each label.
        label_T: int64.
        time_ids: of the time tokens, in order.
        std: of the target around a time token; small is plain cross-entropy.
    """
    if not len(label_T):
        return logits_TV.sum() * 0
    log_prob_TV = functional.log_softmax(logits_TV.float(), dim=-1)
    loss_T = -log_prob_TV.gather(1, label_T[:, None])[:, 0]
    ids_N = torch.tensor(time_ids, dtype=torch.int64, device=label_T.device)
    is_time_TN = label_T[:, None] == ids_N
    rows = is_time_TN.any(1)
    if rows.any():
        center_K = is_time_TN[rows].int().argmax(1)
        distance_KN = torch.arange(len(time_ids), device=label_T.device) - center_K[:, None]
        target_KN = torch.exp(-(distance_KN**2) / (2 * std**2))
        target_KN = target_KN / target_KN.sum(1, keepdim=True)
        loss_T = loss_T.masked_scatter(rows, -(target_KN * log_prob_TV[rows][:, ids_N]).sum(1))
    return loss_T.mean()
