"""Eight-bit weights and activations, and the smoothing between them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.models.activations import round_activations, token_scales
from nvila_ros.models.checkpoint import Checkpoint
from nvila_ros.models.siglip import VisionLayer
from nvila_ros.quantization.calibration import Calibration
from nvila_ros.quantization.int8 import CUTS, choose_input_scale, quantize_int8, smooth_scales
from nvila_ros.quantization.layers import TOWER, build_part, embed_tiles, listen
from nvila_ros.quantization.quantize import smooth_layer

POINTS = ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")


@given(st.integers(0, 2**32), st.floats(0, 3))
def test_weights_are_symmetric_and_off_by_half_a_scale_at_most(seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    weight_KN = (rng.standard_normal((24, 5)) * 10 ** rng.uniform(-spread, spread, 5)).astype(np.float32)

    quantized = quantize_int8(weight_KN)

    assert np.abs(quantized.values_KN.astype(int)).max() <= 127
    assert (np.abs(quantized.dequantize() - weight_KN) <= quantized.scale_N / 2 * (1 + 1e-5)).all()
    assert quantized.input_scale is None


def test_activations_round_half_to_even_and_saturate() -> None:
    x = torch.tensor([0.5, 1.5, -2.5, 200.0, -200.0])

    assert round_activations(x, 1.0).tolist() == [0, 2, -2, 127, -128]


def test_each_token_fills_its_own_range() -> None:
    x_TK = torch.tensor([[1.0, -4.0], [0.1, 0.2], [0.0, 0.0]])

    values = round_activations(x_TK, token_scales(x_TK))

    assert values.abs().amax(-1).tolist() == [127, 127, 0]


def test_smoothing_takes_range_from_loud_inputs() -> None:
    scale_K = smooth_scales(torch.tensor([100.0, 1.0, 0.0]), [torch.ones(4, 3), 0.5 * torch.ones(2, 3)], 0.5)

    assert scale_K[:2].tolist() == [10.0, 1.0]
    assert scale_K[2] > 0  # an input that was never seen must not divide by nothing


@pytest.mark.parametrize("strength", [0.3, 0.5])
def test_smoothing_leaves_a_layers_float_outputs_equal(
    checkpoint: Checkpoint, calibration: Calibration, strength: float
) -> None:
    spec, weights = checkpoint.spec.vision, checkpoint.weights("vision_tower")
    layer = build_part(VisionLayer, weights, f"{TOWER}.encoder.layers.0", spec)
    with torch.no_grad():
        feat_NPE = embed_tiles(spec, weights, calibration.tile_NCHW[:2])
        with listen(layer, POINTS, 128) as taps:
            before_NPE = layer(feat_NPE)
        old_norm = layer.layer_norm1.weight.clone()

        divisors = smooth_layer(layer, taps, strength)

        assert (layer(feat_NPE) - before_NPE).abs().max() < 1e-5 * before_NPE.abs().max()
    assert (layer.layer_norm1.weight - old_norm).abs().max() > 1e-3
    assert divisors["mlp.fc2"].ndim == 0


@given(st.integers(0, 2**32))
def test_the_chosen_range_is_never_worse_than_the_largest_magnitude(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed % 2**63)
    x_TK = torch.randn(64, 16, generator=generator)
    x_TK[0, 0] = 30.0  # an outlier that the others would pay for
    weight_NK = torch.randn(8, 16, generator=generator)
    rounded_KN = torch.from_numpy(quantize_int8(weight_NK.T.numpy()).dequantize())

    def error(scale: float) -> float:
        return float((round_activations(x_TK, scale) * scale @ rounded_KN - x_TK @ weight_NK.T).square().sum())

    scale = choose_input_scale(x_TK, [weight_NK[:4], weight_NK[4:]], 30.0)

    assert error(scale) <= error(30.0 / 127) * (1 + 1e-5)
    assert 30.0 * CUTS[-1] / 127 <= scale <= 30.0 / 127
