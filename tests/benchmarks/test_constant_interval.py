"""The constant interval is no worse than others that are tried, and worse than the truth."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.constant_interval import _truth, best_constant
from nvila_ros.tools.interval_scores import temporal_iou


@pytest.mark.parametrize("kind", ["there", "gone", "moves"])
def test_it_is_the_best_of_those_tried(kind: str) -> None:
    found = best_constant(kind, 12)
    truths = [_truth(kind, index) for index in range(12)]

    for other in [(0.0, 4.0), (1.0, 3.0), (2.0, 4.0), (0.5, 3.5)]:
        assert np.mean([temporal_iou(other, truth) for truth in truths]) <= found["iou"] + 1e-9
    assert found["iou"] < 0.95
    assert 0 <= found["right"] <= 1
