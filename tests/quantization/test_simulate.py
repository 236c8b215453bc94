"""The simulated engine against loops that anyone can check, and against the float reference where nothing is lost."""

import numpy as np
import pytest
import torch

from nvila_ros.errors import CheckpointError
from nvila_ros.models.checkpoint import Checkpoint
from nvila_ros.models.quantized import Int8Weight, Weight
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.quantization.calibration import Calibration
from nvila_ros.quantization.int8 import quantize_int8
from nvila_ros.quantization.options import DecoderOptions, TowerOptions
from nvila_ros.quantization.quantize import HEAD, keep_part, quantize_decoder, quantize_tower
from nvila_ros.quantization.simulate import EXACT_INPUTS, Int8Linear, SimulatedEngine, load
from nvila_ros.runtime.torch_engine import TorchEngine
from nvila_ros.serving.pipeline import VisionLanguageModel
from nvila_ros.types import Frame, Query

BOTH = (TowerOptions(), DecoderOptions(group_size=16))


def quantize(
    checkpoint: Checkpoint, calibration: Calibration, tower: TowerOptions, decoder: DecoderOptions
) -> dict[str, Weight]:
    return {
        **dict(quantize_tower(checkpoint, tower, calibration.tile_NCHW)),
        **dict(keep_part(checkpoint, "mm_projector", "fp32")),
        **dict(quantize_decoder(checkpoint, decoder, calibration.prompts_LD)),
    }


def multiply_slowly(x_TK: np.ndarray, weight: Int8Weight) -> np.ndarray:
    """Multiply number by number in Python's whole numbers."""
    out = np.zeros((len(x_TK), weight.values_KN.shape[1]))
    for t, row in enumerate(x_TK):
        scale = np.float32(weight.input_scale or np.abs(row).max() / np.float32(127))
        whole = [min(max(round(float(value)), -128), 127) for value in row / scale]
        for n, column in enumerate(weight.values_KN.T.tolist()):
            out[t, n] = sum(a * b for a, b in zip(whole, column, strict=True)) * scale * weight.scale_N[n]
    return out


@pytest.mark.parametrize("input_scale", [None, 0.02])
def test_an_eight_bit_map_is_what_loops_over_whole_numbers_give(input_scale: float | None) -> None:
    rng = np.random.default_rng(0)
    weight = quantize_int8(rng.standard_normal((40, 6)).astype(np.float32), input_scale)
    x_TK = rng.standard_normal((5, 40)).astype(np.float32)  # with the fixed scale, some saturate at 2.54
    bias_N = rng.standard_normal(6).astype(np.float32)
    linear = Int8Linear(weight, has_bias=True)
    linear.bias.copy_(torch.from_numpy(bias_N))

    got_TN = linear(torch.from_numpy(x_TK)).numpy()

    assert np.allclose(got_TN, multiply_slowly(x_TK, weight) + bias_N, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_inputs", [EXACT_INPUTS, 4304])
def test_sums_of_eight_bit_products_are_exact(num_inputs: int) -> None:
    weight = Int8Weight(np.full((num_inputs, 1), 127, np.int8), np.ones(1, np.float32), 1.0)
    weight.values_KN[0] = 1  # an odd sum: beyond 2^24 float32 would lose it

    got = Int8Linear(weight, has_bias=False)(torch.full((1, num_inputs), 127.0))

    assert got.double().item() == np.float32(127 * 127 * (num_inputs - 1) + 127)


def test_unquantized_weights_give_the_references_numbers(checkpoint: Checkpoint, calibration: Calibration) -> None:
    plain = load(checkpoint)
    engine = TorchEngine(checkpoint)

    assert plain.precision == "fp32"
    tile_NCHW = calibration.tile_NCHW[:1]
    assert np.array_equal(plain.vision(tile_NCHW), engine.vision(tile_NCHW))
    prompt_LD = calibration.prompts_LD[0]
    assert np.array_equal(plain.forward_all(prompt_LD), engine.forward_all(prompt_LD))


@pytest.mark.parametrize("activations", ["per_token", "per_tensor"])
def test_a_quantized_model_stays_near_the_float_one(
    checkpoint: Checkpoint, calibration: Calibration, activations: str
) -> None:
    options = (TowerOptions(activations=activations), DecoderOptions(group_size=16))
    engine = SimulatedEngine(checkpoint.spec, quantize(checkpoint, calibration, *options))
    plain = TorchEngine(checkpoint)

    assert engine.precision == "w8a8+w4a16"
    feat, want = engine.vision(calibration.tile_NCHW), plain.vision(calibration.tile_NCHW)
    assert 0 < relative_error(feat, want) < 0.02
    logits, want = (each.forward_all(calibration.prompts_LD[0]) for each in (engine, plain))
    assert 0 < relative_error(logits, want) < 0.5  # random weights, whose attention is sharp by chance


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def test_cached_and_whole_prompts_agree(checkpoint: Checkpoint, calibration: Calibration) -> None:
    engine = SimulatedEngine(checkpoint.spec, quantize(checkpoint, calibration, *BOTH))
    prompt_LD = calibration.prompts_LD[0]
    cache = engine.new_cache(len(prompt_LD))

    engine.forward(prompt_LD[:7], cache)
    logits_V = engine.forward(prompt_LD[7:], cache)

    assert np.allclose(logits_V, engine.forward_all(prompt_LD)[-1], atol=1e-3)


def test_a_quantized_head_answers_through_the_whole_flow(checkpoint: Checkpoint, calibration: Calibration) -> None:
    decoder = DecoderOptions(group_size=16, is_head_int4=True)
    weights = quantize(checkpoint, calibration, BOTH[0], decoder)
    engine = SimulatedEngine(checkpoint.spec, weights)
    vlm = VisionLanguageModel(engine, ChatTokenizer.from_folder(checkpoint.tokenizer_folder), backend="torch")

    answer = vlm.answer(
        Query(query_id="1", question="What?", max_tokens=2), [Frame(image=np.zeros((8, 8, 3), np.uint8), stamp_ns=0)]
    )

    assert answer.precision == "w8a8+w4a16"
    assert np.array_equal(engine.model.llm.lm_head.weight.numpy(), weights[HEAD].dequantize().T)


def test_weights_of_another_model_are_refused(checkpoint: Checkpoint, calibration: Calibration) -> None:
    weights = quantize(checkpoint, calibration, *BOTH)
    lacking = {key: weight for key, weight in weights.items() if key != "llm.model.norm.weight"}
    strange = {**weights, "llm.model.norm.weight": quantize_int8(np.ones((4, 4), np.float32))}

    with pytest.raises(CheckpointError, match=r"missing are \['llm.model.norm.weight'\]"):
        SimulatedEngine(checkpoint.spec, lacking)
    with pytest.raises(CheckpointError, match=r"llm.model.norm.weight must be a linear map's weight"):
        SimulatedEngine(checkpoint.spec, strange)
