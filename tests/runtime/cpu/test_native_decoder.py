"""Our own kernels against torch eager on what the weights stand for, with its inputs rounded as theirs are."""

import ctypes
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.quantized import Int4Weight, Int8Weight, Weight
from nvila_ros.models.shapes import EMBEDDING
from nvila_ros.models.spec import DecoderSpec, ModelSpec
from nvila_ros.runtime.append import AppendEngine
from nvila_ros.runtime.contract import Tree
from nvila_ros.runtime.cpu import native_decoder, native_library
from nvila_ros.runtime.cpu.native_decoder import MATRICES, NativeDecoder, UnknownFormError
from nvila_ros.runtime.cpu.native_library import libraries
from nvila_ros.runtime.rounded import round_int8
from nvila_ros.runtime.torch_engine import TorchEngine
from tests.golden_cases import GOLDEN
from tests.runtime.cpu.test_cpu_engine import HEAD, FakeCheckpoint, round_to_int4, stand_for
from tests.runtime.test_engines import assert_tree_matches_runs, make_checkpoint, make_spec

ROOT = Path(__file__).parents[3]
CROSS, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
pytestmark = pytest.mark.skipif(not libraries(), reason="this processor has no kernels of ours")
each_library = pytest.mark.parametrize("library", libraries(), ids=lambda each: each.nvila_isa().decode())
# An input that lies between two steps may be rounded to either: one in 127 of the group's largest, in one of its terms.
FLIPPED, EXACT = 1e-2, 1e-4
slow = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def make(
    folder: Path, *, kv_heads: int = 2, groups: int = 3, num_heads_px: int = 32, mlp_width: int = 192, seed: int = 7
) -> tuple[ModelSpec, dict[str, np.ndarray]]:
    """Return an untied model of random weights whose widths our kernels know."""
    spec, width = make_spec("mlp_downsample", False, kv_heads, groups), num_heads_px * kv_heads * groups
    decoder = replace(spec.decoder, width=width, mlp_width=mlp_width)
    spec = replace(spec, projector=replace(spec.projector, out_width=width), decoder=decoder)
    folder.mkdir(parents=True, exist_ok=True)
    return spec, make_checkpoint(folder, spec, seed).load()


def quantize(
    weights: dict[str, np.ndarray], group: int, bits: dict[str, int], scale: float | None
) -> dict[str, Weight]:
    """Return the decoder in four bits, or eight where `bits` says so by a part of the name."""
    result: dict[str, Weight] = dict(weights)
    for key, weight in weights.items():
        if key.startswith("llm.") and (key.endswith("proj.weight") or key == HEAD):
            is_eight = any(part in key and number == 8 for part, number in bits.items())
            result[key] = replace(round_int8(weight), input_scale=scale) if is_eight else round_to_int4(weight, group)
    return result


def with_half_scales(weight: Weight) -> Weight:
    """Return a weight whose scales float16 can hold, as those of a build."""
    if not isinstance(weight, Int4Weight):
        return weight
    return replace(weight, scale_GN=weight.scale_GN.astype(np.float16).astype(np.float32))


def rounding_torch(spec: ModelSpec, weights: dict[str, Weight]) -> TorchEngine:
    """Return torch on what the weights stand for, each of whose maps rounds its inputs as our kernels do."""
    engine = TorchEngine(FakeCheckpoint(spec, stand_for(weights)))
    for name, module in engine.model.llm.named_modules():
        if isinstance(module, nn.Linear):
            weight = weights[f"llm.{name}.weight"]
            module.register_forward_pre_hook(lambda _, args, weight=weight: (round_inputs(args[0], weight),))
    # The head is multiplied without a call of its module; what it takes is what the last norm gives.
    engine.model.llm.model["norm"].register_forward_hook(lambda _, args, normed: round_inputs(normed, weights[HEAD]))
    return engine


def round_inputs(x_LK: Tensor, weight: Weight) -> Tensor:
    assert isinstance(weight, (Int4Weight, Int8Weight))
    if isinstance(weight, Int8Weight) and weight.input_scale is not None:
        return torch.clamp(torch.round(x_LK / weight.input_scale), -127, 127) * weight.input_scale
    whole = weight.group_size if isinstance(weight, Int4Weight) else x_LK.shape[-1]
    size = max(part for part in range(4, min(whole, 128) + 1, 4) if whole % part == 0)
    groups = x_LK.unflatten(-1, (-1, size))
    scale = groups.abs().amax(-1, keepdim=True) / 127
    return (torch.round(groups / scale) * scale).flatten(-2)


def native(spec: ModelSpec, weights: dict[str, Weight], library: ctypes.CDLL, threads: int = 2) -> AppendEngine:
    decoder = NativeDecoder(spec.decoder, weights, weights[HEAD], threads, library)
    return AppendEngine(spec, np.asarray(weights[EMBEDDING]), decoder)


@each_library
@slow
@given(
    kv_heads=st.sampled_from([1, 2]),
    groups=st.sampled_from([1, 3]),
    size=st.sampled_from([16, 32, 80]),
    mlp_width=st.sampled_from([48, 192]),
    group=st.sampled_from([8, 16, 48]),
    has_halves=st.booleans(),
    eight=st.sets(st.sampled_from(["lm_head", "self_attn", "o_proj", "mlp", "down_proj"])),
    scale=st.sampled_from([None, 0.02]),  # of 0.05 an input rounded the other way moved a logit by 0.015
    threads=st.integers(1, 4),
    lengths=st.lists(st.sampled_from([1, 2, 5, 8, 9, 16, 23]), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_decodes_as_torch_with_rounded_inputs_does(
    tmp_path_factory: pytest.TempPathFactory,
    library: ctypes.CDLL,
    kv_heads: int,
    groups: int,
    size: int,
    mlp_width: int,
    group: int,
    has_halves: bool,
    eight: set[str],
    scale: float | None,
    threads: int,
    lengths: list[int],
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("ckpt")
    spec, floats = make(folder, kv_heads=kv_heads, groups=groups, num_heads_px=size, mlp_width=mlp_width, seed=seed)
    group = group if (kv_heads * groups * size) % group == 0 else 16
    weights = quantize(floats, group, dict.fromkeys(eight, 8), scale)
    weights = {key: with_half_scales(weight) if has_halves else weight for key, weight in weights.items()}
    got, want = native(spec, weights, library, threads), rounding_torch(spec, weights)
    got_cache, want_cache = got.new_cache(96), want.new_cache(96)
    rng = np.random.default_rng(seed)

    for length in lengths:
        embeds_LD = rng.normal(size=(length, spec.decoder.width)).astype(np.float32)
        assert_rounds_alike(got.forward(embeds_LD, got_cache), want.forward(embeds_LD, want_cache))


def assert_rounds_alike(got_V: np.ndarray, want_V: np.ndarray) -> None:
    """Check that few of the logits, if any, were touched by an input that was rounded the other way."""
    error_V = np.abs(got_V - want_V) / np.abs(want_V).max()
    assert error_V.max() < FLIPPED


@each_library
def test_logits_are_torchs_where_no_input_lies_between_two_steps(tmp_path: Path, library: ctypes.CDLL) -> None:
    """Of eight calls of few rows, some have no input so near the middle of two steps that the last bit decides."""
    spec, floats = make(tmp_path, mlp_width=64)
    weights = quantize(floats, 64, {}, None)
    got, want = native(spec, weights, library), rounding_torch(spec, weights)
    errors = []
    for seed in range(8):
        embeds_LD = np.random.default_rng(seed).normal(size=(3, spec.decoder.width)).astype(np.float32)
        logits_V = want.forward(embeds_LD, want.new_cache(8))
        errors.append(np.abs(got.forward(embeds_LD, got.new_cache(8)) - logits_V).max() / np.abs(logits_V).max())

    assert min(errors) < EXACT


@each_library
@pytest.mark.parametrize(("seed", "prefix"), [(0, 5), (1, 5), (2, 60)])
def test_branches_are_decoded_as_if_each_were_alone(
    tmp_path: Path, library: ctypes.CDLL, seed: int, prefix: int
) -> None:
    spec, floats = make(tmp_path)
    engine = native(spec, quantize(floats, 32, {"lm_head": 8}, None), library)

    assert_tree_matches_runs(engine, engine, prefix, [3, 1, 4, 2], seed, FLIPPED)


@each_library
def test_a_prompt_of_several_passes_is_that_of_small_steps(tmp_path: Path, library: ctypes.CDLL) -> None:
    spec, floats = make(tmp_path)
    spec = replace(spec, decoder=replace(spec.decoder, max_positions=1200))
    engine = native(spec, quantize(floats, 32, {}, None), library)
    embeds_LD = np.random.default_rng(0).normal(size=(1100, spec.decoder.width)).astype(np.float32)
    at_once, by_steps = engine.new_cache(1200), engine.new_cache(1200)
    wanted = [1099, 6, 699, 13]  # the last tokens of some steps, of all passes and in no order

    tree = Tree(np.arange(1100), np.tri(1100, dtype=bool), np.array(wanted))
    logits_by_token = dict(zip(wanted, engine.forward_tree(embeds_LD, at_once, tree), strict=True))
    for start in range(0, 1100, 7):
        last = min(start + 7, 1100) - 1
        expected_V = engine.forward(embeds_LD[start : last + 1], by_steps)
        if last in logits_by_token:
            assert_rounds_alike(logits_by_token.pop(last), expected_V)

    assert not logits_by_token


@each_library
@pytest.mark.parametrize("wanted", [[], [19], [3, 11], list(range(20))])
def test_only_the_wanted_logits_are_given(tmp_path: Path, library: ctypes.CDLL, wanted: list[int]) -> None:
    spec, floats = make(tmp_path)
    engine = native(spec, quantize(floats, 32, {}, None), library)
    embeds_LD = np.random.default_rng(0).normal(size=(20, spec.decoder.width)).astype(np.float32)
    sees_LM = np.tri(20, dtype=bool)

    logits_RV = engine.forward_tree(
        embeds_LD, engine.new_cache(20), Tree(np.arange(20), sees_LM, np.array(wanted, int))
    )

    assert logits_RV.shape == (len(wanted), spec.decoder.vocab_size)
    for row, logits_V in zip(wanted, logits_RV, strict=True):
        assert_rounds_alike(logits_V, engine.forward(embeds_LD[: row + 1], engine.new_cache(20)))


@each_library
def test_extreme_values_stay_in_range(tmp_path: Path, library: ctypes.CDLL) -> None:
    spec, floats = make(tmp_path)
    weights = quantize(floats, 64, {"mlp": 8, "lm_head": 8}, None)
    for key in (key for key in weights if key.endswith("up_proj.weight") or key == HEAD):
        weight = weights[key]
        assert isinstance(weight, Int8Weight)
        weights[key] = replace(weight, values_KN=np.where(weight.values_KN < 0, -127, 127).astype(np.int8))
    got, want = native(spec, weights, library), rounding_torch(spec, weights)
    embeds_LD = np.sign(np.random.default_rng(0).normal(size=(2, spec.decoder.width))).astype(np.float32) * 1e4

    logits_V = got.forward(embeds_LD, got.new_cache(8))

    assert_rounds_alike(logits_V, want.forward(embeds_LD, want.new_cache(8)))


@each_library
def test_zeros_give_numbers(tmp_path: Path, library: ctypes.CDLL) -> None:
    spec, floats = make(tmp_path)
    engine = native(spec, quantize(floats, 32, {}, None), library)

    assert np.isfinite(engine.forward(np.zeros((1, spec.decoder.width), np.float32), engine.new_cache(4))).all()


def test_what_no_kernel_knows_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, floats = make(tmp_path)
    weights = quantize(floats, 32, {}, None)
    key = f"llm.model.layers.1.{MATRICES[1]}.weight"

    def refusal(decoder: DecoderSpec, weights: dict[str, Weight]) -> str:
        with pytest.raises(UnknownFormError) as error:
            NativeDecoder(decoder, weights, weights[HEAD])
        return str(error.value)

    assert "not quantized" in refusal(spec.decoder, weights | {key: floats[key]})
    assert "same input" in refusal(spec.decoder, weights | {key: round_to_int4(floats[key], 64)})
    assert "multiples of 8" in refusal(spec.decoder, weights | {key: round_to_int4(floats[key], 4)})
    assert "multiples of 16" in refusal(replace(spec.decoder, mlp_width=40), weights)
    monkeypatch.setattr(native_decoder, "libraries", tuple)
    assert "not compiled" in refusal(spec.decoder, weights)


def test_a_library_of_other_sources_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(native_library, "LAYOUT", native_library.LAYOUT + 1)

    assert native_library.libraries.__wrapped__() == ()
    assert "install nvila_ros again" in caplog.text


SMALL_SIGNAL_STACK = """
import ctypes
class Stack(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
room = ctypes.create_string_buffer(2048)
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(Stack(ctypes.addressof(room), 0, 2048)), None) == 0
from nvila_ros.runtime.cpu.native_library import libraries
print(libraries()[0].nvila_isa().decode())
"""


@pytest.mark.skipif(
    all(library.nvila_isa() != b"amx" for library in libraries()), reason="there are no tiles, or the system lends none"
)
def test_vnni_serves_where_the_system_lends_no_tiles() -> None:
    """It lends none to a process one of whose signal handlers has no room for them."""
    done = subprocess.run([sys.executable, "-c", SMALL_SIGNAL_STACK], capture_output=True, text=True, timeout=60)

    assert done.stdout == "avx512vnni\n"
    assert "does not let this process use its instructions" in done.stderr


def run_products(folder: Path, compiler: str, options: list[str], *emulator: str) -> str:
    """Compile the products for a processor, run them and return their output."""
    program, source = folder / "products", ROOT / "native" / "tests" / "products.cpp"
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-psabi"]
    command = [compiler, "-std=c++17", "-O2", *warnings, *options, f"-I{ROOT / 'native'}", source, "-o", program]
    subprocess.run(command, check=True)
    done = subprocess.run([*emulator, program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.skipif(
    not (shutil.which(CROSS) and shutil.which(EMULATOR)),
    reason=f"{CROSS} or {EMULATOR} is missing; apt install g++-aarch64-linux-gnu qemu-user",
)
def test_products_are_right_on_an_emulated_arm(tmp_path: Path) -> None:
    output = run_products(tmp_path, CROSS, ["-march=armv8.2-a+dotprod", "-static"], EMULATOR)

    assert output.startswith("neon_dotprod")


@pytest.mark.skipif(
    len(libraries()) == 0 or libraries()[0].nvila_isa() not in (b"amx", b"avx512vnni") or not shutil.which("c++"),
    reason="there is no compiler, or no AVX-512 VNNI, whose narrow instructions do what those of AVX-VNNI do",
)
def test_products_are_right_by_narrow_vnni(tmp_path: Path) -> None:
    options = ["-mavx2", "-mf16c", "-mfma", "-mavx512vl", "-mavx512vnni", "-DNVILA_NARROW"]

    assert run_products(tmp_path, "c++", options).startswith("avxvnni")


@each_library
def test_llama_of_the_reference_is_decoded_as_torch_does(library: ctypes.CDLL) -> None:
    """It has no biases, and its base of the angles and eps are others."""
    checkpoint = open_checkpoint(GOLDEN / "vila15" / "llama3_bos" / "ckpt")
    weights = quantize(checkpoint.load(), 16, {}, None)
    got, want = native(checkpoint.spec, weights, library), rounding_torch(checkpoint.spec, weights)
    ids_L = np.random.default_rng(0).integers(0, 367, 24)

    assert_rounds_alike(
        got.forward(got.embed(ids_L), got.new_cache(32)), want.forward(want.embed(ids_L), want.new_cache(32))
    )
