"""Quantized weights as they are stored, and what cannot be stored so."""

from __future__ import annotations

import numpy as np
import pytest

from nvila_ros.errors import CheckpointError, ShapeError
from nvila_ros.models.quantized import Int8Weight, as_array, pack_nibbles, unpack_nibbles


def test_int4_values_are_packed_low_half_first() -> None:
    values_KN = np.array([[1, -1], [-8, 7]], np.int8)

    assert pack_nibbles(values_KN).tolist() == [[0xF1], [0x78]]
    assert np.array_equal(unpack_nibbles(pack_nibbles(values_KN)), values_KN)


def test_odd_number_of_outputs_is_refused() -> None:
    with pytest.raises(ShapeError, match="packed in pairs, got 3 outputs"):
        pack_nibbles(np.zeros((2, 3), np.int8))


def test_tensor_that_must_be_plain_and_is_quantized_is_refused_by_name() -> None:
    quantized = Int8Weight(np.zeros((2, 2), np.int8), np.ones(2, np.float32), None)

    with pytest.raises(CheckpointError, match=r"llm\.model\.norm\.weight is w8a8"):
        as_array({"llm.model.norm.weight": quantized}, "llm.model.norm.weight")
