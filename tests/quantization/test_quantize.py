"""Whole parts: every tensor comes out, one layer at a time, equal to what quantizing the whole at once gives."""

import dataclasses
import weakref
from collections import deque
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from nvila_ros.errors import CheckpointError, ConfigError
from nvila_ros.models.checkpoint import Checkpoint, TensorInfo
from nvila_ros.models.quantized import Int4Weight, Int8Weight, Weight
from nvila_ros.models.shapes import expected_shapes
from nvila_ros.quantization import awq
from nvila_ros.quantization.calibration import Calibration
from nvila_ros.quantization.int4 import quantize_int4
from nvila_ros.quantization.int8 import choose_input_scale, quantize_int8
from nvila_ros.quantization.layers import (
    DECODER,
    NUM_SAMPLED,
    TOWER,
    embed_tiles,
    listen,
    run_decoder_layer,
    run_tower_layer,
)
from nvila_ros.quantization.options import DecoderOptions, TowerOptions
from nvila_ros.quantization.quantize import HEAD, keep_part, quantize_decoder, quantize_tower, to_half
from nvila_ros.runtime.torch_engine import load_torch_model

GROUP = 16
NEAREST = DecoderOptions(group_size=GROUP, awq=False, clip=False)
SEARCHED = DecoderOptions(group_size=GROUP)


class Held:
    """Counts the bytes of tensors that were read and are still held."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def __call__(self, array: np.ndarray) -> np.ndarray:
        self.now += array.nbytes
        self.peak = max(self.peak, self.now)
        weakref.finalize(array, self._release, array.nbytes)
        return array

    def _release(self, num_bytes: int) -> None:
        self.now -= num_bytes


@dataclasses.dataclass(frozen=True)
class Watched(TensorInfo):
    """A tensor on disk whose reader keeps books."""

    held: Held = dataclasses.field(default_factory=Held)

    def read(self, dtype: object = None) -> np.ndarray:
        return self.held(TensorInfo.read(self, dtype))


def assert_equal(got: Weight, want: Weight, key: str) -> None:
    assert type(got) is type(want), key
    if isinstance(got, np.ndarray):
        assert np.array_equal(got, want), key
        return
    assert np.array_equal(got.values_KN, want.values_KN), key


def test_every_tensor_comes_out_once(checkpoint: Checkpoint, calibration: Calibration) -> None:
    pairs = [
        *quantize_tower(checkpoint, TowerOptions(), calibration.tile_NCHW),
        *keep_part(checkpoint, "mm_projector", "fp32"),
        *quantize_decoder(checkpoint, SEARCHED, calibration.prompts_LD),
    ]

    shapes = {
        key: weight.shape if isinstance(weight, np.ndarray) else weight.values_KN.shape[::-1] for key, weight in pairs
    }
    assert len(pairs) == len(shapes)
    assert shapes == expected_shapes(checkpoint.spec)
    for key, weight in pairs:
        is_linear = ".layers." in key and key.endswith("weight") and "norm" not in key
        kind = {"vision_tower": Int8Weight, "llm": Int4Weight}.get(key.split(".")[0], np.ndarray)
        assert isinstance(weight, kind if is_linear else np.ndarray), key


def test_streaming_without_searches_is_rounding_each_weight(checkpoint: Checkpoint, calibration: Calibration) -> None:
    plain = checkpoint.load()
    streamed = {
        **dict(quantize_tower(checkpoint, TowerOptions(smooth=None), calibration.tile_NCHW[:0])),
        **dict(quantize_decoder(checkpoint, NEAREST, ())),
    }

    for key, weight in streamed.items():
        if isinstance(weight, Int8Weight):
            assert_equal(weight, quantize_int8(plain[key].T), key)
        elif isinstance(weight, Int4Weight):
            assert_equal(weight, quantize_int4(plain[key].T, GROUP), key)
        else:
            assert np.array_equal(weight, plain[key]), key


def test_streaming_searches_what_the_whole_float_model_shows(checkpoint: Checkpoint, calibration: Calibration) -> None:
    """The last layer, streamed, is that of a whole model whose taps were all open in one float pass."""
    streamed = dict(quantize_decoder(checkpoint, SEARCHED, calibration.prompts_LD))
    spec, last = checkpoint.spec.decoder, checkpoint.spec.decoder.num_layers - 1
    model = load_torch_model(checkpoint).llm
    layer = model.model["layers"][last]
    seen: list[torch.Tensor] = []
    hook = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0][0]))
    with torch.inference_mode():
        for prompt_LD in calibration.prompts_LD:
            model(torch.from_numpy(prompt_LD)[None])

    inputs = [prompt_LD.clone() for prompt_LD in seen]
    hook.remove()
    with listen(layer, sorted(set(awq.TAPPED.values())), sum(map(len, seen))) as taps:
        run_decoder_layer(spec, layer, seen)
    divisors = awq.fold_scales(spec, layer, awq.pick_prompts(inputs), taps, GROUP)

    name = f"{DECODER}.layers.{last}"
    norm = streamed[f"{name}.post_attention_layernorm.weight"]
    assert np.allclose(norm, layer.post_attention_layernorm.weight.numpy(), rtol=1e-4)
    query = streamed[f"{name}.self_attn.q_proj.weight"]
    want = quantize_int4(layer.self_attn.q_proj.weight.numpy().T, GROUP)
    assert np.mean(query.values_KN != want.values_KN) < 1e-3
    down_KN = layer.mlp.down_proj.weight.T.contiguous()
    rows_TK = taps["mlp.down_proj"].rows() / divisors["mlp.down_proj"]
    want = quantize_int4(down_KN.numpy(), GROUP, awq.search_clip(down_KN, rows_TK, GROUP).numpy())
    got = streamed[f"{name}.mlp.down_proj.weight"]
    assert divisors["mlp.down_proj"].std() > 0.01
    assert np.mean(got.values_KN != want.values_KN) < 5e-3


def test_a_tower_layer_is_smoothed_by_what_its_norms_write(checkpoint: Checkpoint, calibration: Calibration) -> None:
    options = TowerOptions(activations="per_tensor", smooth=0.3)
    streamed = dict(quantize_tower(checkpoint, options, calibration.tile_NCHW))
    layer = load_torch_model(checkpoint).vision_tower["vision_model"].encoder["layers"][0]
    written: list[torch.Tensor] = []
    layer.layer_norm2.register_forward_hook(lambda module, args, output: written.append(output.flatten(0, 1)))
    spec, weights = checkpoint.spec.vision, checkpoint.weights("vision_tower")
    run_tower_layer(layer, embed_tiles(spec, weights, calibration.tile_NCHW))

    rows_TK, weight_NK = torch.cat(written), layer.mlp.fc1.weight
    scale_K = rows_TK.abs().amax(0) ** 0.3 / weight_NK.abs().amax(0) ** 0.7

    name = f"{TOWER}.encoder.layers.0"
    for key in ("weight", "bias"):
        want = getattr(layer.layer_norm2, key) / scale_K
        assert np.allclose(streamed[f"{name}.layer_norm2.{key}"], want.numpy(), rtol=1e-5, atol=1e-7)
    smooth_TK, folded_NK = rows_TK / scale_K, weight_NK * scale_K
    got = streamed[f"{name}.mlp.fc1.weight"]
    assert np.mean(got.values_KN != quantize_int8(folded_NK.T.numpy()).values_KN) < 5e-3
    want_scale = choose_input_scale(smooth_TK, [folded_NK], float(smooth_TK.abs().max()))
    assert got.input_scale == pytest.approx(want_scale, rel=1e-4)


@pytest.mark.parametrize("part", ["vision_tower", "llm"])
def test_one_layer_is_held_at_a_time(checkpoint: Checkpoint, calibration: Calibration, part: str) -> None:
    held = Held()
    tensors = {
        key: Watched(info.file, info.name, info.dtype, info.shape, key, held)
        for key, info in checkpoint.tensors.items()
    }
    watched = dataclasses.replace(checkpoint, tensors=tensors)
    sizes = {key: 4 * int(np.prod(shape)) for key, shape in expected_shapes(checkpoint.spec).items()}
    name = {"vision_tower": f"{TOWER}.encoder.layers.0.", "llm": f"{DECODER}.layers.0."}[part]
    layer = sum(size for key, size in sizes.items() if key.startswith(name))
    rest = sum(size for key, size in sizes.items() if key.startswith(part) and ".layers." not in key)

    deque(stream(watched, part, calibration), maxlen=0)  # takes all and keeps none

    assert held.peak <= max(layer, rest)
    assert held.now == 0


def stream(checkpoint: Checkpoint, part: str, calibration: Calibration) -> Iterator[tuple[str, Weight]]:
    if part == "llm":
        return quantize_decoder(checkpoint, SEARCHED, calibration.prompts_LD)
    return quantize_tower(checkpoint, TowerOptions(activations="per_tensor"), calibration.tile_NCHW)


def test_calibration_inputs_are_left_as_they_were(checkpoint: Checkpoint, calibration: Calibration) -> None:
    before = [prompt_LD.copy() for prompt_LD in calibration.prompts_LD]
    tiles = calibration.tile_NCHW.copy()

    for part in ("vision_tower", "llm"):
        deque(stream(checkpoint, part, calibration), maxlen=0)

    assert np.array_equal(tiles, calibration.tile_NCHW)
    assert all(map(np.array_equal, before, calibration.prompts_LD))


def test_maps_of_one_input_share_its_calibrated_scale(checkpoint: Checkpoint, calibration: Calibration) -> None:
    options = TowerOptions(activations="per_tensor")
    weights = dict(quantize_tower(checkpoint, options, calibration.tile_NCHW))

    stem = f"{TOWER}.encoder.layers.0"
    scales = {weights[f"{stem}.self_attn.{key}_proj.weight"].input_scale for key in "qkv"}
    assert len(scales) == 1
    assert scales.pop() > 0
    assert weights[f"{stem}.mlp.fc2.weight"].input_scale != weights[f"{stem}.mlp.fc1.weight"].input_scale


def test_a_quantized_head_is_a_tensor_of_its_own(checkpoint: Checkpoint, calibration: Calibration) -> None:
    options = dataclasses.replace(SEARCHED, is_head_int4=True)
    decoder = dataclasses.replace(checkpoint.spec.decoder, is_tied=True)
    tied = dataclasses.replace(checkpoint, spec=dataclasses.replace(checkpoint.spec, decoder=decoder))

    for source in (checkpoint, tied):
        weights = dict(quantize_decoder(source, options, calibration.prompts_LD))

        assert isinstance(weights[HEAD], Int4Weight)
        assert isinstance(weights["llm.model.embed_tokens.weight"], np.ndarray)


def test_half_precision_rounds_every_tensor_and_refuses_what_does_not_fit(checkpoint: Checkpoint) -> None:
    plain = checkpoint.load("llm")

    for key, weight in quantize_decoder(checkpoint, DecoderOptions(precision="fp16"), ()):
        assert np.array_equal(weight, plain[key].astype(np.float16)), key
    with pytest.raises(CheckpointError, match=r"a\.weight must stay within 65504 to fit half precision, got 70000"):
        to_half("a.weight", np.array([7e4, 1], np.float32))


def test_progress_counts_layers(checkpoint: Checkpoint) -> None:
    told: list[tuple[str, int, int]] = []

    list(quantize_decoder(checkpoint, NEAREST, (), lambda *step: told.append(step)))

    assert told == [("llm", 1, 2), ("llm", 2, 2)]


def test_a_group_size_that_does_not_fit_is_refused_before_any_work(checkpoint: Checkpoint) -> None:
    with pytest.raises(ConfigError, match="the group size must divide the inputs of every linear map, got 128 and 64"):
        next(quantize_decoder(checkpoint, DecoderOptions(), ()))


def test_searches_without_calibration_are_refused(checkpoint: Checkpoint, calibration: Calibration) -> None:
    with pytest.raises(ConfigError, match="must be calibrated, got no tiles"):
        next(quantize_tower(checkpoint, TowerOptions(), calibration.tile_NCHW[:0]))
    with pytest.raises(ConfigError, match="must be calibrated, got no prompts"):
        next(quantize_decoder(checkpoint, SEARCHED, ()))


def test_sampled_tokens_are_spread_over_all_calls_and_bounded() -> None:
    linear = torch.nn.Linear(3, 2)
    calls = [torch.full((1, 700, 3), float(i)) for i in range(4)]

    with torch.no_grad(), listen(torch.nn.ModuleDict({"a": linear}), ["a"], 2800) as taps:
        for call in calls:
            linear(call)

    rows_TK = taps["a"].rows()
    assert rows_TK[:, 0].int().bincount().tolist() == [234, 233, 233, 234]  # every third of 2800
    assert len(rows_TK) <= NUM_SAMPLED
    assert taps["a"].mean_abs().tolist() == [1.5, 1.5, 1.5]
    assert taps["a"].amax_K.tolist() == [3.0, 3.0, 3.0]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: TowerOptions(precision="int3"), "unknown tower precision 'int3'; known are"),
        (lambda: TowerOptions(activations="none"), "unknown activations 'none'"),
        (lambda: TowerOptions(smooth=1.0), "smooth must lie between 0 and 1 or be none, got 1.0"),
        (lambda: DecoderOptions(precision="w8a8"), "unknown decoder precision 'w8a8'"),
        (lambda: DecoderOptions(group_size=24), "group_size must be a multiple of 16, got 24"),
    ],
)
def test_choices_outside_their_rule_are_refused(make, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make()
