"""Checkpoints that are rounded while they are read, against quantization's own rounding in torch."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvila_ros.errors import BackendError
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.quantized import Int4Weight, Int8Weight
from nvila_ros.models.shapes import EMBEDDING, expected_shapes
from nvila_ros.models.variants import VARIANTS
from nvila_ros.paths import share_path
from nvila_ros.quantization.int4 import quantize_int4
from nvila_ros.quantization.int8 import quantize_int8
from nvila_ros.runtime.loading import choose_backend
from nvila_ros.runtime.rounded import (
    RoundedCheckpoint,
    choose_precision,
    fitting_precision,
    group_size,
    is_rounded,
    round_int4,
    round_int8,
    rounded_bytes,
)
from nvila_ros.serving.pipeline import load_model
from nvila_ros.types import Frame, Query
from nvila_ros.world.questions import eval_case
from nvila_ros.world.rendering import render

TINY = share_path("checkpoints", "nvila-tiny")
WEIGHTS = st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16])


def make_weight(seed: int, num_outputs: int, num_inputs: int, dtype: type) -> np.ndarray:
    rng = np.random.default_rng(seed)
    weight_NK = rng.standard_normal((num_outputs, num_inputs)) * rng.choice([1e-6, 0.02, 3.0], (num_outputs, 1))
    weight_NK[0] = 0.0
    return weight_NK.astype(dtype)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), num_outputs=st.integers(1, 300), groups=st.integers(1, 3), dtype=WEIGHTS)
def test_rounding_equals_that_of_builds_without_calibration(
    seed: int, num_outputs: int, groups: int, dtype: type
) -> None:
    weight_NK = make_weight(seed, num_outputs, 128 * groups, dtype)
    weight_KN = np.ascontiguousarray(weight_NK.T.astype(np.float32))

    got4, want4 = round_int4(weight_NK), quantize_int4(weight_KN, 128)
    got8, want8 = round_int8(weight_NK), quantize_int8(weight_KN)

    assert np.array_equal(got4.values_KN, want4.values_KN)
    assert np.array_equal(got4.scale_GN, want4.scale_GN)
    assert np.array_equal(got8.values_KN, want8.values_KN)
    assert np.array_equal(got8.scale_N, want8.scale_N)


@given(num_inputs=st.integers(1, 20_000))
def test_groups_divide_the_inputs(num_inputs: int) -> None:
    size = group_size(num_inputs)

    assert num_inputs % size == 0
    assert size <= 128
    assert size % 8 == 0 or num_inputs % 8


@pytest.mark.parametrize("bits", [8, 4])
def test_only_linear_maps_of_layers_are_rounded(bits: int) -> None:
    checkpoint = open_checkpoint(TINY)

    weights, plain = RoundedCheckpoint(checkpoint, bits).weights(), checkpoint.weights()

    assert list(weights) == list(plain)
    for key, want in plain.items():
        got = weights[key]
        if not is_rounded(key, want.shape):
            assert isinstance(got, np.ndarray)
            assert got.dtype == np.float32
            assert np.array_equal(got, want)
            continue
        assert isinstance(got, Int4Weight if bits == 4 and key.startswith("llm.") else Int8Weight)
        steps = np.repeat(got.scale_GN, got.group_size, 0) if isinstance(got, Int4Weight) else got.scale_N
        assert np.all(np.abs(got.dequantize() - want.T) <= steps / 2 * (1 + 1e-6))
    assert not is_rounded(EMBEDDING, expected_shapes(checkpoint.spec)[EMBEDDING])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "precision", "name"),
    [("cpu", "auto", "w8a8"), ("cpu", "w4", "w8a8+w4a8"), ("cpu", "fp32", "fp32"), ("onnxruntime", "auto", "fp32")],
)
def test_answers_name_the_precision_and_are_those_of_float32(backend: str, precision: str, name: str) -> None:
    model = load_model("nvila-tiny", backend=backend, precision=precision, threads=1)
    case = eval_case("color", 20_001)
    frames = [Frame(image=render(case.scene, t_s, 640, 480), stamp_ns=round(t_s * 1e9)) for t_s in case.times_s]

    answer = model.answer(Query(query_id="1", question=case.question.text, num_frames=1, max_tokens=16), frames)

    assert model.info.precision == name
    assert answer.text == case.question.answer


@pytest.mark.parametrize(
    ("backend", "precision", "message"),
    [
        (
            "onnxruntime",
            "w8",
            "precision w8 is for backend cpu alone, got onnxruntime; choose that backend or precision",
        ),
        ("torch", "w4", "precision w4 is for backend cpu alone, got torch"),
        ("cpu", "int8", r"unknown precision 'int8'; known are \['auto', 'fp32', 'w8', 'w4'\]"),
    ],
)
def test_precision_that_nobody_offers_is_refused(backend: str, precision: str, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        load_model("nvila-tiny", backend=backend, precision=precision)


def test_memory_decides_between_eight_and_four_bits() -> None:
    spec = VARIANTS["NVILA-Lite-2B"].spec

    assert fitting_precision(spec, 16 << 30) == "w8"
    assert fitting_precision(spec, 2 << 30) == "w4"
    assert rounded_bytes(spec, 4) < rounded_bytes(spec, 8) < 3 << 30


def test_large_checkpoint_is_left_to_the_backend_that_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(TINY)

    assert choose_backend(checkpoint) == "onnxruntime"
    monkeypatch.setattr("nvila_ros.runtime.loading.MAX_FLOAT_BYTES", 1000)
    assert choose_backend(checkpoint) == "cpu"


def test_model_that_is_rounded_stays_as_it_is() -> None:
    rounded = choose_precision(open_checkpoint(Path(TINY)), "cpu", "w4")

    assert choose_precision(rounded, "cpu") is rounded
