"""The soft loss of time tokens against plain loops, and what it teaches."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from nvila_ros.training.soft_times import soft_time_loss
from nvila_ros.training.token_labels import IGNORE

TIMES = [7, 3, 11, 5, 9]  # in no order of ids


def slowly(logits: torch.Tensor, labels: list[int], std: float) -> float:
    total = 0.0
    for row, label in zip(logits.double().log_softmax(-1), labels, strict=True):
        if label not in TIMES:
            total -= float(row[label])
            continue
        weights = [math.exp(-((j - TIMES.index(label)) ** 2) / (2 * std**2)) for j in range(len(TIMES))]
        total -= sum(weight / sum(weights) * float(row[idx]) for weight, idx in zip(weights, TIMES, strict=True))
    return total / len(labels)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=12), st.floats(0.3, 3), st.integers(0, 999))
def test_loss_is_that_of_plain_loops(labels: list[int], std: float, seed: int) -> None:
    logits = torch.randn(len(labels), 13, generator=torch.Generator().manual_seed(seed)) * 3

    loss = soft_time_loss(logits, torch.tensor(labels), TIMES, std)

    assert float(loss) == pytest.approx(slowly(logits, labels, std), rel=1e-4)


def test_of_a_narrow_target_it_is_cross_entropy() -> None:
    logits, labels = torch.randn(6, 13), torch.tensor([7, 3, 0, 1, 9, 12])

    assert torch.allclose(soft_time_loss(logits, labels, TIMES, 0.05), functional.cross_entropy(logits, labels))
    assert torch.allclose(soft_time_loss(logits, labels, ()), functional.cross_entropy(logits, labels))
    assert float(soft_time_loss(logits[:0], labels[:0], TIMES)) == 0


def test_ignored_labels_count_for_nothing() -> None:
    logits, labels = torch.randn(6, 13), torch.tensor([7, IGNORE, 0, IGNORE, 9, 12])

    loss = soft_time_loss(logits, labels, TIMES)

    assert float(loss) == pytest.approx(float(soft_time_loss(logits[[0, 2, 4, 5]], labels[[0, 2, 4, 5]], TIMES)))
    assert float(soft_time_loss(logits, torch.full((6,), IGNORE), TIMES)) == 0


def test_it_teaches_the_whole_target_and_its_mean() -> None:
    times, logits = list(range(20)), torch.zeros(1, 25, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.5)
    for _ in range(300):
        optimizer.zero_grad()
        soft_time_loss(logits, torch.tensor([8]), times).backward()
        optimizer.step()

    shares = logits.detach()[0].softmax(-1)

    assert float(shares[20:].sum()) < 0.01
    assert float(shares[:20] @ torch.arange(20.0)) == pytest.approx(8, abs=0.1)
    assert float(shares[7] / shares[8]) == pytest.approx(math.exp(-0.5), abs=0.05)
